"""Runs the shards of a build: on processes of this machine, or on an Apache Beam runner."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

from data_builders import shards
from tsp_jax.system import progress


def run_on_processes(tasks: Sequence[shards.Shard], workers: int) -> None:
    """Writes the missing shards with several processes on this machine.

    Args:
      tasks: all shards of the build.
      workers: the largest number of processes.

    Raises:
      BuildError: a shard can't be written, or a process died.
    """
    to_do = sorted((shard for shard in tasks if not shard.done()), key=lambda shard: -shard.num_frames)
    # We spawn the processes, because a fork of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(min(workers, len(to_do)) or 1, context, _begin_worker, (stop,))
    try:
        with _progress(tasks) as bar:
            jobs = {pool.submit(_write_unless_stopped, shard): shard for shard in to_do}
            for job in concurrent.futures.as_completed(jobs):
                job.result()
                bar.advance(jobs[job].num_frames)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise shards.BuildError(
            "a worker died (killed, or out of memory); finished shards are kept: run the command again, with fewer --workers "
            "if memory was short"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def run_on_beam(tasks: Sequence[shards.Shard], runner: str, options: Sequence[str]) -> None:
    """Writes the missing shards on an Apache Beam runner. Its workers must see the same folders under the same paths.

    Args:
      tasks: all shards of the build.
      runner: the runner's name, such as DirectRunner.
      options: Beam's own options.

    Raises:
      BuildError: Beam is not installed, or a shard can't be written.
    """
    try:
        import apache_beam as beam  # type: ignore (an extra)
        from apache_beam.options import pipeline_options  # type: ignore
    except ModuleNotFoundError as error:
        raise shards.BuildError("--beam_runner needs Apache Beam: pip install 'tsp_jax[beam]'") from error
    to_do = [shard for shard in tasks if not shard.done()]
    finished = threading.Event()
    with _progress(tasks) as bar:

        def watch() -> None:
            waiting = {shard.note: shard for shard in to_do}
            while waiting and not finished.wait(1):
                for note in [note for note, shard in waiting.items() if shard.done()]:
                    bar.advance(waiting.pop(note).num_frames)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            with beam.Pipeline(runner=runner, options=pipeline_options.PipelineOptions(list(options))) as pipeline:
                _ = pipeline | beam.Create(to_do) | beam.Reshuffle() | "WriteShard" >> beam.Map(shards.write_shard)
        except Exception as error:  # each runner raises errors of its own
            raise shards.BuildError(f"{runner}: {error}") from error
        finally:
            finished.set()
            watcher.join()
    missing = [shard.path.name for shard in to_do if not shard.done()]
    if missing:
        raise shards.BuildError(
            f"{runner} ended, but {len(missing)} shards such as {missing[0]} are not in {to_do[0].path.parent}; its workers "
            "must see --videos and --data_dir under the same paths"
        )


_stop: Any = None  # in a worker process: the event that ends the worker


def _begin_worker(stop: Any) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the parent reacts to Ctrl-C, and then sets the event
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker if its parent is killed. Otherwise it would go on writing next to the next run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _write_unless_stopped(shard: shards.Shard) -> None:
    shards.write_shard(shard, lambda: not _stop.is_set())


def _progress(tasks: Sequence[shards.Shard]) -> progress.Progress:
    """Returns the progress, which counts the frames of all shards, including those that are done."""
    done = sum(shard.num_frames for shard in tasks if shard.done())
    total = sum(shard.num_frames for shard in tasks)
    return progress.Progress("build", total, "frames", done=done)
