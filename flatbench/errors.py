"""The one exception a user's mistake raises; the command line prints it as one line, exit 2."""


class UsageError(Exception):
    """Something the user gave cannot be used.

    The message is one line that names the file or option, the field, what it must be, and what was
    found.
    """

    def __init__(self, message: str) -> None:
        # paths and other programs' messages may hold line breaks
        super().__init__("\\n".join(message.splitlines()))
