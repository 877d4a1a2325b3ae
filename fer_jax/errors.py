"""The exceptions that end the command with a line and an exit status of their own, without a traceback."""


class UserError(Exception):
    """Wrong usage, configuration or data: exit status 2.

    The message names what is wrong, where (file, row, key) and what would be right; one line for each thing wrong.
    """


class StorageError(Exception):
    """Something can't be written or read: a full disk, a quota, permissions. Exit status 4; names what, and why."""
