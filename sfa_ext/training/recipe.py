"""A recipe: everything that defines a run, as typed settings read from YAML with overrides."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sfa_ext.methods import setting_names
from sfa_ext.training import typed

_FOLDER = "recipes"

WITHOUT_EFFECT = (
    "threads", "device", "data.workers", "data.bad_share", "optim.stop_after",
    "save_every", "save_async", "keep", "timeout", "shard",
)  # fmt: skip
"""Keys of a recipe that do not change what a run of it gives."""


@dataclass
class BackboneRecipe:
    """Which backbone, and where its weights come from."""

    name: str = "swinv2_pico"
    """"swinv2_pico", "vit_pico" or the name of any SwinV2 or plain ViT of timm"""
    pretrained: bool = True
    """timm's weights (needs a network), or the package's own for swinv2_pico; false: random from the recipe's seed"""
    checkpoint: str | None = None
    """a local .safetensors or .pth file instead"""
    drop_path: float = 0.0
    """rate of stochastic depth"""
    accelerate: bool = False
    """SwinV2's blocks by faster operators: the same up to rounding, in the run's training, evaluation and serving"""


@dataclass
class PartRecipe:
    """A named part with its own settings."""

    name: str
    """registered name"""
    settings: dict[str, Any] = field(default_factory=dict)
    """settings of that part; an unknown one is refused"""


@dataclass
class MethodRecipe(PartRecipe):
    """The method, and for SFA a selection from elsewhere."""

    selection: str | None = None
    """a finished run or task file whose selected weights are the fixed mask; their values are trained afresh"""
    earlier: list[str] = field(default_factory=list)
    """finished runs or task files of earlier tasks: the report says how much of their selection comes again"""


@dataclass
class DataRecipe:
    """The data set and how images are augmented."""

    name: str = "scenes"
    """registered data set"""
    settings: dict[str, Any] = field(default_factory=dict)
    """settings shared by all splits, for example root or domain"""
    train: dict[str, Any] = field(default_factory=lambda: {"split": "train"})
    """settings of the training split"""
    val: dict[str, Any] = field(default_factory=lambda: {"split": "val"})
    """settings of the split that is evaluated while training"""
    test: dict[str, Any] | None = None
    """settings of the split that no choice may look at; evaluated once at the end"""
    crop: int = 96
    """side of the training crop in pixels; SwinV2's windows and shifts follow from it"""
    augment: dict[str, Any] = field(default_factory=dict)
    """settings of the training augmentation"""
    side: Literal["shorter", "longer", "none"] = "shorter"
    """which side of an image is as long as the crop at zoom 1; none: images keep their pixels"""
    workers: int = 0
    """loader processes"""
    bad_share: float = 0.01
    """the largest part of a split whose files may be unreadable; those are left out and counted"""


@dataclass
class OptimRecipe:
    """AdamW, its schedule, and precision."""

    steps: int = 1000
    """optimizer steps"""
    batch: int = 16
    """images per micro-batch, over all ranks"""
    accumulate: int = 1
    """micro-batches per optimizer step"""
    lr: float = 1e-3
    """learning rate of what the method trains in the backbone"""
    head_lr: float | None = None
    """learning rate of the head; null: lr"""
    weight_decay: float = 0.05
    """decoupled weight decay of matrices"""
    betas: tuple[float, float] = (0.9, 0.999)
    """decay rates of AdamW's moments"""
    clip: float = 1.0
    """largest gradient norm; 0: no clipping"""
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    """shape of the learning rate after warm-up"""
    power: float = 0.9
    """exponent of the poly schedule"""
    warmup: int = 50
    """steps of linear warm-up"""
    floor: float = 0.01
    """last learning rate as a part of the first"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """autocast dtype; fp16 with a gradient scaler"""
    stop_after: int = 20
    """steps in a row whose loss or gradient is not finite, each skipped, after which the run stops"""


@dataclass
class Recipe:
    """Everything that defines a run. Each random stream has its own seed derived from `seed`."""

    task: PartRecipe
    method: MethodRecipe
    backbone: BackboneRecipe = field(default_factory=BackboneRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    optim: OptimRecipe = field(default_factory=OptimRecipe)
    seed: int = 0
    """runs of different methods with one seed share head, data order and augmentation"""
    eval_every: int = 0
    """steps between evaluations on the val split; 0: only at the end"""
    save_every: int = 200
    """steps between checkpoints; 0: only at the end"""
    keep: int = 2
    """how many checkpoints stay, the newest ones"""
    save_async: bool = False
    """write checkpoints while training goes on, which takes memory for a copy"""
    timeout: float = 1800
    """seconds without any progress after which ranks give up on one that hangs"""
    shard: bool = False
    """ranks share the backbone (FSDP2) instead of having the whole of it each; one process has it whole anyway"""
    threads: int | None = None
    """CPU threads of torch; null: as torch decides"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain values, ready for YAML."""
        return _plain(dataclasses.asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def names() -> list[str]:
    """Names of the recipes in the package."""
    return typed.names(_FOLDER)


def load(source: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe in file `source`, or the package's recipe of that name, with `key.path=value` overrides.

    Raises FileNotFoundError for an unknown recipe (with the nearest known), ValueError for an unknown key or a value
    of the wrong type, naming it.
    """
    path = find(source)
    values = typed.read(path, _FOLDER, "recipe")
    arguments = typed.arguments(overrides)
    return typed.parse(Recipe, _settings_that_fit(values, overrides), arguments, f"recipe {path}")


def from_dict(values: dict[str, Any], where: str) -> Recipe:
    """The recipe that `Recipe.as_dict` gave. Raises ValueError for an unknown key or a wrong type, after `where`."""
    return typed.parse(Recipe, values, [], f"recipe {where}")


def _settings_that_fit(values: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """Where method.name is overridden, only those of the recipe's method.settings stay that the new method knows."""
    names = [o.removeprefix("method.name=") for o in overrides if o.startswith("method.name=")]
    method = values.get("method")
    if not names or not isinstance(method, dict) or not isinstance(method.get("settings"), dict):
        return values
    known = setting_names(names[-1])
    return values | {"method": method | {"settings": {k: v for k, v in method["settings"].items() if k in known}}}


def find(source: str | Path) -> Path:
    """Path of a recipe file or of a recipe in the package. Raises FileNotFoundError, with the nearest known names."""
    path = Path(source)
    if path.is_dir() and (path / "config.yaml").is_file():
        return path / "config.yaml"
    return typed.find(source, _FOLDER, "recipe")
