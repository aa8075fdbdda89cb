"""The error that a user can do something about."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, written or used; the message is one line, for the user."""


class UserError(ValueError):
    """A mistake of the user's; the message is one clear line.

    The command line prints the message and exits with status 2.
    """
