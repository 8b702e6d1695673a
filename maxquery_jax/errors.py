"""The two kinds of failure a command distinguishes: the user's (exit 2) and ours (exit 1)."""


class UserError(Exception):
    """The user's or the data's fault: what is wrong, where, and how to fix it, in one line.

    `launch` prints the message without a traceback and exits with code 2.
    """


class StoppedError(UserError):
    """A signal asked for the end: what was done is saved, and the same command continues.

    Unlike a failure it ends everything that the process had still to do.
    """
