"""Errors that a user can mend, and the exit status of a command that ends with one."""


class UserError(Exception):
    """An error whose message says what was expected, what was found, where, and what to do.

    Attributes:
      exit_status: the exit status of a command that ends with this error.
    """

    exit_status = 2


class InUseError(UserError):
    """Another process holds the lock of a file or folder."""


class UnfinishedError(UserError):
    """Work that had begun can't go on. What is finished is kept, and the message says so."""

    exit_status = 1


class InterruptedRunError(UserError):
    """The user stopped the work by Ctrl-C or SIGTERM. What is finished is kept, and the message says so."""

    exit_status = 130


def first_line(error: BaseException) -> str:
    """The error's type and the first line of its message, at most 300 characters, for use within another message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
