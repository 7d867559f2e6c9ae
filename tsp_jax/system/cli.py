"""What every command does around its work: numbers in flags, names of files on the terminal, messages, exit status."""

import argparse
import contextlib
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator

from tsp_jax.system import errors

_CLOSED_PIPE_STATUS = 141  # as shells say of a program that ends by SIGPIPE


def run(
    work: Callable[[argparse.Namespace], int | None],
    options: argparse.Namespace,
    *,
    error_status: int | None = None,
    after_error: Callable[[int], int] = lambda status: status,
) -> int:
    """Runs a command's work and returns its exit status. An error that a user can mend becomes one message, with no traceback.

    A `UserError` sets the status itself. An OSError, ValueError, RuntimeError or ImportError means wrong use: status 2. Ctrl-C
    means status 130. If nobody reads the output any more, as after `| head`, the work ends without a message: status 141. Other
    errors are defects of this project and keep their traceback.

    Args:
      work: the command's work; it returns an exit status, or None for 0.
      options: the parsed flags, which `work` receives.
      error_status: one exit status for all errors, for a command that reserves 2 for wrong flags; None: as above.
      after_error: is called with the exit status after an error's message; what it returns is the exit status.
    """
    show_any_name()
    try:
        status = work(options) or 0
        print(end="", flush=True)  # here, where a closed pipe can be noticed
        return status
    except errors.InterruptedRunError as interruption:
        print(interruption, file=sys.stderr)
        return after_error(interruption.exit_status)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return after_error(errors.InterruptedRunError.exit_status)
    except errors.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return after_error(error.exit_status if error_status is None else error_status)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if isinstance(error, BrokenPipeError) and _drop_closed_output():
            return after_error(_CLOSED_PIPE_STATUS)
        print(f"error: {error}", file=sys.stderr)
        return after_error(errors.UserError.exit_status if error_status is None else error_status)


@contextlib.contextmanager
def resumable(kept: str) -> Iterator[None]:
    """Runs a block whose finished parts outlive it: a full disk or Ctrl-C ends it with a message that says what is kept.

    Args:
      kept: what is kept and how to continue, such as "finished videos are kept; run the same command again to continue".

    Raises:
      UnfinishedError: the block raised an OSError, for example because the disk is full (exit status 1).
      InterruptedRunError: the block was interrupted (exit status 130).
    """
    try:
        yield
    except errors.UserError:
        raise
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _drop_closed_output():
            raise
        raise errors.UnfinishedError(f"{error}; {kept}") from error
    except KeyboardInterrupt as error:
        raise errors.InterruptedRunError(f"interrupted; {kept}") from error


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM end the block as Ctrl-C does, by a KeyboardInterrupt. Works in the main thread only."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def positive_int(text: str) -> int:
    """Returns the flag's whole number, at least 1; for argparse."""
    return _int_from(1, text)


def non_negative_int(text: str) -> int:
    """Returns the flag's whole number, at least 0; for argparse."""
    return _int_from(0, text)


def show_any_name() -> None:
    """Lets file names be printed that are not UTF-8 or that this terminal can't show; they are escaped with backslashes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_closed_output() -> bool:
    """Returns whether the reader of stdout or stderr has gone. What is written there from now on is dropped."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    closed = [number for number, event in poll.poll(0) if event & (select.POLLERR | select.POLLHUP)]
    for number in closed:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), number)
    return bool(closed)


def _int_from(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"a whole number from {least} up; got {text}")
    return value
