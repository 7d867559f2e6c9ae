"""Times several programs for the same work in turn, each in a process of its own, and reports a table and a JSON file.

A worker process receives `MODULE:FUNCTION` and a spec. The function makes a `Side` from the spec. The worker saves the side's
outputs and writes a line of JSON about it. For each number that it then reads, it does the work that many times and writes the
seconds that this took.
"""

import argparse
import contextlib
import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tqdm

from tsp_jax.system import cli, files

ROOT = Path(__file__).parents[1]
OURS = "ours"
RIVALS = ("released", "best")
VARIANT_PARTS = ("eager", "channels_last", "folded", "frozen", "compiled", "cast")  # rivals/common.py explains them
# The pause between two turns. OpenMP's threads spin for up to 0.2 s after their work; forbidding that would slow the program.
_PAUSE_SEC = 0.3
_WORK = "import sys; from benchmarks import alternate; alternate.work(*sys.argv[1:])"


class Side(NamedTuple):
    """A program that is ready to be timed.

    Attributes:
      run: a function that does the work the given number of times, and returns when all of it is done.
      outputs: the results of the work, which are compared with those of the other sides.
      about: facts about the program: versions, platform, device, compute precision, chosen variant.
    """

    run: Callable[[int], None]
    outputs: np.ndarray
    about: dict[str, Any]


class BenchmarkError(Exception):
    """A benchmark cannot run, or its sides do not do the same work; the message says why."""


class UnavailableError(Exception):
    """A side cannot run on this machine; the message says why. The other sides are measured without it."""


def add_dtype(parser: argparse.ArgumentParser, dtypes: Iterable[str]) -> None:
    """Adds the flag that chooses among compute precisions."""
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=list(dtypes),
        default=["float32"],
        help="compute precision; `released` always uses float32",
    )


