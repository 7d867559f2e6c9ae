"""Sizes of the blocks in which the CPU kernels work, so that what they read and write stays in the cache."""

import math


def block(sizes: tuple[int, ...], pixels: int, whole: int | None = None) -> tuple[int, ...]:
    """Returns the sizes along `b t h w` of a block: some clips, some frames of one clip, or some rows of one frame.

    Each size divides the array's. A row is never cut, so that a block may have more pixels than the limit.

    Args:
      sizes: sizes of the array along `b t h w`.
      pixels: the largest number of pixels in a block.
      whole: an axis that is not cut either; None if there is none.
    """
    kept = {whole, 3}
    found = list(sizes)
    for axis in {0, 1, 2} - kept:
        inside = math.prod(size for i, size in enumerate(sizes) if i != axis and (i > axis or i in kept))
        found[axis] = largest_divisor(sizes[axis], pixels // inside)
    return tuple(found)


def largest_divisor(n: int, limit: int) -> int:
    """Returns the largest divisor of `n` that is at most `limit`; 1 if the limit is below 1."""
    return max(i for i in range(1, max(1, min(n, limit)) + 1) if n % i == 0)
