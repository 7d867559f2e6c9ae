"""Tests of how the processes of a run join: which cluster is looked for, how long they wait, and what they say of it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import pytest

from tsp_jax.training import processes

ROOT = Path(__file__).parents[1]

ALONE = "to start alone, pass --num_processes 1"
# The start of `tsp_jax.train`, in a process of its own: its arguments are those of `start_processes`.
JOIN = """
import argparse, sys
from tsp_jax.system import cli
from tsp_jax.training import interruption, processes

def work(options):
    with interruption.explained(stop):
        host, count, number, seconds = (None if word == "-" else word for word in sys.argv[1:])
        count, number = (None if word is None else int(word) for word in (count, number))
        processes.start_processes(host, count, number, timeout_sec=int(seconds))
        print("processes:", __import__("jax").process_count())

with interruption.Interruption() as stop:
    sys.exit(cli.run(work, argparse.Namespace(), after_error=processes.leave))
"""
SLURM = {  # what srun sets for the first of two tasks
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    environment = {**inherited, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **variables}
    command = [sys.executable, "-c", JOIN, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_address() -> str:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return f"localhost:{found.getsockname()[1]}"


def test_process_that_waits_in_vain_says_so_at_once_and_gives_up_without_a_crash() -> None:
    first, other = free_address(), free_address()
    began = time.monotonic()
    waiting = {  # by who waits, in parallel
        "process 0 of 2 (by SLURM's variables SLURM_PROCID and SLURM_NTASKS)": start("-", "-", "-", "3", **SLURM),
        f"process 0 of 3 at {first}": start(first, "3", "0", "9"),
        f"process 1 of 3 at {first}": start(first, "3", "1", "4"),  # ends before the first, which would end it by a crash
        f"process 1 of 2 at {other}": start(other, "2", "1", "3"),  # whose first process never comes
    }
    for who, process in waiting.items():
        printed, message = process.communicate(timeout=60)
        assert process.returncode == 1 and printed == "", message
        notice, error = message.splitlines()
        assert notice.startswith(f"{who} waits for the others, for at most ") and notice.endswith(ALONE)
        assert error.startswith(f"error: {who} has waited ") and "--join_timeout_sec" in error and error.endswith(ALONE)
    assert time.monotonic() - began < 40


def test_process_that_waits_heeds_sigterm() -> None:
    with start("-", "-", "-", "50", **SLURM) as process:
        assert process.stderr is not None
        assert "waits for the others" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(20) == 130 and time.monotonic() - began < 5
        assert process.stderr.read().startswith("interrupted; ")


def test_process_starts_alone_where_it_is_asked_to_or_is_the_only_task_of_its_step() -> None:
    alone = [start("-", "1", "-", "50", **SLURM), start("-", "-", "-", "50", **SLURM, SLURM_STEP_NUM_TASKS="1")]
    for process in alone:
        printed, message = process.communicate(timeout=60)
        assert process.returncode == 0 and printed == "processes: 1\n" and message == "", message


@pytest.fixture
def initialized(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The calls that reach JAX; one without arguments finds no cluster."""
    calls = []

    def initialize(*arguments: Any, heartbeat_timeout_seconds: int, initialization_timeout: int) -> None:
        calls.append(arguments)
        if not arguments:
            raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    return calls


def test_port_in_use_is_reported(initialized: list[tuple[Any, ...]]) -> None:
    with socket.create_server(("", 0)) as busy:
        address = f"localhost:{busy.getsockname()[1]}"
        with pytest.raises(processes.JoinError, match=rf"process 0 can't use the port of {address} \(.*; name another"):
            processes.start_processes(address, 2, 0)
        assert initialized == []  # where JAX may crash
    processes.start_processes(address, 2, 0)
    assert initialized == [(address, 2, 0)]


def test_process_outside_a_cluster_stays_alone(initialized: list[tuple[Any, ...]]) -> None:
    processes.start_processes()
    assert initialized == [()]


def test_single_slurm_task_keeps_all_its_devices(initialized: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    processes.start_processes()
    assert initialized == []


def test_given_addresses_reach_jax(initialized: list[tuple[Any, ...]]) -> None:
    processes.start_processes("localhost:1234", 2, 0)
    assert initialized == [("localhost:1234", 2, 0)]


def test_other_faults_of_the_start_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def initialize(heartbeat_timeout_seconds: int, initialization_timeout: int) -> None:
        raise ValueError("no such host")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    with pytest.raises(ValueError, match="no such host"):
        processes.start_processes()
    monkeypatch.setenv("SLURM_NTASKS", "two")
    with pytest.raises(ValueError, match=r"SLURM_NTASKS='two' is no whole number.*pass --num_processes 1"):
        processes.start_processes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost", 2, 0), "expected HOST:PORT as the coordinator, such as host0:1234; found 'localhost'"),
        (("localhost:1234", 2, 2), "of 2 processes, process_id is 0 to 1; found 2"),
    ],
)
def test_addresses_that_can_not_be_are_refused(given: tuple[str, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processes.start_processes(*given)


def test_half_an_address_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['num_processes', 'process_id'\] not given"):
        processes.start_processes("localhost:1234")


def test_jax_says_no_cluster_in_the_words_that_are_waited_for() -> None:
    script = "from tsp_jax.training import processes; import jax; processes.start_processes(); assert jax.process_count() == 1"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
