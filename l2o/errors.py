"""What a person can mend."""


class UserError(ValueError):
    """Something the user can mend, which the message says in one line.

    Commands print it without a traceback, and exit with status 2.
    """


class RunError(UserError):
    """A run that cannot be, or came to nothing."""
