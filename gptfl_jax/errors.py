"""The errors that a user can mend."""


class UserError(Exception):
    """The user can mend this: the message names the field or file and the remedy.

    A program prints it as one line without a traceback.
    """


class ConfigError(UserError):
    """A config field that does not exist, or a value it does not take."""
