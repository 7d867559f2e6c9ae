"""When freed memory is kept in the process, because requesting it again is slow, and when it is returned to the system."""

import ctypes
import functools
import platform

SETTLING_STEPS = 10  # After so many steps of training `give_back` is no longer worth its time.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # from glibc's malloc.h


class GivingBack:
    """Returns free memory to the system after each of a program's first calls, and after every so many calls from then on.

    `give_back` explains why. It takes a fifth of a second on a CPU, so it is not done after every call.
    """

    def __init__(self, settling_calls: int, every: int | None = None):
        """Counts from the program's first call.

        Args:
          settling_calls: number of first calls after each of which memory is returned.
          every: memory is also returned after the calls whose number, counted from 0, is a multiple of this; None for never.
        """
        self._settling_calls, self._every, self._calls = settling_calls, every, 0

    def after_call(self) -> None:
        """Returns memory if it is due. Call it once after each call of the program."""
        number = self._calls
        self._calls += 1
        if number < self._settling_calls or (self._every is not None and number % self._every == 0):
            give_back()


@functools.cache
def keep_freed() -> None:
    """Makes glibc keep all freed memory in one heap, for the next call. Does nothing without glibc.

    The system clears each page that it hands out, and a CPU's program requests memory for its activations at each call.
    Without this, a large part of a training step or forward pass is spent on clearing pages. Call it before any other use of
    JAX: its threads would otherwise have heaps of their own.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
        mallopt(option, value)


def give_back() -> None:
    """Returns all memory that is free now to the system. Does nothing without glibc. Call it after a program's first calls.

    What a compiler used is not needed again. And when glibc is asked for an aligned block, it looks for a block with room to
    spare. A freed block has lost that room to the caches of small pieces, so it is passed over until these are full, and each
    call takes new memory for its activations: a training step may then hold more than twice of what it needs.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
