"""Errors that a user can act on; the command line prints their one line and exits with status 2."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, written or used."""


class UserError(ValueError):
    """A mistake in what the user gave."""
