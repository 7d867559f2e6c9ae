"""How far a long command has come: a bar on a terminal, and plain lines where there is none, as in the log of a batch job."""

import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import tqdm

EVERY_SEC = 30.0  # the longest time between two lines
_POLL_SEC = 1.0  # the shortest
_TENTHS = 10

T = TypeVar("T")


def each(items: Iterable[T], what: str, total: int, unit: str = "videos") -> Iterator[T]:
    """Yields the items, and shows how many of them have been worked on. Arguments are those of `Progress`."""
    with Progress(what, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()


class Progress:
    """Shows on stderr how far some work has come, with its rate and the time that is left; for use in `with`.

    On a terminal it is a bar. Elsewhere a line is printed when another tenth of the work is done, or when 30 seconds have
    passed since the line before, even if nothing has moved, and one at the end; at most one line a second. So work that takes
    less than a second prints nothing.

    Attributes:
      done: how much of the work is done, in units.
      has_bar: whether it is a bar.
    """

    def __init__(
        self, what: str, total: float | None, unit: str, *, done: float = 0, sparse: bool = False, silent: bool = False
    ):
        """Starts the clock.

        Args:
          what: the name of the work, such as "extract".
          total: the size of the whole work, in units; None if it is not known.
          unit: the unit of `total` and `done`, in the plural, such as "videos".
          done: how much was done before. It does not count for the rate.
          sparse: whether lines are printed only after 30 seconds without any, for a command that has a log of its own.
          silent: whether nothing is shown, for all processes of a run but the first.
        """
        self.done, self._what, self._total, self._unit, self._sparse = done, what, total, unit, sparse
        self._done_before, self._began, self._shown = done, time.monotonic(), ""
        self._last_line, self._last_tenth = self._began, self._tenth()
        self._ended, self._bar = threading.Event(), None
        self.has_bar = sys.stderr.isatty() and not silent
        if self.has_bar:
            known = "{l_bar}{bar}| {n_fmt}/{total_fmt} UNIT [{elapsed}<{remaining}{postfix}]"
            form = (known if total is not None else "{desc}: {n_fmt} UNIT [{elapsed}{postfix}]").replace("UNIT", unit)
            wide = os.get_terminal_size(sys.stderr.fileno()).columns > 0  # a terminal of a script may report none
            self._bar = tqdm.tqdm(
                total=_shown(total),
                initial=_shown(done) or 0,
                desc=what,
                bar_format=form,
                mininterval=0.5,
                dynamic_ncols=wide,
                ncols=None if wide else 80,
                nrows=None if wide else 24,
            )
        elif silent:
            self._ended.set()
        else:
            threading.Thread(target=self._print_lines, daemon=True).start()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def advance(self, by: float = 1) -> None:
        """Counts that much more of the work as done."""
        self.to(self.done + by)

    def to(self, done: float, shown: str | None = None) -> None:
        """Sets how much of the work is done.

        Args:
          done: how much of the work is done, in units.
          shown: what to show in place of the rate in units a second; None changes nothing.
        """
        self.done = done
        if shown is not None:
            self._shown = shown
        if self._bar is not None:
            self._bar.set_postfix_str(self._shown or self._rate(), refresh=False)
            self._bar.update((_shown(done) or 0) - self._bar.n)

    def elapsed_sec(self) -> float:
        """Returns the seconds since the work began; never 0."""
        return max(time.monotonic() - self._began, 1e-9)

    def say(self, text: str, *, on_stdout: bool = False) -> None:
        """Prints a line, above the bar if there is one.

        Args:
          text: the line.
          on_stdout: whether to print on stdout, not on stderr.
        """
        file = sys.stdout if on_stdout else sys.stderr
        if self._bar is not None:
            self._bar.write(text, file=file)
        else:
            if self._sparse:
                self._last_line = time.monotonic()
            print(text, file=file, flush=True)

    def close(self) -> None:
        """Ends the bar, or prints the last line."""
        if self._ended.is_set():
            return
        self._ended.set()
        if self._bar is not None:
            self._bar.close()
        elif not self._sparse and self.elapsed_sec() >= _POLL_SEC:
            self._print(f"{duration(self.elapsed_sec())} in all")

    def _print_lines(self) -> None:
        """Prints the lines that are due, until the work ends; runs in a thread of its own."""
        while not self._ended.wait(_POLL_SEC):
            tenth = self._tenth()
            another = tenth > self._last_tenth and not self._sparse and tenth < _TENTHS  # the last line says the last tenth
            if another or time.monotonic() - self._last_line >= EVERY_SEC:
                self._last_line, self._last_tenth = time.monotonic(), tenth
                left = self._seconds_left()
                self._print("" if left is None else f"{duration(left)} left")

    def _print(self, end: str) -> None:
        count = f"{math.floor(self.done):,}" + ("" if self._total is None else f" of {round(self._total):,}")
        parts = [f"{self._what}: {count} {self._unit}", self._shown or self._rate(), end]
        sys.stderr.write(", ".join(part for part in parts if part) + "\n")  # one write, so that no other line gets into it
        sys.stderr.flush()

    def _tenth(self) -> int:
        return math.floor(_TENTHS * self.done / self._total) if self._total else 0

    def _rate(self) -> str:
        rate = (self.done - self._done_before) / self.elapsed_sec()
        return f"{rate:,.1f} {self._unit}/s" if rate >= 10 else f"{rate:.2f} {self._unit}/s" if rate > 0 else ""

    def _seconds_left(self) -> float | None:
        """Returns the seconds that are left at the rate so far; None if that is not known."""
        moved = self.done - self._done_before
        if self._total is None or moved <= 0:
            return None
        return max(self._total - self.done, 0) * self.elapsed_sec() / moved


def duration(seconds: float) -> str:
    """Returns a number of seconds as hours:minutes:seconds."""
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _shown(number: float | None) -> float | None:
    """Returns a number as a bar shows it: with one decimal if it is not whole."""
    return round(number, 1) if isinstance(number, float) else number
