"""The error that a user can do something about."""


class UserError(ValueError):
    """A mistake of the user's; the message is one clear line.

    The command line prints the message and exits with status 2.
    """