def add_clip(parser: argparse.ArgumentParser) -> None:
    """Adds the flag with the frames, height and width of a clip."""
    parser.add_argument(
        "--clip",
        type=cli.positive_int,
        nargs=3,
        default=[16, 112, 112],
        metavar=("T", "H", "W"),
        help="frames, height and width of a clip",
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that all benchmarks share."""
    add = parser.add_argument
    add(
        "--rival",
        nargs="*",
        choices=RIVALS,
        default=list(RIVALS),
        help="PyTorch's sides to compare with; without a name, only ours runs",
    )
    add(
        "--variants",
        nargs="+",
        type=_variant,
        metavar="NAME",
        help="the variants that `best` chooses from; by default its own list",
    )
    add("--rounds", type=cli.positive_int, default=5, help="number of rounds; each side has one turn in a round")
    add("--seconds", type=float, default=4.0, help="about how long a turn takes; the work is repeated to fill it")
    add("--json", metavar="FILE", help="the file to write all numbers to")


def _variant(text: str) -> str:
    unknown = sorted(set(text.split("+")) - set(VARIANT_PARTS))
    if unknown:
        raise argparse.ArgumentTypeError(f"some of {', '.join(VARIANT_PARTS)}, joined by plus signs; got {text}")
    return text


def sides(function: str, options: argparse.Namespace) -> dict[str, str]:
    """Returns `MODULE:FUNCTION` of each side of a piece of work, ours first.

    Args:
      function: the work's name: a function of `benchmarks.ours`, and a module of `benchmarks.rivals` with such a function.
      options: the shared flags.
    """
    rival = f"benchmarks.rivals.{function}:{function}"
    return {OURS: f"benchmarks.ours:{function}", **dict.fromkeys(options.rival, rival)}


# --------------------------------------------------------------------------------------------------------------- measuring


def measure(
    work: str,
    sides: Mapping[str, str],
    spec: Mapping[str, Any],
    *,
    clips: int,
    tolerance: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Returns the measurements of one piece of work by all sides.

    Args:
      work: the work's name in the table.
      sides: `MODULE:FUNCTION` of each side, ours first.
      spec: the functions' argument, which must fit into JSON; `device`, `side` and `variants` are added.
      clips: the number of clips in the work.
      tolerance: the largest accepted difference of outputs from ours, as a share of our largest value.
      options: the shared flags.

    Raises:
      BenchmarkError: a side fails, or its outputs differ from ours.
    """
    result: dict[str, Any] = {"work": work, "spec": dict(spec), "clips": clips, "sides": {}, "left_out": {}}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers: dict[str, _Worker] = {}
        expected, device = np.zeros(0), "cpu"
        for name, target in sides.items():
            tqdm.tqdm.write(f"{work}: {name} loads", file=sys.stderr)
            given = {**spec, "side": name, "device": device, "variants": options.variants}
            worker = stack.enter_context(_worker(name, target, given, folder / name, shared=len(sides) > 1))
            about = worker.answer()
            if "unavailable" in about:
                result["left_out"][name] = about["unavailable"]
                tqdm.tqdm.write(f"{work}: {name} is left out: {about['unavailable']}", file=sys.stderr)
                continue
            found = np.load(folder / name / "outputs.npy")
            if name == OURS:
                expected, device = found, "cuda" if about["platform"] in ("gpu", "cuda") else about["platform"]
            differs = difference(name, found, expected)
            if not differs <= tolerance:
                raise BenchmarkError(
                    f"{work}: {name} differs from ours by {differs:.1e} of the largest value; at most {tolerance:.1e} "
                    "counts as the same work: nothing was timed"
                )
            workers[name] = worker
            result["sides"][name] = {"about": about, "difference": differs, "laps": []}

        def turn(name: str, count: int) -> dict[str, float]:
            time.sleep(_PAUSE_SEC)
            return {"clips": clips * count, **workers[name].run(count)}

        names = list(workers)
        laps = {name: turn(name, 1) for name in names}  # each side has done the work once before, for its outputs
        counts = {name: max(1, round(options.seconds / lap["seconds"])) for name, lap in laps.items()}
        long = max(counts.values()) == 1
        for name in names if long else ():  # these turns count as a round
            result["sides"][name]["laps"].append(laps[name])
        for number in tqdm.trange(int(long), options.rounds, desc=work, unit="round", disable=None):
            for position in range(len(names)):
                name = names[(number + position) % len(names)]
                result["sides"][name]["laps"].append(turn(name, counts[name]))
    return result


class _Worker:
    """A side's process."""

    def __init__(self, name: str, process: "subprocess.Popen[str]"):
        self.name, self._process = name, process

    def answer(self) -> dict[str, Any]:
        """Returns the process's next line of JSON.

        Raises:
          BenchmarkError: the process ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(f"{self.name} ended with status {self._process.wait()}; its messages are above")
        return json.loads(line)

    def run(self, count: int) -> dict[str, float]:
        """Does the work that many times. Returns the seconds by the clock, and those of processors without child processes.

        Raises:
          BenchmarkError: the process ended.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{count}\n")
            self._process.stdin.flush()
        return self.answer()


@contextlib.contextmanager
def _worker(name: str, target: str, spec: Mapping[str, Any], folder: Path, *, shared: bool) -> Iterator[_Worker]:
    """Starts a side's process, which ends with the block. `shared` says that other sides use the same device."""
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps({**spec, "folder": str(folder)}))
    # Otherwise the first process takes three quarters of a GPU's memory.
    memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"} if shared else {}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _WORK, target, str(folder / "spec.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**memory, **environment()},
    ) as process:
        try:
            yield _Worker(name, process)
        finally:
            process.kill()


def environment() -> dict[str, str]:
    """Returns the environment of a child process, which finds this project and keeps compiled programs."""
    cache = str(Path(tempfile.gettempdir()) / f"tsp_jax_benchmarks_xla_{os.getuid()}")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {"JAX_COMPILATION_CACHE_DIR": cache, **os.environ, "PYTHONPATH": path}


