"""Tests that freed memory is kept: a process that needs it a second time does not request it from the system."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from tsp_jax.system import malloc
if sys.argv[1] == "keep":
    malloc.keep_freed()
import jax, jax.numpy as jnp
# Arrays of 36 MB; a page has 4 kB. What is kept settles within some calls.
step = jax.jit(lambda x: (lambda y: (jnp.cumsum(y, axis=0) * jnp.cumsum(y, axis=1)).sum())(x @ x))
x, taken = jnp.ones((3000, 3000)), []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(taken))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it asks glibc")
def test_a_program_on_a_cpu_takes_its_memory_from_the_system_but_at_first() -> None:
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", SCRIPT, mode], check=True, capture_output=True, text=True).stdout)
        for mode in ("keep", "default")
    )
    assert kept < 1000
    assert given_back > 10_000
