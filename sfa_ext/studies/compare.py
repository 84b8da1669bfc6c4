"""`sfa compare`: runs what a study still needs, records every run, and writes the table of what is there."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from sfa_ext import __version__
from sfa_ext.report import comparison
from sfa_ext.report.comparison import Comparison, Record
from sfa_ext.studies import records, running
from sfa_ext.studies.study import Run, Study, best_rates, figures, finals, rates_of, trials

RECORDS = "records.jsonl"
LOG = "fit.log"


def compare(
    study: Study, folder: Path, report: Path | None = None, time_limit: float | None = None, quiet: bool = False
) -> Path:
    """Runs what the records in `folder` lack, trials first, then seed by seed, and writes the report; returns its path.

    Each run is a process of its own in a folder of its own; one that was stopped goes on from its checkpoint.

    report: the report's file, beside which its pictures and its CSV go; None for report.md in the folder.
    time_limit: seconds after which no run is started.

    Raises ValueError, after all others were run and the report was written, where runs failed, naming them; at once
    where another comparison is at work in the folder.
    """
    _check_report(report)
    deadline = None if time_limit is None else time.monotonic() + time_limit
    with running.lock(folder) as claim, running.terminated_as_interrupted():
        work = _Work(study, folder, claim, deadline, quiet)
        work.do("trial")
        work.planned["final"] = list(finals(study, best_rates(study, work.records)))
        work.do("final")
    path = write_report(study, folder, report)
    if work.failed:
        raise ValueError(
            f"{len(work.failed)} runs failed: {'; '.join(f'{n}: {p}' for n, p in work.failed.items())}. The others "
            f"are in {path}; the same command tries these again"
        )
    return path


class _Work:
    """What is planned, what is recorded, what failed, and how long the rest takes."""

    def __init__(self, study: Study, folder: Path, claim: int, deadline: float | None, quiet: bool):
        self.study, self.folder, self.claim, self.deadline, self.quiet = study, folder, claim, deadline, quiet
        self.records = records.read(folder / RECORDS)
        # Until the trials are done, any rate stands for the one that they will find: the steps are the same.
        self.planned = {"trial": list(trials(study)), "final": list(finals(study, _first_rates(study)))}
        self.failed: dict[str, str] = {}

    def do(self, stage: str) -> None:
        """Runs what is planned of a stage and not recorded yet."""
        runs = {run.name: run for run in self.planned[stage]}
        missing = {name: run for name, run in runs.items() if run.fingerprint not in self.records}
        if missing:
            self._say(f"{len(missing)} of {len(runs)} {stage} runs to do, {self.study.jobs} at a time")
        jobs = [
            running.Job(name, command(self.study, run, self.folder), self.folder / name / LOG)
            for name, run in missing.items()
        ]
        ended = lambda job, status, seconds: self._ended(missing[job.name], status, seconds)  # noqa: E731
        running.run_all(jobs, self.study.jobs, self.claim, ended, self.deadline)

    def _ended(self, run: Run, status: int, seconds: float) -> None:
        problem = _problem(status, self.folder / run.name / LOG)
        if problem is None:
            try:
                record = self._record(run, seconds)
            except (ValueError, FileNotFoundError) as error:
                problem = str(error)
        if problem is None:
            self._say(f"{self._progress()} {_described(self.study, record)}  ({_time(seconds)}{self._left()})")
        else:
            self.failed[run.name] = problem
            self._say(f"{self._progress()} {run.name} failed: {problem}")

    def _record(self, run: Run, seconds: float) -> Record:
        found = comparison.facts(self.folder / run.name)
        identity = {"arm": run.arm, "stage": run.stage, "rate": run.rate, "fingerprint": run.fingerprint}
        record = Record(**identity, **found, wall=seconds, version=__version__)
        records.append(self.folder / RECORDS, record)
        self.records[run.fingerprint] = record
        return record

    def _progress(self) -> str:
        runs = [run for planned in self.planned.values() for run in planned]
        return f"[{sum(run.fingerprint in self.records for run in runs)}/{len(runs)}]"

    def _left(self) -> str:
        """How long the rest takes, by the steps it has and what a step took in runs of the same arm."""
        pace: dict[str, list[float]] = {}
        for record in self.records.values():
            pace.setdefault(record.arm, []).append(record.wall / record.steps)
        typical = [statistics.mean([p for found in pace.values() for p in found])]
        left = [
            run.recipe.optim.steps * statistics.mean(pace.get(run.arm, typical))
            for planned in self.planned.values()
            for run in planned
            if run.fingerprint not in self.records and run.name not in self.failed
        ]
        return f", about {_time(sum(left) / self.study.jobs)} left" if left else ""

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)


def command(study: Study, run: Run, folder: Path) -> tuple[str, ...]:
    """What makes a run, in a folder of its own inside `folder`."""
    fit = (sys.executable, "-m", "sfa_ext.cli", "fit", study.recipe, *run.overrides)
    return (*fit, "--quiet", "--out", str(folder / run.name))


def write_report(study: Study, folder: Path, report: Path | None = None) -> Path:
    """Writes the report of what is recorded in `folder`, with pictures and CSV beside it; returns its path."""
    _check_report(report)
    found = records.read(folder / RECORDS)
    rates = best_rates(study, found)
    tried, wanted = list(trials(study)), list(finals(study, rates))
    # A record may come from another study, where the same run had another name.
    used = [
        dataclasses.replace(found[run.fingerprint], arm=run.arm, stage=run.stage)
        for run in [*tried, *wanted]
        if run.fingerprint in found
    ]
    arms = {name: [r for r in used if r.arm == name and r.stage == "final"] for name in study.arms}
    planned = len(tried) + sum(1 for _ in finals(study, _first_rates(study)))
    intro = [study.text.strip(), _setting(study), _tuning(study, rates)]
    if missing := planned - len(used):
        intro.insert(0, f"**Not finished: {missing} of {planned} runs are missing.**")
    compared = Comparison(figures(study), arms, study.baseline)
    shown = [record for record in used if record.stage == "trial"]
    return comparison.write(report or folder / "report.md", study.title, list(filter(None, intro)), compared, shown)


def _check_report(report: Path | None) -> None:
    if report is not None and report.suffix != ".md":
        raise ValueError(f"report: must be a .md file (its CSV and its pictures go beside it), got {report}")


def _first_rates(study: Study) -> dict[str, float]:
    return {arm: rates_of(study, arm)[0] for arm in study.arms}


def _setting(study: Study) -> str:
    run = next(finals(study, _first_rates(study))).recipe
    split = "val" if run.data.test is None else "test"
    start = "with pretrained weights" if run.backbone.pretrained or run.backbone.checkpoint else "from scratch"
    shared = f" with `{' '.join(study.overrides)}`" if study.overrides else ""
    own = "; ".join(f"{name}: `{' '.join(arm.overrides)}`" for name, arm in study.arms.items() if arm.overrides)
    return (
        f"{run.backbone.name} {start}, data {run.data.name}, head {run.task.name}, {run.optim.steps} steps of "
        f"{run.optim.batch * run.optim.accumulate} images of {run.data.crop}x{run.data.crop}, figures of the {split} "
        f"split. Recipe {study.recipe}{shared}, and for {own}. Written by `{study.command}`."
    )


def _tuning(study: Study, rates: Mapping[str, float]) -> str:
    if len(study.rates) == 1:
        return "Learning rates were given, none was tuned: " + _listed(study, rates) + "."
    own = [arm for arm in rates if study.arms[arm].rate_of is None]
    at_edge = [arm for arm in own if rates[arm] in (min(rates_of(study, arm)), max(rates_of(study, arm)))]
    edge = f" At the edge of what was tried: {', '.join(at_edge)}." if at_edge else ""
    return (
        f"Learning rates were chosen on the validation split, by {len(study.rates)} runs of {study.trial_steps} steps "
        f"an arm with a seed that the table does not use: {_listed(study, rates)}.{edge}"
    )


def _listed(study: Study, rates: Mapping[str, float]) -> str:
    """The rate of each arm, and what it was chosen among; arms that take another's rate behind that one."""
    parts = []
    for arm in (name for name in rates if study.arms[name].rate_of is None):
        tried = f" (of {', '.join(f'{rate:g}' for rate in rates_of(study, arm))})" if len(study.rates) > 1 else ""
        takers = [name for name, other in study.arms.items() if other.rate_of == arm]
        parts.append(f"{arm} {rates[arm]:g}{tried}" + (f", which {', '.join(takers)} take too" if takers else ""))
    return "; ".join(parts)


def _described(study: Study, record: Record) -> str:
    headline = figures(study)[0]
    value = record.figure(headline.name)
    value = f"{headline.title} {'missing' if value is None else headline.text(value)}"
    stage = "trial " if record.stage == "trial" else ""
    return f"{stage}{record.arm}, rate {record.rate:g}, seed {record.seed}: {value}"


def _problem(status: int, log: Path) -> str | None:
    """What a run that ended with `status` died of, in its own last words; None where it did not."""
    if status == 0:
        return None
    lines = _last_lines(log)
    said = next((line for line in reversed(lines) if line.startswith("sfa: error: ")), lines[-1] if lines else "")
    how = f"killed by signal {-status}" if status < 0 else said.removeprefix("sfa: error: ") or f"exit status {status}"
    return f"{how} (see {log})"


def _last_lines(log: Path) -> list[str]:
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return [line for line in text.splitlines() if line.strip()][-20:]


def _time(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
