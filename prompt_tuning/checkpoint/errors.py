"""The error of every checkpoint format."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, written or used; the message is one line, for the user."""
