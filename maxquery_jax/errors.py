"""The two kinds of failure a command distinguishes: the user's (exit 2) and ours (exit 1)."""


class UserError(Exception):
    """The user's or the data's fault: what is wrong, where, and how to fix it, in one line.

    `launch` prints the message without a traceback and exits with code 2.
    """
