"""A study: arms that differ in a few overrides of one recipe, run with paired seeds, and the runs that it needs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sfa_ext import __version__, tasks
from sfa_ext.backbones import BACKBONE_CLASSES, embedded_checkpoint
from sfa_ext.report.comparison import Record
from sfa_ext.tasks.figures import Figure
from sfa_ext.training import recipe, typed
from sfa_ext.training.recipe import WITHOUT_EFFECT, Recipe

_FOLDER = "studies"


@dataclass
class Arm:
    """One thing that is compared: a method, or a variant of one."""

    overrides: list[str] = field(default_factory=list)
    """overrides of the study's recipe, "key.path=value" """
    trial: list[str] = field(default_factory=list)
    """further overrides of this arm's learning-rate trials, which are shorter"""
    rates: list[float] | None = None
    """learning rates to try, as many as the study's; null: those of the study"""
    rate_key: str | None = None
    """the recipe's key that takes the rate; null: that of the study"""
    rate_of: str | None = None
    """take the rate that another arm found, instead of trials"""
    seeds: list[int] | None = None
    """some of the study's seeds alone; null: all of them"""


@dataclass
class Study:
    """What is compared, on what, and how."""

    title: str
    """heading of the report"""
    recipe: str
    """the recipe that every run starts from: a file, or one of the package"""
    arms: dict[str, Arm]
    """what is compared, by name, in the order of the table"""
    baseline: str
    """the arm that the others are compared with, seed by seed"""
    text: str = ""
    """a paragraph for the report: what a reader must know"""
    overrides: list[str] = field(default_factory=list)
    """overrides of the recipe for every arm"""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """seeds of the table; one seed means the same head, images and augmentation in every arm"""
    rates: list[float] = field(default_factory=lambda: [1e-3])
    """learning rates to try on the validation split; a single one is taken as it is"""
    rate_key: str = "optim.lr"
    """the recipe's key that takes the rate"""
    trial_steps: int = 100
    """optimizer steps of a learning-rate trial"""
    trial_seed: int = 1000
    """seed of the trials, none of the table's"""
    metric: str | None = None
    """the figure that is compared; null: the headline of the recipe's task"""
    jobs: int = 2
    """runs at a time, one thread each"""

    def __post_init__(self) -> None:
        self.command = ""  # that runs it
        self._recipes: dict[tuple[str, ...], Recipe] = {}  # by overrides: reading one takes long beside all else
        _distinct("seeds", self.seeds)
        for name in (self.baseline, *(arm.rate_of for arm in self.arms.values() if arm.rate_of)):
            if name not in self.arms:
                raise ValueError(f"baseline and rate_of must name an arm: {', '.join(self.arms)}; got {name!r}")
        for name, arm in self.arms.items():
            self._check_arm(name, arm)
        if self.trial_seed in self.seeds:
            raise ValueError(f"trial_seed: {self.trial_seed} is one of the seeds of the table, take another")
        if self.jobs < 1 or self.trial_steps < 1:
            raise ValueError(f"jobs and trial_steps: must be 1 or more, got {self.jobs} and {self.trial_steps}")

    def _check_arm(self, name: str, arm: Arm) -> None:
        if arm.rate_of and (arm.rates or self.arms[arm.rate_of].rate_of):
            raise ValueError(f"arm {name!r}: rate_of takes the rate of an arm with trials of its own, and no rates")
        rates = self.rates if arm.rates is None else arm.rates
        _distinct(f"arm {name!r}: rates", rates)
        if len(rates) != len(self.rates):
            raise ValueError(f"arm {name!r}: tries {len(rates)} rates, the study {len(self.rates)}; give as many")
        if not set(self.seeds).issuperset(arm.seeds or ()):
            raise ValueError(f"arm {name!r}: seeds {arm.seeds} must be some of the study's, {self.seeds}")


@dataclass(frozen=True)
class Run:
    """One run of a study: what `sfa fit` is given, and the fingerprint of all that decides its figures."""

    arm: str
    stage: Literal["trial", "final"]
    seed: int
    rate: float
    overrides: tuple[str, ...]
    recipe: Recipe
    fingerprint: str

    @property
    def name(self) -> str:
        """Name of its folder: another for each recipe, since a folder takes runs of one recipe alone."""
        arm = re.sub(r"[^\w.-]+", "-", self.arm)
        return f"{arm}-lr{self.rate}-seed{self.seed}-{self.fingerprint[:8]}"


def names() -> list[str]:
    """Names of the studies in the package."""
    return typed.names(_FOLDER)


def load(source: str | Path, overrides: Sequence[str] = ()) -> Study:
    """The study in file `source`, or the package's study of that name, with `key=value` overrides.

    Raises FileNotFoundError for an unknown study (with the nearest known); ValueError for an unknown key, a value of
    the wrong type or a study that makes no sense, and for a recipe that cannot be read with an arm's overrides.
    """
    path = typed.find(source, _FOLDER, "study")
    study = typed.parse(Study, typed.read(path, _FOLDER, "study"), typed.arguments(overrides), f"study {path}")
    study.command = shlex.join(["sfa", "compare", str(source), *overrides])
    figures(study)
    runs = [*trials(study), *finals(study, {arm: rates_of(study, arm)[0] for arm in study.arms})]
    seen: dict[str, Run] = {}
    for run in runs:
        if (other := seen.setdefault(run.fingerprint, run)) is not run:
            raise ValueError(f"study {path}: arms {other.arm!r} and {run.arm!r} give the same recipe")
    return study


