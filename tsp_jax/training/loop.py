"""The loop of training: steps, log lines, checkpoints, evaluations, and a stop that loses nothing, for any task."""

import contextlib
import math
import time
from pathlib import Path

import jax
from jax.sharding import Mesh

from tsp_jax import config
from tsp_jax.system import malloc
from tsp_jax.training import feed, interruption, processes, run_checkpoints, run_folder, run_log, sums, task, train_step


class Loop:
    """Runs a task from its first step, or from the one after the last checkpoint, to the end."""

    def __init__(
        self,
        learned: task.Task,
        settings: config.Run,
        workdir: Path,
        stop: interruption.Interruption,
        *,
        last: run_checkpoints.Keeper,
        best: run_checkpoints.Keeper,
        state: train_step.TrainState,
        tally: sums.Tally,
    ):
        """Takes up the run.

        Args:
          learned: the task.
          settings: how often the run logs and saves.
          workdir: the run's folder.
          stop: the object that says after every step whether the run has to end.
          last: the folder of the last state.
          best: the folder of the best state.
          state: the state to go on from, on the devices.
          tally: the sums since the last line of the log.
        """
        self._task, self._settings, self._workdir, self._stop = learned, settings, workdir, stop
        self._last, self._best, self._state, self._tally = last, best, state, tally
        self._step, self._total = int(state.step), total_steps(learned)
        self._best_value = None if best.latest() is None else float(best.metadata()[learned.best_metric])
        self._log: run_log.Log | None = None
        self._unread: list[sums.Unread] = []

    def run(self, mesh: Mesh) -> bool:
        """Trains to the last epoch. Returns False if the run was asked to stop first; then its state is saved.

        Args:
          mesh: the devices.

        Raises:
          NotFiniteError: a step's loss or gradient is not finite.
          UserError: a record is damaged.
          OSError: a file can't be written.
        """
        with contextlib.ExitStack() as stack:
            if processes.is_first():
                log = run_log.Log(
                    self._workdir,
                    result=self._task.result,
                    unit=self._task.unit,
                    step=self._step,
                    total_steps=self._total,
                )
                self._log = stack.enter_context(contextlib.closing(log))
            batches = stack.enter_context(contextlib.closing(feed.Feed(self._task.batches(self._step), mesh)))
            self._stop.be_patient()
            finished = self._finish_epoch() and self._steps(batches, waits_for_steps(mesh))
            if finished:
                best, end = self._workdir / "best", self._workdir / "last"
                self._say(f"done: {self._total} steps; the best weights are in {best}, the last in {end}")
            else:
                self._say(
                    f"stopped after step {self._step} of {self._total}, and saved; the same command again goes on from there"
                )
            return finished

    def _finish_epoch(self) -> bool:
        """Evaluates the epoch that ends here, if a run that was stopped has not. Returns False if asked to stop."""
        epoch_ends = self._step > 0 and self._step % self._task.steps_per_epoch == 0
        unfinished = epoch_ends and not (self._log is not None and self._log.evaluated(self._step))
        return self._end_epoch() if processes.agreed(unfinished) else True

    def _steps(self, batches: feed.Feed, wait: bool) -> bool:
        """Runs the steps. Returns False if asked to stop."""
        speed, giving_back = _Speed(self._step), malloc.GivingBack(malloc.SETTLING_STEPS)
        while self._step < self._total:
            batch, describe = batches.take()
            self._state, seen = self._task.step(self._state, batch)
            self._step += 1
            self._unread.append(sums.Unread(self._step, seen, describe))
            batches.fetch()  # the next batch, while the step runs
            if wait:
                jax.block_until_ready(seen.loss)
            giving_back.after_call()
            if self._log is not None:
                self._log.advance(self._step)
            epoch_ends, stopping = self._step % self._task.steps_per_epoch == 0, self._stop.due()
            logging = epoch_ends or self._step % self._settings.log_every_steps == 0
            saving = epoch_ends or stopping or _is_multiple(self._step, self._settings.checkpoint_every_steps)
            if logging or saving:
                self._tally, self._unread = self._tally.with_steps(self._unread), []
            if logging:
                self._write_line(speed, batches.take_waited_sec())
            if saving:
                self._save()
            if stopping or (epoch_ends and not self._end_epoch()):
                return False
            if epoch_ends:
                batches.take_waited_sec()
                speed = _Speed(self._step)
        return True

    def _write_line(self, speed: "_Speed", waited_sec: float) -> None:
        """Writes what the steps since the last line saw, and begins new sums."""
        measured = speed.lap(self._step, self._task.rows_per_step, waited_sec, self._total)
        if self._log is not None:
            rates = {f"lr_{group}": rate for group, rate in self._task.learning_rates(self._step - 1).items()}
            values = {**self._task.summarize(self._tally.sums), **self._tally.means(), **rates}
            epoch = (self._step - 1) // self._task.steps_per_epoch
            line = run_log.line(values, split="train", step=self._step, epoch=epoch)
            self._log.train(line, self._task.progress(line), **measured)
        self._tally = sums.zero(self._task.zero_sums())

    def _save(self) -> None:
        """Saves the state, after the lines of the log are on the disk."""
        if self._log is not None:
            self._log.sync()
        self._last.save(self._step, self._state, {"step": self._step, "tally": self._tally.to_json()})

    def _end_epoch(self) -> bool:
        """Evaluates and keeps the weights. Returns False if asked to stop.

        The log's line is written last: if it is there, all of this is done.
        """
        values = self._task.evaluate(self._state, self._stop)
        malloc.give_back()
        if values is None:
            return False
        self._last.wait()
        line = run_log.line(values, split="valid", step=self._step, epoch=self._step // self._task.steps_per_epoch - 1)
        metric = self._task.best_metric
        value = values[metric] if math.isfinite(values[metric]) else 0.0
        is_best = self._best_value is None or value > self._best_value or self._best.latest() == self._step
        if is_best:
            self._best_value = value
            self._best.save(self._step, self._state, {"step": self._step, metric: value})
            self._best.wait()
        if self._log is not None:
            checkpoint = self._task.export(self._state, self._workdir.absolute().name, line)
            run_folder.export(self._workdir, checkpoint, is_best=is_best)
            self._log.valid(line)
            self._log.say(self._task.result(line) + (" (the best so far)" if is_best else ""))
        return True

    def _say(self, text: str) -> None:
        if self._log is not None:
            self._log.say(text)


def total_steps(learned: task.Task) -> int:
    """Returns the number of steps of a whole run."""
    return learned.steps_per_epoch * learned.epochs


def waits_for_steps(mesh: Mesh) -> bool:
    """Returns whether the host waits for each step before it goes on.

    It does so on a CPU, where two steps at once would need the memory of both. On a GPU or TPU the host runs ahead of the
    devices until a log line or a checkpoint is due.
    """
    return mesh.devices.flat[0].platform == "cpu"


class _Speed:
    """Measures the speed of a run from one line of its log to the next."""

    def __init__(self, at: int):
        self._step, self._since = at, time.perf_counter()

    def lap(self, at: int, rows_per_step: int, waited_sec: float, total: int) -> dict[str, float]:
        """Returns the speed since the lap before, as arguments of `Log.train`."""
        now = time.perf_counter()
        steps, seconds = max(at - self._step, 1), max(now - self._since, 1e-9)
        self._step, self._since = at, now
        return {
            "rows_per_sec": steps * rows_per_step / seconds,
            "wait_share": min(waited_sec / seconds, 1.0),
            "seconds_left": (total - at) * seconds / steps,
        }


def _is_multiple(at: int, every: int) -> bool:
    """Returns whether a step is a multiple of a number; False if that number is 0."""
    return every > 0 and at % every == 0
