"""The scenes as a torch Dataset."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from sfa_ext.data.scenes import cache as scene_cache
from sfa_ext.data.scenes.render import CLASS_NAMES, DOMAINS, N_BACKGROUND, SPLITS, Rendered, render_index
from sfa_ext.data.scenes.textures import require_photographs

_PALETTE = (
    (121, 104, 84), (198, 200, 214), (240, 238, 200), (222, 62, 62), (66, 120, 226), (62, 184, 84), (240, 160, 44),
    (164, 84, 214), (54, 196, 198), (248, 122, 188), (150, 158, 40),
)  # fmt: skip


class Scenes(Dataset):
    """Rooms with 3 to 10 solids (`target`) or plain ones with 1 to 3 (`source`), with exact labels.

    Scene `i` is a function of (domain, split, seed, i) alone; its layout is the same at every size, and no scene of a
    split occurs in another one.

    Args:
        split: "train", "val" or "test".
        domain: "target" (photographed textures, shadow, clutter) or "source" (plain, half of it single solids).
        count: number of scenes.
        size: pixels along each side.
        seed: draws another set of scenes.
        cache: folder for rendered scenes; "auto" is $SFA_CACHE or ~/.cache/sfa_ext/scenes; None renders every time.
        workers: processes that render into the cache; 0 renders in this one.

    A sample holds "image" tv Image uint8 [3, S, S]; "semantic" tv Mask uint8 [S, S]; "depth" tv Mask float32 [S, S] in
    metres along the camera's axis; "masks" tv Mask bool [n, S, S] (visible parts), "boxes" tv BoundingBoxes float32
    [n, 4] xyxy around them and "labels" int64 [n]; "label" int, the solid that covers most of the picture, counted
    from 0 among the solids; "name" str.

    Raises:
        ValueError: an unknown split or domain, a count, size, seed or number of workers out of range.
        DataError: scikit-image is missing, or the cache cannot be written.
    """

    class_names: tuple[str, ...] = CLASS_NAMES
    object_classes: tuple[int, ...] = tuple(range(N_BACKGROUND, len(CLASS_NAMES)))

    def __init__(
        self,
        split: str = "train",
        domain: str = "target",
        count: int = 1000,
        size: int = 128,
        seed: int = 0,
        cache: str | Path | None = "auto",
        workers: int = 2,
    ) -> None:
        for name, value, known in (("split", split, SPLITS), ("domain", domain, DOMAINS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        for name, value, least in (("count", count, 1), ("size", size, 8), ("seed", seed, 0), ("workers", workers, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}")
        if domain == "target":
            require_photographs()
        self.request = scene_cache.Request(domain, split, seed, size, count)
        self.palette = torch.tensor(_PALETTE, dtype=torch.uint8)
        self._path: Path | None = None
        self._arrays: scene_cache.Arrays | None = None
        if cache is not None:
            folder = scene_cache.default_folder() if cache == "auto" else Path(cache).expanduser()
            self._path = scene_cache.prepare(self.request, folder, workers)

    def __len__(self) -> int:
        return self.request.count

    def __getstate__(self) -> dict[str, Any]:
        # A mapped array would travel to a worker process as a copy of the whole file.
        return {**self.__dict__, "_arrays": None}

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        index %= len(self)
        request = self.request
        name = f"{request.domain}-{request.split}-{request.seed}-{index:06d}"
        return {**_labels(self._rendered(index)), "name": name}

    def _rendered(self, index: int) -> Rendered:
        request = self.request
        if self._path is None:
            return render_index(request.domain, request.split, request.seed, index, request.size)
        if self._arrays is None:
            self._arrays = scene_cache.open_arrays(self._path)
        return Rendered(**{name: np.array(array[index]) for name, array in self._arrays.items()})


def _labels(rendered: Rendered) -> dict[str, Any]:
    size = rendered.semantic.shape
    areas = np.bincount(rendered.instance.ravel())
    areas[0] = 0
    visible = np.flatnonzero(areas)
    masks = rendered.instance == visible[:, None, None].astype(np.uint8)
    boxes, classes = np.zeros((len(visible), 4), np.float32), np.zeros(len(visible), np.int64)
    for number, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes[number] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        classes[number] = rendered.semantic[rows[0], mask[rows[0]].argmax()]
    return {
        "image": tv_tensors.Image(torch.from_numpy(rendered.image)),
        "semantic": tv_tensors.Mask(torch.from_numpy(rendered.semantic)),
        "depth": tv_tensors.Mask(torch.from_numpy(rendered.depth)),
        "masks": tv_tensors.Mask(torch.from_numpy(masks)),
        "boxes": tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=size),
        "labels": torch.from_numpy(classes),
        "label": int(classes[areas[visible].argmax()]) - N_BACKGROUND,
    }