def figures(study: Study) -> list[Figure]:
    """The figures of the study's task, the one that is compared first. Raises ValueError for a metric that is none."""
    known = tasks.figures(recipe.load(study.recipe, study.overrides).task.name)
    chosen = [f for f in known if study.metric in (None, f.name)][:1]
    if not chosen:
        raise ValueError(f"metric: the task has no {study.metric!r}, but {', '.join(f.name for f in known)}")
    return [*chosen, *(f for f in known if f not in chosen)]


def rates_of(study: Study, arm: str) -> list[float]:
    """The rates that an arm may end up with."""
    own = study.arms[study.arms[arm].rate_of or arm].rates
    return study.rates if own is None else own


def trials(study: Study) -> Iterator[Run]:
    """The learning-rate trials: shorter, with a seed of their own, blind to the test split. None for a single rate."""
    short = [f"optim.steps={study.trial_steps}", "data.test=null", "eval_every=0", "save_every=0"]
    for place in range(len(study.rates) if len(study.rates) > 1 else 0):
        for name, arm in study.arms.items():
            if arm.rate_of is None:
                rate = rates_of(study, name)[place]
                yield _run(study, name, "trial", study.trial_seed, rate, [*short, *arm.trial])


def finals(study: Study, rates: Mapping[str, float]) -> Iterator[Run]:
    """The runs of the table, seed by seed over all arms that `rates` gives one."""
    for seed in study.seeds:
        for name, arm in study.arms.items():
            if name in rates and (arm.seeds is None or seed in arm.seeds):
                yield _run(study, name, "final", seed, rates[name])


def best_rates(study: Study, records: Mapping[str, Record]) -> dict[str, float]:
    """The rate of each arm whose trials are all done: that of the best validation figure, the first of equals."""
    headline = figures(study)[0]
    worst = -math.inf if headline.higher else math.inf
    found: dict[str, dict[float, float]] = {}
    for run in trials(study):
        if run.fingerprint in records:
            value = records[run.fingerprint].figures["val"].get(headline.name, math.nan)
            found.setdefault(run.arm, {})[run.rate] = worst if math.isnan(value) else value
    done = {arm: headline.best(tried) for arm, tried in found.items() if len(tried) == len(study.rates)}
    if len(study.rates) == 1:
        done = {name: rates_of(study, name)[0] for name in study.arms}
    sources = {name: arm.rate_of or name for name, arm in study.arms.items()}
    return {name: done[source] for name, source in sources.items() if source in done}


def _run(study: Study, name: str, stage: str, seed: int, rate: float, extra: Sequence[str] = ()) -> Run:
    arm = study.arms[name]
    key = arm.rate_key or study.rate_key
    own = (*study.overrides, *arm.overrides, *extra, "threads=1")
    if own not in study._recipes:
        try:
            study._recipes[own] = recipe.load(study.recipe, own)
        except ValueError as error:
            raise ValueError(f"arm {name!r}: {error}") from error
    resolved = _with(_with(study._recipes[own], key, rate), "seed", seed)
    return Run(name, stage, seed, rate, (*own, f"{key}={rate}", f"seed={seed}"), resolved, fingerprint(resolved))


def _with(part: Any, key: str, value: Any) -> Any:
    """A copy of a recipe, or a part of one, with the number at `key` replaced."""
    name, _, rest = key.partition(".")
    if not dataclasses.is_dataclass(part) or not hasattr(part, name):
        raise ValueError(f"rate_key: a recipe has no such number ({key!r}); give optim.lr or optim.head_lr")
    return dataclasses.replace(part, **{name: _with(getattr(part, name), rest, value) if rest else value})


def fingerprint(chosen: Recipe) -> str:
    """sha256 over all that decides what a run of the recipe gives: its settings, initial weights, and our version.

    Settings that are at their default count as unsaid: defaults belong to the version, and a key that a later one adds
    leaves records of former runs valid.
    """
    said = [__version__, _said(chosen), _weights(chosen)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _said(part: Any, where: str = "") -> dict[str, Any]:
    found = {}
    for field_ in dataclasses.fields(part):
        value, key = getattr(part, field_.name), f"{where}{field_.name}"
        if key not in WITHOUT_EFFECT and value != _default(field_):
            found[field_.name] = _said(value, f"{key}.") if dataclasses.is_dataclass(value) else value
    return found


def _default(of: dataclasses.Field) -> Any:
    return of.default if of.default_factory is dataclasses.MISSING else of.default_factory()


def _weights(chosen: Recipe) -> str | None:
    """sha256 of the file that the backbone's weights come from; None where they are drawn, or timm's."""
    part = chosen.backbone
    file = part.checkpoint
    if file is None and part.pretrained and part.name in BACKBONE_CLASSES:
        file = embedded_checkpoint(part.name)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file is not None else None


def _distinct(what: str, values: Sequence[float]) -> None:
    if not values or len(set(values)) != len(values):
        raise ValueError(f"{what}: must be one or more different numbers, got {list(values)}")
