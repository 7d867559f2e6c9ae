"""What every command does around its work: numbers in flags, names of files on the terminal, messages, exit status."""

import argparse
import io
import sys


def positive_int(text: str) -> int:
    """The whole number from 1 up that a flag's text says, for argparse."""
    return _int_from(1, text)


def non_negative_int(text: str) -> int:
    """The whole number from 0 up that a flag's text says, for argparse."""
    return _int_from(0, text)


def show_any_name() -> None:
    """Lets names of files be printed that are not UTF-8 or that this terminal can't show: escaped, with backslashes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _int_from(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"a whole number from {least} up; got {text}")
    return value
