"""Tests of what the commands share."""

import argparse
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tsp_jax.system import cli, errors

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("read", "least"), [(cli.positive_int, 1), (cli.non_negative_int, 0)])
def test_whole_numbers_from_the_least_up_are_taken(read: Callable[[str], int], least: int):
    assert [read(text) for text in (str(least), "7", " 12 ", str(1 << 70))] == [least, 7, 12, 1 << 70]
    for text in (str(least - 1), "-5", "1.5", "1e3", "many", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=rf"^a whole number from {least} up; got {text}$"):
            read(text)


def test_names_that_are_no_text_are_printed_escaped(monkeypatch: pytest.MonkeyPatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    cli.show_any_name()
    for stream in streams.values():
        print("caf\udce9 走", file=stream, flush=True)
    assert [stream.buffer.getvalue() for stream in streams.values()] == [b"caf\\udce9 \\u8d70\n"] * 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (None, 0, ""),
        (errors.UserError("no such row"), 2, "error: no such row\n"),
        (errors.UnfinishedError("the disk is full"), 1, "error: the disk is full\n"),
        (errors.InterruptedRunError("interrupted; all is kept"), 130, "interrupted; all is kept\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (FileNotFoundError("nowhere"), 2, "error: nowhere\n"),
        (ValueError("too many"), 2, "error: too many\n"),
        (RuntimeError("can't"), 2, "error: can't\n"),
        (ModuleNotFoundError("no torch"), 2, "error: no torch\n"),
    ],
)
def test_an_error_that_a_user_can_mend_is_a_message_and_a_status(
    error: BaseException | None, status: int, message: str, capsys: pytest.CaptureFixture[str]
):
    def work(options: argparse.Namespace) -> None:
        assert options.flag == "given"
        if error is not None:
            raise error

    asked = []
    options = argparse.Namespace(flag="given")
    assert cli.run(work, options) == status
    assert capsys.readouterr().err == message
    assert cli.run(work, options, after_error=lambda found: asked.append(found) or 7) == (7 if status else 0)
    assert asked == ([status] if status else [])
    assert cli.run(work, options, error_status=1) == (1 if status in (1, 2) else status)  # an interruption keeps its own


def test_an_error_of_our_own_keeps_its_traceback():
    def work(options: argparse.Namespace) -> int:
        raise KeyError("defect")

    with pytest.raises(KeyError):
        cli.run(work, argparse.Namespace())


def test_the_status_of_the_work_is_the_commands():
    assert cli.run(lambda options: 3, argparse.Namespace()) == 3


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("no space left"), errors.UnfinishedError("no space left; all is kept")),
        (KeyboardInterrupt(), errors.InterruptedRunError("interrupted; all is kept")),
        (errors.UserError("as it is"), errors.UserError("as it is")),
        (ValueError("as it is"), ValueError("as it is")),
    ],
)
def test_a_resumable_block_says_what_is_kept(error: BaseException, expected: Exception):
    with pytest.raises(type(expected)) as caught, cli.resumable("all is kept"):
        raise error
    assert type(caught.value) is type(expected) and str(caught.value) == str(expected)


def test_sigterm_interrupts_a_terminable_block_and_nothing_after_it():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), cli.terminable():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_gets_a_signal_says_what_is_kept(number: int):
    code = """
import argparse, signal, sys, time
from tsp_jax.system import cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell begins in the background ignores it

def work(options):
    with cli.resumable("finished videos are kept"), cli.terminable():
        print("begun", flush=True)
        time.sleep(60)

sys.exit(cli.run(work, argparse.Namespace()))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.communicate(timeout=20)[1] == "interrupted; finished videos are kept\n"
    assert process.returncode == 130


def test_output_that_nobody_reads_any_more_ends_a_command_quietly():
    code = "from tsp_jax.system import cli; raise SystemExit(cli.run(lambda _: print('x' * 100, flush=True) or {}, None))"
    for work in (code, code.replace(", flush=True", "")):
        reader, writer = os.pipe()
        os.close(reader)
        child = subprocess.run([sys.executable, "-c", work.format(0)], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        assert (child.returncode, child.stderr) == (141, b"")
