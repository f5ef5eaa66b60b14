"""The one exception that stands for a mistake of the user's."""


class UserError(ValueError):
    """A wrong name, value, file or folder: the message is one line that says what would be accepted."""
