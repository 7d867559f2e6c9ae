"""Tests of what the commands share."""

import argparse
import io
import sys
from collections.abc import Callable

import pytest

from tsp_jax.system import cli


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
