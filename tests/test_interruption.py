"""Tests of how a run is asked to stop. Several processes are tested with training."""

import os
import signal

import pytest

from tsp_jax.training import interruption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_before_the_run_is_patient_ends_it(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), interruption.Interruption():
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_patient_run_is_told_when_it_asks_and_ended_by_a_second_signal(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruption.Interruption() as stop:
        stop.be_patient()
        assert not stop.due()
        os.kill(os.getpid(), number)
        assert stop.due() and stop.due()
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
