"""Carries a plan out: phase after phase, some runs side by side, each a process with one thread.

What has a record is not run again, so a study that was killed is started again with the same
command. SIGTERM and Ctrl-C let the runs at hand write a checkpoint first.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click

from augself_hub.errors import AugSelfError
from research.study.plan import DEVELOPMENT, Plan, Run
from research.study.records import mean_accuracy, read
from training.evaluation.datasets import open_dataset

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
POLL = 0.5  # seconds


@dataclass(frozen=True)
class Places:
    """Where a study's files are.

    Args:
        plan: its TOML. output: folders of the runs. corpus: what research.corpora built.
        records: a JSON file of each run.
    """

    plan: Path
    output: Path
    corpus: Path
    records: Path

    def record(self, run: Run) -> Path:
        return self.records / f"{run.name}.json"

    def development_score(self, run: Run) -> float:
        """What an arm keeps the best of."""
        return mean_accuracy(read(self.record(run)), DEVELOPMENT)


def carry_out_all(plan: Plan, places: Places, jobs: int) -> None:
    """Every phase of the plan.

    Args:
        jobs: how many runs side by side.

    Raises:
        UsageError, AugSelfError: a set that a phase measures is not there; nothing was run.
        AugSelfError: runs failed; the others were made.
    """
    for measure in itertools.chain(*plan.measures.values()):
        for given in measure.places(places.corpus).values():
            if ":" not in given:  # one with a name, whose files no pattern has looked for
                open_dataset(given, places.corpus)
    for phase in plan.phases:
        runs = plan.runs(phase, places.development_score)
        waiting = [run for run in runs if not places.record(run).is_file()]
        click.echo(f"{phase.name}: {len(waiting)} runs to make")
        failed = _carry_out(waiting, places, jobs, plan.threads)
        if failed:
            raise AugSelfError(
                f"{len(failed)} runs failed, the first is {failed[0].name}: read "
                f"{places.output / failed[0].name}.log, then start again"
            )


def _carry_out(waiting: Sequence[Run], places: Places, jobs: int, threads: int) -> list[Run]:
    queue, running, failed = list(waiting), {}, []
    with ExitStack() as stack:
        stack.callback(lambda: _stop(running.values()))
        while queue or running:
            while queue and len(running) < jobs:
                run = queue.pop(0)
                running[run] = _start(run, places, threads)
            time.sleep(POLL)
            for run in [run for run, process in running.items() if process.poll() is not None]:
                done = running.pop(run).returncode == 0 and places.record(run).is_file()
                click.echo(f"{'done' if done else 'FAILED'}  {run.name}")
                failed += [] if done else [run]
    return failed


def _start(run: Run, places: Places, threads: int) -> subprocess.Popen[bytes]:
    """A run in a process of its own session, so that a Ctrl-C reaches it as a SIGTERM from here."""
    places.output.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "research.study", "one", places.plan, run.phase, run.arm]
    words += [str(run.seed), "" if run.rate is None else repr(run.rate)]
    words += [places.output, "--corpus", places.corpus, "--records", places.records]
    with (places.output / f"{run.name}.log").open("ab") as log:
        return subprocess.Popen(
            list(map(str, words)),
            stdout=log,
            stderr=log,
            env={**os.environ, **(dict.fromkeys(THREADS, str(threads)) if threads else {})},
            start_new_session=True,
        )


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()
