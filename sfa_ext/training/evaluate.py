"""Figures of a model on a data set."""

from __future__ import annotations

from typing import Any

import torch
from tqdm import tqdm

from sfa_ext import data
from sfa_ext.training.model import Model


@torch.no_grad()
def evaluate(
    model: Model, dataset: Any, device: torch.device, batch: int, precision: str = "fp32", quiet: bool = True
) -> dict[str, float]:
    """The task's metrics over the whole of `dataset`, single scale, at the images' own size."""
    metric = model.task.metrics()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    model.train(False)
    batches = data.eval_loader(dataset, batch_size=batch)
    for samples in tqdm(batches, disable=quiet, desc="eval"):
        with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
            prediction = model.predict(samples["image"].to(device))
        metric.update(prediction, samples)
    model.train(True)
    return metric.compute()