def difference(name: str, found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference as a share of the largest expected value.

    Raises:
      BenchmarkError: the shapes differ.
    """
    if found.shape != expected.shape:
        raise BenchmarkError(f"{name} gives outputs of shape {found.shape}, ours are {expected.shape}")
    return float(np.max(np.abs(found.astype(np.float64) - expected)) / np.max(np.abs(expected)))


# --------------------------------------------------------------------------------------------------------------- reporting


def run(options: argparse.Namespace, work: Callable[[dict[str, Any]], None]) -> int:
    """Runs a benchmark, whose work adds to a result. Returns the exit status.

    The status is 0 if all went well, 1 if the benchmark cannot run or its sides differ, 130 if it was interrupted.
    """
    result = _begin(options)
    try:
        work(result)
    except (BenchmarkError, OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    _finish(result, options)
    return 0


def _begin(options: argparse.Namespace) -> dict[str, Any]:
    """Returns and prints the start of a result: the command, the machine, the time, the commit."""
    result = {
        "command": " ".join(["python", "-m", _module(), *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "load_before": os.getloadavg(),
        "options": {key: value for key, value in vars(options).items() if isinstance(value, str | int | float | list | None)},
        "measured": [],
    }
    print(f"{result['machine']}; Python {result['python']}; commit {result['commit']}; {result['date']}\n", flush=True)
    return result


def add(result: dict[str, Any], measured: dict[str, Any], options: argparse.Namespace) -> None:
    """Adds a piece of work: prints its rows and writes the JSON, so that a killed benchmark keeps what it has measured."""
    lines = table([*result["measured"], measured]).splitlines()
    shown = len(table(result["measured"]).splitlines()) if result["measured"] else 0
    print("\n".join(lines[shown:]), flush=True)
    result["measured"].append(measured)
    _write(result, options)


def _finish(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Prints which sides were left out, versions and loads; writes the JSON if one was asked for."""
    result["load_after"] = os.getloadavg()
    _write(result, options)
    for reason in sorted(
        {f"{name} is left out: {why}" for item in result["measured"] for name, why in item["left_out"].items()}
    ):
        print(f"\n{reason}")
    about = {text for item in result["measured"] for side in item["sides"].values() for text in _versions_of(side["about"])}
    loads = f"load {result['load_before'][0]:.1f} before, {result['load_after'][0]:.1f} after"
    print("\n" + "; ".join([*sorted(about), loads]))


def _write(result: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        with files.replacing(options.json) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")


def _versions_of(about: Mapping[str, Any]) -> list[str]:
    return [about["device"], *(f"{name} {version}" for name, version in about["versions"].items())]


def table(measured: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table with a row for each side of each work: medians and ranges over rounds, ratios taken round by round."""
    rows = ["| work | side | clips a second | range | ours is faster by | differs from ours by |", "| --- " * 6 + "|"]
    for item in measured:
        ours = [lap["clips"] / lap["seconds"] for lap in item["sides"][OURS]["laps"]]
        for name, side in item["sides"].items():
            speeds = [lap["clips"] / lap["seconds"] for lap in side["laps"]]
            ratios = [a / b for a, b in zip(ours, speeds, strict=True)]
            faster = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if name != OURS else ""
            differs = f"{side['difference']:.1e}" if name != OURS else ""
            called = " ".join(filter(None, [name, f"({side['about']['how']})" if side["about"].get("how") else ""]))
            spread = f"{min(speeds):.3g} to {max(speeds):.3g}"
            rows.append(f"| {item['work']} | {called} | {statistics.median(speeds):.3g} | {spread} | {faster} | {differs} |")
    return "\n".join(rows)


def versions(*names: str) -> dict[str, str]:
    """Returns the versions of these packages."""
    return {name: importlib.metadata.version(name) for name in names}


def commit() -> str:
    """Returns the code's commit as git describes it, or "unknown"."""
    with contextlib.suppress(OSError):
        result = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
        return result.stdout.strip() or "unknown"
    return "unknown"


def _module() -> str:
    """Returns the name of the module that runs as the command."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).stem


def _processor() -> str:
    """Returns the processor's name, or its kind if the system does not say the name."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return platform.machine()


# ------------------------------------------------------------------------------------------------------------------ worker


def work(target: str, spec_json: str) -> None:
    """Runs a side's process: loads the side, then does the work as often as each line of the input asks for."""
    # The prints of libraries must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    spec = json.loads(Path(spec_json).read_text())
    module, _, function = target.partition(":")
    try:
        side: Side = getattr(importlib.import_module(module), function)(spec)
    except UnavailableError as error:
        answers.write(json.dumps({"unavailable": str(error)}) + "\n")
        return
    np.save(Path(spec["folder"]) / "outputs.npy", side.outputs)
    answers.write(json.dumps(side.about) + "\n")
    for line in sys.stdin:
        began, began_cpu = time.perf_counter(), time.process_time()
        side.run(int(line))
        lap = {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - began_cpu}
        answers.write(json.dumps(lap) + "\n")
