"""The fit loop: from a recipe to a run's folder. Killed at any moment, it resumes and ends with the same bits."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from sfa_ext import data, deltas, ranks, tasks
from sfa_ext.data.augment import train_transform
from sfa_ext.data.loading import loader
from sfa_ext.data.unreadable import Unreadable
from sfa_ext.training import memory, schedule, sharding
from sfa_ext.training.checkpoint import Checkpoints
from sfa_ext.training.evaluate import evaluate
from sfa_ext.training.faults import Diverged, Stopped, StopSignal
from sfa_ext.training.folder import CHECKPOINTS, TASK, claim
from sfa_ext.training.log import Log, Rate, Silence
from sfa_ext.training.model import Classes, Model, build, pick_device
from sfa_ext.training.norms import SharedBatchNorm2d
from sfa_ext.training.recipe import Recipe
from sfa_ext.training.run import task_file
from sfa_ext.training.seeds import derive, stream
from sfa_ext.training.snapshot import collect, restore

_AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Fit:
    """One run of a recipe in a folder.

    folder: made if missing. A folder that holds a run of the same recipe is resumed (a finished one is not repeated);
    one of another recipe that has begun is refused with ValueError.

    Where several ranks train together (`distributed.joined`), each builds one of these for the same folder and takes
    its part of every batch; the first one alone writes. `optim.batch` is the whole batch, and the loss curve is that of
    one process, up to rounding, wherever a task's loss and a method's forward pass draw no random numbers: each rank
    draws its own.
    """

    def __init__(self, recipe: Recipe, folder: str | Path, quiet: bool = False):
        self.recipe, self.folder, self.quiet = recipe, Path(folder), quiet
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        self.device = pick_device(recipe.device)
        claim(self.folder, recipe)
        part = recipe.data
        self.train_set = data.build(part.name, **part.settings, **part.train)
        # All of them now: a file that is missing is named before training, not after it.
        splits = {"val": part.val, "test": part.test}
        self.eval_sets = {n: data.build(part.name, **part.settings, **s) for n, s in splits.items() if s is not None}
        self.unreadable = Unreadable(len(self.train_set), part.bad_share)
        self.model: Model = build(recipe, Classes.of(self.train_set), self.device)
        if ranks.size() > 1:
            SharedBatchNorm2d.replace(self.model.task)
        self.shared = recipe.shard and ranks.size() > 1
        if self.shared:
            self._share()
        self._take_selection()
        self._check_earlier()
        optim = recipe.optim
        self.optimizer = self.model.adaptation.optimizer(
            optim.lr,
            head=list(self.model.task.parameters()),
            head_lr=optim.head_lr,
            weight_decay=optim.weight_decay,
            betas=tuple(optim.betas),
            steps=optim.steps,
        )
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        scaler = ShardedGradScaler if ranks.size() > 1 else torch.amp.GradScaler
        self.scaler = scaler(self.device.type, enabled=optim.precision == "fp16")
        self.step, self.skipped, self.seconds = 0, 0, 0.0
        self.stepping, self.peak_memory = 0.0, 0  # seconds of the steps alone; bytes
        self.failing, self.suspects = 0, ""  # steps in a row that were skipped; the images of the last one
        self.results: dict[str, dict[str, float]] = {}
        self.stop, self.asked_to_stop = StopSignal(), False
        self.checkpoints = Checkpoints(self.folder / CHECKPOINTS, recipe.keep, recipe.save_async)
        self._resume()

    def _share(self) -> None:
        if self.recipe.optim.precision == "fp16":
            raise ValueError("shard: a shared backbone is not trained in fp16; set optim.precision to bf16 or fp32")
        sharding.shard(self.model)

    def _take_selection(self) -> None:
        """Makes the selection of another run this run's mask, where the recipe names one (Table 7)."""
        source, adaptation = self.recipe.method.selection, self.model.adaptation
        if source is None:
            return
        if not hasattr(adaptation, "use_selection"):
            raise ValueError(f"method.selection: {self.recipe.method.name!r} selects no weights; take an sfa method")
        selected = deltas.read(task_file(source)).selected
        if not sum(len(s.index) for s in selected.values()):
            raise ValueError(f"method.selection: the task in {source} selects no weights")
        adaptation.use_selection({name: s.index for name, s in selected.items()})

    def _check_earlier(self) -> None:
        """Raises ValueError where the report could not compare this run's selection with one the recipe names."""
        for source in self.recipe.method.earlier:
            chosen, own = deltas.read(task_file(source)).selected, self.model.adaptation.selection
            if own is None:
                raise ValueError(f"method.earlier: {self.recipe.method.name!r} selects no weights; take an sfa method")
            if {n: s.size for n, s in chosen.items()} != {n: w.numel() for n, w in own.weights.items()}:
                raise ValueError(f"method.earlier: the task in {source} does not select from the weights of this run")

    def run(self) -> dict[str, dict[str, float]]:
        """Trains to the end and returns the last figures by split.

        Raises Stopped after SIGTERM or Ctrl-C, Diverged where losses stay not finite, and what reading or writing
        raises; the run then goes on from its last checkpoint.
        """
        recipe, steps = self.recipe, self.recipe.optim.steps
        start = (self.folder, steps, self.step, self._is_past, self.quiet, recipe.method.name)
        log = Log(*start) if ranks.rank() == 0 else Silence()
        with contextlib.closing(log), self.checkpoints, self.stop:
            ranks.progress.step, ranks.progress.watched = self.step, True
            if self.step < steps:
                self._train(log)
            self._finish(log)
        ranks.progress.watched = False
        return self.results

    def _train(self, log: Log) -> None:
        recipe, steps = self.recipe, self.recipe.optim.steps
        self.model.train()
        memory.restart_peak(self.device)
        rate, batches, started = Rate(), self._batches(), time.perf_counter()
        while self.step < steps:
            begun, ranks.progress.step = time.perf_counter(), self.step + 1
            numbers = self._one_step(batches)
            self.stepping += time.perf_counter() - begun
            self.step += 1
            for message in self.unreadable.news():
                log.warn("unreadable", self.step, f"{message}; left out")
            if not math.isfinite(numbers["loss"]):
                log.warn("skipped", self.step, f"the loss is not finite, step {self.step} is skipped; {self.suspects}")
            rate.add(recipe.optim.batch * recipe.optim.accumulate)
            log.show(1, loss=f"{numbers['loss']:.3f}")
            if self.step % 20 == 0 or self.step == steps:
                status = self.model.adaptation.status()
                speed = rate.take()
                log.write("train", self.step, numbers | status)
                shares = {"selected": f"{status['selected_share']:.2%}"} if status else {}
                log.show(**{"img/s": f"{speed:.0f}"}, **shares)
            if recipe.eval_every and self.step % recipe.eval_every == 0 and self.step < steps:
                self._evaluate(log, "val")
            if recipe.save_every and self.step % recipe.save_every == 0 and self.step < steps:
                started = self._count_costs(started)
                self._save()
            if self.asked_to_stop and self.step < steps:
                self._count_costs(started)
                self._save_and_stop()
        self._count_costs(started)
        self._save()

    def _one_step(self, batches: Iterator[dict[str, Any]]) -> dict[str, float]:
        """One optimizer step over `accumulate` micro-batches. Its random numbers depend on the step alone."""
        optim = self.recipe.optim
        factor = schedule.factor(
            self.step,
            steps=optim.steps,
            warmup=optim.warmup,
            schedule=optim.schedule,
            power=optim.power,
            floor=optim.floor,
        )
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor
        self.optimizer.zero_grad()
        sent, total, terms, unreadable, images = ranks.traffic.bytes, 0.0, {}, {}, []
        for micro in range(optim.accumulate):
            batch = next(batches)
            unreadable |= batch.pop("unreadable", {})
            images += batch.get("name", [])
            batch = to_device(batch, self.device)
            loss, terms = self._loss(batch, self.step * optim.accumulate + micro)
            self.scaler.scale(loss / optim.accumulate).backward()
            total += float(loss.detach()) / optim.accumulate
        own = total
        total, terms = self._together(total, terms, unreadable)
        norm = self._clip(optim.clip or math.inf)
        fine = math.isfinite(total) and math.isfinite(norm)
        if fine or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
        else:
            self.optimizer.zero_grad()
        self._count_failure(fine, total, own, images)
        self.scaler.update()
        counts = {"skipped": self.skipped, "unreadable": len(self.unreadable)}
        if ranks.size() > 1:
            counts["sent"] = ranks.traffic.bytes - sent  # bytes of this rank's messages in this step
        numbers = {"loss": total, "grad_norm": norm, "lr": optim.lr * factor} | counts
        return numbers | {f"loss_{n}": t for n, t in terms.items()}

    def _clip(self, largest: float) -> float:
        """Averages gradients over ranks and limits their norm, which it returns."""
        method, head = self.model.adaptation.parameters(), list(self.model.task.parameters())
        if self.shared:  # those of the backbone were averaged as they came
            ranks.mean_gradients(head)
            return sharding.clip_gradients_(method, head, largest)
        ranks.mean_gradients([*method, *head])
        self.scaler.unscale_(self.optimizer)
        return float(torch.nn.utils.clip_grad_norm_([*method, *head], largest))

    def _count_failure(self, fine: bool, loss: float, own: float, images: list[str]) -> None:
        """Counts steps that were skipped; raises Diverged, naming the last images, after too many in a row.

        loss, own: of the whole batch, and of this rank's part of it, `images`.
        """
        self.skipped += not fine
        self.failing = 0 if fine else self.failing + 1
        if fine:
            return
        guilty = images if math.isfinite(loss) or not math.isfinite(own) else []
        names = [n for part in ranks.gathered(json.dumps(guilty).encode()) for n in json.loads(part)]
        self.suspects = f"its images: {', '.join(names) or 'without names'}"
        if self.failing >= self.recipe.optim.stop_after:
            raise Diverged(
                f"step {self.step + 1}: loss ({loss:g}) or gradient were not finite in {self.failing} steps in a row "
                f"(optim.stop_after); lower optim.lr or look at the data, {self.suspects}"
            )

    def _together(self, loss: float, terms: dict[str, Tensor], unreadable: dict[int, str]) -> tuple[float, dict]:
        """Loss and terms of the whole batch; counts the samples that any rank could not read."""
        facts = [loss, len(unreadable), float(self.stop.requested)]
        loss, news, stop, *values = ranks.means([*facts, *(float(t) for t in terms.values())])
        self.asked_to_stop = bool(stop)
        self.unreadable.take({"unreadable": ranks.merged(unreadable) if news else {}})
        return loss, dict(zip(terms, values, strict=True))

    def _loss(self, batch: dict[str, Any], micro_step: int) -> tuple[Tensor, dict[str, Tensor]]:
        seed, precision = self.recipe.seed, self.recipe.optim.precision
        dtype = _AUTOCAST[precision]
        own = lambda name: f"{name}/{ranks.rank()}" if ranks.rank() else name  # noqa: E731
        with torch.autocast(self.device.type, dtype, enabled=precision != "fp32"):
            # Backbone and loss draw from streams of their own: a method that draws more numbers than another in its
            # forward must not change the points that the loss samples.
            with stream(seed, own("forward"), micro_step):
                maps = self.model.backbone(batch["image"])
            with stream(seed, own("loss"), micro_step):
                return self.model.task.loss(maps, batch)

    def _batches(self) -> Iterator[dict[str, Any]]:
        recipe, part = self.recipe, self.recipe.data
        return iter(
            loader(
                self.train_set,
                train_transform(part.crop, part.side, tasks.needs_instances(recipe.task.name), **part.augment),
                batch_size=recipe.optim.batch,
                order_seed=derive(recipe.seed, "order"),
                augment_seed=derive(recipe.seed, "augment"),
                start=self.step * recipe.optim.accumulate,
                workers=part.workers,
                rank=ranks.rank(),
                ranks=ranks.size(),
            )
        )

    def _evaluate(self, log: Log, split: str) -> None:
        dataset, part = self.eval_sets[split], self.recipe.data
        optim, reading = self.recipe.optim, {"bad_share": part.bad_share, "workers": part.workers}
        begin = (self.model, dataset, self.device, optim.batch, optim.precision)
        try:
            figures = evaluate(*begin, warn=log.say, stop=self.stop, **reading)
        except (Stopped, ranks.RankLost):
            if self.stop.requested and not self.shared:  # what ranks share takes all of them to save
                self._save_and_stop(agreed=False)
            raise
        self.results[split] = figures
        log.write(split, self.step, figures)
        headline = tasks.figures(self.recipe.task.name)[0]
        log.show(**{headline.title: headline.text(figures[headline.name])})

    def _finish(self, log: Log) -> None:
        """The last evaluations, the task file and the last checkpoint; nothing where all of it is there."""
        missing = [split for split in self.eval_sets if not self._evaluated(split)]
        for split in missing:
            self._evaluate(log, split)
            self.results[split]["at"] = self.step
        if missing or not ranks.all_true((self.folder / TASK).is_file()):
            self._write_task()
            self._save()

    def _write_task(self) -> None:
        if ranks.rank() == 0 or self.shared:
            task = deltas.collect(self.model.adaptation, self.model.task, **self._task_meta())
        if ranks.rank() == 0:
            deltas.write(self.folder / TASK, task)

    def _evaluated(self, split: str) -> bool:
        return self.results.get(split, {}).get("at") == self.recipe.optim.steps

    def _is_past(self, record: dict[str, Any]) -> bool:
        """Whether a line of the log stays on resume: what it tells of was done when the checkpoint was saved."""
        if record["step"] != self.step or self.step < self.recipe.optim.steps:
            return record["step"] <= self.step
        return record["kind"] not in self.eval_sets or self._evaluated(record["kind"])

    def _task_meta(self) -> dict[str, Any]:
        return {
            "head": {"name": self.recipe.task.name, "settings": self.recipe.as_dict()["task"]["settings"]},
            "crop": self.recipe.data.crop,
            "classes": list(self.model.classes.names),
            "objects": list(self.model.classes.objects),
            "palette": self.model.classes.palette,
            "recipe": self.recipe.as_dict(),
            "results": self.results,
            "seconds": self.seconds,
            "step_seconds": self.stepping / self.recipe.optim.steps,
            "peak_memory": self.peak_memory,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
            "parameters": self._parameters(),
        }

    def _parameters(self) -> dict[str, float]:
        report = self.model.adaptation.report()
        return dataclasses.asdict(report) | {"share": report.share}

    def _save(self, agreed: bool = True) -> None:
        kept = ("step", "skipped", "failing", "seconds", "stepping", "peak_memory", "results")
        facts = {name: getattr(self, name) for name in kept} | {"unreadable": self.unreadable.positions}
        snapshot = collect(self.model, self.optimizer, self.scaler)
        snapshot.facts |= facts
        self.checkpoints.save(snapshot, agreed)

    def _save_and_stop(self, agreed: bool = True) -> None:
        """agreed: all ranks stop here; else each for itself, in an evaluation, where none waits for another."""
        self._save(agreed)
        self.checkpoints.settle(agreed)
        raise Stopped(self.stop, f" at step {self.step}, saved; the same command goes on from there")

    def _resume(self) -> None:
        mesh = next(self.model.backbone.parameters()).device_mesh if self.shared else None
        if (found := self.checkpoints.newest(mesh)) is None:
            return
        restore(found, self.model, self.optimizer, self.scaler)
        meta = found.facts
        self.failing = meta.get("failing", 0)
        self.step, self.skipped, self.seconds = meta["step"], meta["skipped"], meta["seconds"]
        self.stepping, self.peak_memory = meta.get("stepping", 0.0), meta.get("peak_memory", 0)
        self.results = meta["results"]
        self.unreadable = Unreadable(len(self.train_set), self.recipe.data.bad_share, meta.get("unreadable", ()))

    def _count_costs(self, started: float) -> float:
        now = time.perf_counter()
        self.seconds += now - started
        self.peak_memory = max(self.peak_memory, memory.peak(self.device))
        return now


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on `device`."""
    return {n: t.to(device, non_blocking=True) if isinstance(t, Tensor) else t for n, t in batch.items()}
