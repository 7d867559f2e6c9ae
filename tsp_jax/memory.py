"""Keeping freed memory in the process, where giving it back to the system and taking it anew costs more than the work."""

import ctypes
import functools
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


@functools.cache
def keep_freed() -> None:
    """Has glibc keep all freed memory for the next call, in one heap; without glibc it does nothing.

    The system clears each page that it gives. A CPU's program takes anew, at each call, what its activations need: without
    this, a sixth of a step of training and a quarter of a forward pass goes there. To be called before any other use of JAX,
    whose threads else have heaps of their own by then.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
        mallopt(option, value)


def give_back() -> None:
    """Gives what is free now back to the system, once: what a compiler took is not wanted again. With glibc alone."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
