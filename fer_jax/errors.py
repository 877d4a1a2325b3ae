"""The one exception that stands for a mistake of the person who typed the command."""


class UserError(Exception):
    """Wrong usage, configuration or data: shown as one line, without a traceback, exit status 2.

    The message names what is wrong, where (file, row, key) and what would be right.
    """
