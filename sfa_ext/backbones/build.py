"""Backbones by name, as a model that returns four NCHW feature maps, and their weights on disk."""

from __future__ import annotations

import difflib
import hashlib
import json
from importlib import resources
from pathlib import Path
from types import ModuleType

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sfa_ext.backbones.sites import FAMILIES, plain_state, the_model
from sfa_ext.files import write_bytes

# SwinV2 small enough to train on a CPU, as settings over a timm model. 1.91 M parameters.
PICO = {
    "embed_dim": 32,
    "depths": (2, 2, 4, 1),
    "num_heads": (1, 2, 4, 8),
    "window_size": 6,
}
# SwinV2-G (Liu et al., 2022) with the window of its pretraining at 192 pixels: 3.0 billion parameters. Without the
# normalisation of its main branch after every sixth block, which timm's class does not have. No weights are known.
GIANT = {
    "embed_dim": 512,
    "depths": (2, 2, 42, 4),
    "num_heads": (16, 32, 64, 128),
    "window_size": 12,
}
# A plain ViT as small, with a class token and two registers. 1.98 M parameters, no weights in the package.
VIT_PICO = {"embed_dim": 192, "depth": 4, "num_heads": 3, "reg_tokens": 2}
BACKBONE_CLASSES = {
    "swinv2_pico": ("swinv2_tiny_window8_256", PICO),
    "swinv2_giant": ("swinv2_tiny_window8_256", GIANT),
    "vit_pico": ("vit_tiny_patch16_224", VIT_PICO),
}


def build(
    name: str,
    *,
    size: int | tuple[int, int] = 256,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    drop_path: float = 0.0,
    dynamic: bool = True,
) -> nn.Module:
    """A model that maps images [B, 3, H, W] to feature maps [B, D_l, H/s, W/s]: s = 4, 8, 16, 32, of a ViT its patch.

    Parameters
    ----------
    name: "swinv2_pico", "vit_pico" or the name of any SwinV2 or plain ViT of timm, with or without its weights tag
        ("swinv2_base_window8_256.ms_in1k").
    size: side of the images in pixels. SwinV2 fixes shifts and windows by it, a ViT its position embedding, so give
        the training crop.
    pretrained: load timm's weights (needs a network), or the weights in the package for "swinv2_pico".
    checkpoint: a local .safetensors or .pth file instead; must hold this backbone's tensors.
    drop_path: rate of stochastic depth.
    dynamic: accept other image sizes too; slower, as attention masks are then made on every forward.

    Raises ValueError for an unknown name or a checkpoint of another backbone, FileNotFoundError for a missing file.
    """
    model_name, settings = BACKBONE_CLASSES.get(name, (name, {}))
    family = _family(name, model_name)
    embedded = name in BACKBONE_CLASSES
    backbone = timm.create_model(
        model_name,
        features_only=True,
        feature_cls="getter",
        img_size=size,
        drop_path_rate=drop_path,
        pretrained=pretrained and not embedded and checkpoint is None,
        **family.build_settings(dynamic),
        **settings,
    )
    if not any(family.is_model(module) for module in backbone.modules()):
        raise ValueError(f"backbone: {name!r} is built of other blocks than a {family.FAMILY}")
    if checkpoint is None and pretrained and embedded:
        checkpoint = embedded_checkpoint(name)
    if checkpoint is not None:
        load_weights(backbone, checkpoint)
    return backbone


def _family(name: str, model_name: str) -> ModuleType:
    plain = model_name.split(".")[0]
    for family in FAMILIES:
        if plain in timm.list_models(family.PATTERN):
            return family
    every = [n for family in FAMILIES for n in timm.list_models(family.PATTERN)]
    near = difflib.get_close_matches(plain, every, 3, 0.0)
    raise ValueError(
        f"backbone: {name!r} is no SwinV2 and no plain ViT that timm knows; known: {', '.join(BACKBONE_CLASSES)} and "
        f"timm's {' and '.join(f.PATTERN for f in FAMILIES)}, for example {', '.join(near)}"
    )


def embedded_checkpoint(name: str) -> Path:
    """Path of the weights that ship with the package. Raises FileNotFoundError where this build lacks them."""
    path = Path(str(resources.files("sfa_ext"))) / "checkpoints" / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"backbone: no embedded weights for {name!r} at {path}; make them with `sfa pretrain`")
    return path


def load_weights(backbone: nn.Module, path: str | Path) -> None:
    """Loads a checkpoint (.safetensors, or .pth read without unpickling code) into `backbone`, all or nothing.

    Extra tensors (classifier head, last norm) are left out. Raises ValueError naming what is missing or differs.
    """
    tensors = _read(Path(path))
    own = backbone.state_dict()
    prefix = "model." if all(name.startswith("model.") for name in own) else ""
    model = the_model(backbone)
    fit = next(f for f in FAMILIES if f.is_model(model)).fit_tensor
    taken = {}
    for name, tensor in own.items():
        found = tensors.get(name, tensors.get(name.removeprefix(prefix)))
        if found is None:
            raise ValueError(f"checkpoint {path}: no tensor {name.removeprefix(prefix)!r}; it is for another backbone")
        found = fit(model, name.removeprefix(prefix), found)
        if found.shape != tensor.shape:
            raise ValueError(
                f"checkpoint {path}: {name.removeprefix(prefix)!r} is {list(found.shape)}, "
                f"this backbone needs {list(tensor.shape)}; it is for another backbone"
            )
        taken[name] = found
    backbone.load_state_dict(taken)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"checkpoint {path}: cannot be read, the file is truncated or altered ({error})") from error
    except Exception as error:  # torch raises pickle.UnpicklingError for code it refuses to run
        raise ValueError(f"checkpoint {path}: refused, it is no plain file of tensors ({error})") from error
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    return {n: t for n, t in loaded.items() if isinstance(t, Tensor)}


def save_weights(backbone: nn.Module, path: str | Path, metadata: dict[str, str] | None = None) -> str:
    """Writes the backbone's tensors as .safetensors, atomically; returns the file's sha256."""
    path = Path(path)
    tensors = {n.removeprefix("model."): t.detach().cpu().contiguous() for n, t in plain_state(backbone).items()}
    written = save(tensors, metadata={k: str(v) for k, v in (metadata or {}).items()})
    write_bytes(path, written)
    return hashlib.sha256(written).hexdigest()


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, shapes, dtypes and bytes: tells two backbones apart."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
