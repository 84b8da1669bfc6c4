"""The set loss of Mask2Former for semantic label maps: matching, class, mask and dice terms at sampled points.

It computes the terms of the paper (Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation",
2022, section 3.3 and 4.1) for all images and all predictions of a step together. Four things are its own:

* Labels are read at the pixel that holds a point, straight from the label map, so no mask per class is ever built.
* Ignored pixels (255) carry no weight in the matching costs, the mask term and the dice term: they are neither
  positive nor negative. An image with no labelled pixel at all adds nothing to any term, the class term included. In
  other images a query that matches nothing learns "no object" even where its mask covers ignored pixels.
* Logits between the outermost cell centres and the image's edge extend the edge, as in inference; the authors' code
  blends them with zeros.
* The numbers of masks and of weighted queries that normalise the loss are averaged over ranks when distributed, so
  that the mean of the ranks' losses is the loss of the whole batch, given the same points.

Every random point comes from `torch.rand` on the device of the predictions, hence from torch's default generator:
seeding it with `torch.manual_seed` before a step makes the step's points, and so its loss, reproducible. A step draws
the matching points first, [B, points, 2], then for its N matched pairs [N, points * oversample, 2] and what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from sfa_ext import ranks

from .metrics import IGNORE

_WORST_COST = 1e9  # stands for NaN and infinity: finite, so that matching goes on with the sound predictions


@dataclass(frozen=True)
class Pairs:
    """Matched predictions of all layers: int64 [N] each, ordered by layer, then image, then query."""

    layer: Tensor
    image: Tensor
    query: Tensor
    label: Tensor  # class of the target that the query was matched to


class MaskClassificationLoss(nn.Module):
    """Class, mask and dice terms, each summed over the predictions of all layers (deep supervision), unweighted.

    Args:
        n_classes: number of classes; class logits hold one more, the last, for "no object".
        points: points per mask that the mask and dice terms are computed on, and per image in the matching.
        oversample: candidates drawn per point among which the most uncertain are kept; at least 1.
        importance: share of the points taken from those candidates, the others are uniform; in 0..1.
        no_object_weight: weight of "no object" in the class term.
        weights: weights of the class, mask and dice costs in the matching.
    """

    def __init__(
        self,
        n_classes: int,
        points: int,
        oversample: float = 3.0,
        importance: float = 0.75,
        no_object_weight: float = 0.1,
        weights: tuple[float, float, float] = (2.0, 5.0, 5.0),
    ) -> None:
        super().__init__()
        self.n_classes, self.points, self.weights = n_classes, points, weights
        self.oversample, self.importance, self.no_object_weight = oversample, importance, no_object_weight

    def forward(self, classes: Tensor, masks: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """The float32 scalars "class", "mask" and "dice".

        Args:
            classes: class logits [L, B, Q, C + 1] of L layers.
            masks: mask logits [B, Q, h, w] of each of them.
            labels: int64 [B, H, W] of any size, 255 = ignore.
        """
        with torch.autocast(labels.device.type, enabled=False):
            classes, masks = classes.float(), [m.float() for m in masks]
            present = present_classes(labels, self.n_classes)
            pairs = self.match(classes, masks, labels, present)
            bce, dice = self._mask_terms(masks, labels, pairs)
            count = ranks.mean_count(present.sum().float())
            return {
                "class": self._class_term(classes, pairs, present.any(1)),
                "mask": bce.sum() / count,
                "dice": dice.sum() / count,
            }

    @torch.no_grad()
    def match(self, classes: Tensor, masks: Sequence[Tensor], labels: Tensor, present: Tensor) -> Pairs:
        """The cheapest one-to-one assignment of the present classes [B, C] to queries, for each layer and image."""
        counts = present.sum(1)
        # Present classes first, so that the first counts[b] columns of image b's costs are its targets.
        targets = present.byte().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
        where = torch.rand(labels.shape[0], self.points, 2, device=labels.device)
        images = torch.arange(labels.shape[0], device=labels.device)
        at_points = labels_at(labels, images, where)
        truth = (at_points[:, None] == targets[..., None]).float()
        valid = (at_points != IGNORE).float()
        layers = zip(classes, masks, strict=True)
        costs = torch.stack([self._costs(c, m, where, targets, truth, valid) for c, m in layers])
        costs = torch.nan_to_num(costs, nan=_WORST_COST, posinf=_WORST_COST, neginf=_WORST_COST).cpu().numpy()
        found = [
            (layer, image, query, column)
            for layer, of_layer in enumerate(costs)
            for image, count in enumerate(counts.tolist())
            for query, column in zip(*linear_sum_assignment(of_layer[image, :, :count]), strict=True)
        ]
        layer, image, query, column = torch.tensor(found, dtype=torch.int64).view(-1, 4).to(labels.device).unbind(1)
        return Pairs(layer, image, query, targets[image, column])

    def _costs(
        self,
        classes: Tensor,  # [B, Q, C + 1]
        masks: Tensor,  # [B, Q, h, w]
        where: Tensor,  # [B, P, 2]
        targets: Tensor,  # [B, T]
        truth: Tensor,  # [B, T, P]
        valid: Tensor,  # [B, P]
    ) -> Tensor:  # [B, Q, T]
        likely = classes.softmax(-1).gather(2, targets[:, None].expand(-1, classes.shape[1], -1))
        logits = sample(masks, where) * valid[:, None]
        inside = truth.transpose(1, 2)
        # Binary cross entropy is softplus(x) - x * truth: one matrix product serves positives and negatives.
        cross = (F.softplus(logits) * valid[:, None]).sum(-1, keepdim=True) - logits @ inside
        cross = cross / valid.sum(-1).clamp(min=1)[:, None, None]
        chance = logits.sigmoid() * valid[:, None]
        dice = 1 - (2 * chance @ inside + 1) / (chance.sum(-1, keepdim=True) + truth.sum(-1)[:, None] + 1)
        w_class, w_mask, w_dice = self.weights
        return w_mask * cross + w_dice * dice - w_class * likely

    def _class_term(self, logits: Tensor, pairs: Pairs, labelled: Tensor) -> Tensor:
        layers, n_images, n_queries, _ = logits.shape
        target = torch.full((layers, n_images, n_queries), self.n_classes, device=logits.device)
        target[pairs.layer, pairs.image, pairs.query] = pairs.label
        weight = torch.where(target == self.n_classes, self.no_object_weight, 1.0) * labelled[None, :, None]
        each = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none")
        # Every layer has the same sum of weights, so one quotient over all of them is their mean.
        return layers * (each * weight.flatten()).sum() / ranks.mean_over(weight.sum()).clamp(min=1e-6)

    def _mask_terms(self, masks: Sequence[Tensor], labels: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        row = pairs.image * masks[0].shape[1] + pairs.query
        chosen = [m.flatten(0, 1).index_select(0, row[pairs.layer == layer]) for layer, m in enumerate(masks)]
        matched = torch.cat(chosen)[:, None]  # [N, 1, h, w]
        where = self._uncertain_points(matched.detach(), labels, pairs.image)
        at_points = labels_at(labels, pairs.image, where)
        return point_terms(
            sample(matched, where)[:, 0], (at_points == pairs.label[:, None]).float(), (at_points != IGNORE).float()
        )

    @torch.no_grad()
    def _uncertain_points(self, matched: Tensor, labels: Tensor, image: Tensor) -> Tensor:
        """Points [N, points, 2]: the least certain of many candidates, ignored pixels last, and uniform ones."""
        n, kept = matched.shape[0], int(self.importance * self.points)
        uniform = torch.rand(n, self.points - kept, 2, device=matched.device)
        candidates = torch.rand(n, int(self.points * self.oversample), 2, device=matched.device)
        distance = sample(matched, candidates)[:, 0].abs()
        distance.masked_fill_(labels_at(labels, image, candidates) == IGNORE, torch.inf)
        nearest = distance.topk(kept, dim=1, largest=False, sorted=False).indices
        return torch.cat([candidates.gather(1, nearest[..., None].expand(-1, -1, 2)), uniform], 1)


def present_classes(labels: Tensor, n_classes: int) -> Tensor:
    """bool [B, C]: which classes the label map [B, H, W] of each image holds.

    Raises:
        ValueError: a label is neither a class nor 255.
    """
    rows = torch.arange(labels.shape[0], device=labels.device)[:, None] * (IGNORE + 1)
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= IGNORE:
        raise ValueError(f"batch['semantic'] must hold 0..{n_classes - 1} or {IGNORE}, got {_span(labels)}")
    size = labels.shape[0] * (IGNORE + 1)
    seen = torch.bincount((rows + labels.flatten(1)).flatten(), minlength=size).view(-1, IGNORE + 1) > 0
    if seen[:, n_classes:IGNORE].any():
        raise ValueError(f"batch['semantic'] must hold 0..{n_classes - 1} or {IGNORE}, got {_span(labels)}")
    return seen[:, :n_classes]


def _span(labels: Tensor) -> str:
    used = labels[labels != IGNORE]
    return f"{int(used.min())}..{int(used.max())}"


def sample(maps: Tensor, where: Tensor) -> Tensor:
    """Bilinear values [N, C, P] of maps [N, C, h, w] at points [N, P, 2], (x, y) in 0..1 over the whole map."""
    # "border" extends the edge as the bilinear resizing of a prediction does; zeros would pull logits there to 0.
    grid = (2 * where - 1)[:, :, None]
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)[..., 0]


def labels_at(labels: Tensor, image: Tensor, where: Tensor) -> Tensor:
    """Labels [N, P] at the pixels of labels [B, H, W] that hold the points [N, P, 2], 0 <= x, y < 1, of images [N]."""
    height, width = labels.shape[-2:]
    # A float32 below 1 times a size rounds to less than the size, so points of torch.rand need no clamping.
    column, row = (where[..., 0] * width).long(), (where[..., 1] * height).long()
    return labels.take((image[:, None] * height + row) * width + column)


def point_terms(logits: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross entropy and dice loss [N] of logits [N, P] against truth [N, P] over the points with valid 1."""
    each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * valid
    cross = each.sum(1) / valid.sum(1).clamp(min=1)
    chance, truth = logits.sigmoid() * valid, truth * valid
    return cross, 1 - (2 * (chance * truth).sum(1) + 1) / (chance.sum(1) + truth.sum(1) + 1)
