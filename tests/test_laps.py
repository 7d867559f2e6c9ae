"""Tests of the counting of time: nothing is lost or counted twice, and the bound is what was waited for."""

import time

import pytest

from tsp_jax import laps


def test_seconds_add_up_to_all_of_a_threads_time() -> None:
    began = time.perf_counter()
    own = laps.Laps()
    for what in (laps.DECODE, laps.CONVERT, laps.DECODE):
        time.sleep(0.01)
        own.end(what)
    assert sum(own.seconds.values()) == pytest.approx(time.perf_counter() - began, abs=2e-3)
    assert own.seconds[laps.DECODE] >= 0.02 > own.seconds[laps.CONVERT] / 2
    assert laps.total([own, own]) == {what: 2 * spent for what, spent in own.seconds.items()}


@pytest.mark.parametrize(
    ("main", "bound"),
    [
        ({laps.WAIT_FOR_CLIPS: 6.0, laps.WAIT_FOR_RESULTS: 3.0, laps.PACK: 1.0}, ("decoding", 0.6)),
        ({laps.WAIT_FOR_CLIPS: 4.0, laps.WAIT_FOR_RESULTS: 3.0, laps.DISPATCH: 3.0}, ("computing", 0.6)),
        ({laps.WAIT_FOR_CLIPS: 2.0, laps.PACK: 3.0, laps.TRANSFER: 5.0}, ("packing and transfer", 0.8)),
    ],
)
def test_a_run_is_bound_by_what_its_main_thread_waits_for(main: dict[str, float], bound: tuple[str, float]) -> None:
    assert laps.bound_by(main) == (bound[0], pytest.approx(bound[1]))
