"""Tests of the counting of time: nothing is lost or counted twice, and the bound is what was waited for."""

import time

import pytest

from tsp_jax.system import timing


def test_seconds_add_up_to_all_of_a_threads_time() -> None:
    began = time.perf_counter()
    own = timing.Laps()
    for what in (timing.DECODE, timing.CONVERT, timing.DECODE):
        time.sleep(0.01)
        own.end(what)
    assert sum(own.seconds.values()) == pytest.approx(time.perf_counter() - began, abs=2e-3)
    assert own.seconds[timing.DECODE] >= 0.02 > own.seconds[timing.CONVERT] / 2
    assert timing.total([own, own]) == {what: 2 * spent for what, spent in own.seconds.items()}


@pytest.mark.parametrize(
    ("main", "bound"),
    [
        ({timing.WAIT_FOR_CLIPS: 6.0, timing.WAIT_FOR_RESULTS: 3.0, timing.PACK: 1.0}, ("decoding", 0.6)),
        ({timing.WAIT_FOR_CLIPS: 4.0, timing.WAIT_FOR_RESULTS: 3.0, timing.DISPATCH: 3.0}, ("computing", 0.6)),
        ({timing.WAIT_FOR_CLIPS: 2.0, timing.PACK: 3.0, timing.TRANSFER: 5.0}, ("packing and transfer", 0.8)),
    ],
)
def test_a_run_is_bound_by_what_its_main_thread_waits_for(main: dict[str, float], bound: tuple[str, float]) -> None:
    assert timing.bound_by(main) == (bound[0], pytest.approx(bound[1]))
