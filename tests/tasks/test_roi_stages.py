"""Box stages: one stage against torchvision's own Mask R-CNN, the cascade's rules on cases made by hand."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models.detection import roi_heads
from torchvision.models.detection.roi_heads import RoIHeads

from sfa_ext.tasks.maskrcnn import MaskRcnnSettings
from sfa_ext.tasks.roi_stages import AgnosticPredictor, RoIStages, build_stages

SIZES = [(96, 128), (96, 128)]


def settings(**values):
    small = MaskRcnnSettings.sizes["small"] | {"width": 16, "box_dim": 32, "roi_samples": 24}
    return MaskRcnnSettings(**(small | values))


def case():
    """Maps by level, proposals and targets of two images, the second without an object."""
    features = {str(i): torch.randn(2, 16, 24 >> i, 32 >> i) for i in range(4)}
    features["4"] = torch.randn(2, 16, 2, 2)
    corner = torch.rand(2, 40, 2) * 60
    proposals = [*torch.cat([corner, corner + torch.rand(2, 40, 2) * 30 + 4], 2)]
    boxes = proposals[0][:3] + torch.tensor([1.0, 0.0, 2.0, 1.0])
    masks = torch.zeros(3, 96, 128, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    full = {"boxes": boxes, "labels": torch.tensor([1, 3, 2]), "masks": masks}
    return features, proposals, [full, {name: value[:0] for name, value in full.items()}]


def test_one_stage_equals_torchvision(monkeypatch):
    """But for the mask it is to learn, which torchvision cuts out half a pixel off."""
    torch.manual_seed(1)
    roi, (features, proposals, targets) = build_stages(settings(score_threshold=0.0), 16, 4), case()
    stage = roi.stages[0]
    oracle = RoIHeads(
        stage.box_roi_pool, stage.box_head, stage.box_predictor, 0.5, 0.5, 24, 0.25, (10.0, 10.0, 5.0, 5.0), 0.0, 0.5,
        100, roi.mask_pool, roi.mask_head, roi.mask_predictor,
    )  # fmt: skip
    torch.manual_seed(2)
    losses = roi.losses(features, proposals, SIZES, targets)
    monkeypatch.setattr(roi_heads, "roi_align", partial(roi_heads.roi_align, aligned=True))
    torch.manual_seed(2)
    _, expected = oracle.train()(features, [*proposals], SIZES, targets)
    assert losses["class"].item() == pytest.approx(expected["loss_classifier"].item(), rel=1e-6)
    assert losses["box"].item() == pytest.approx(expected["loss_box_reg"].item(), rel=1e-6)
    assert losses["mask"].item() == pytest.approx(expected["loss_mask"].item(), rel=1e-6)
    found = roi.detect(features, proposals, SIZES)
    results, _ = oracle.eval()(features, [*proposals], SIZES)
    for ours, theirs in zip(found, results, strict=True):
        assert len(ours["boxes"]) > 10 and torch.equal(ours["labels"], theirs["labels"])
        torch.testing.assert_close(ours["boxes"], theirs["boxes"])
        torch.testing.assert_close(ours["scores"], theirs["scores"])
        torch.testing.assert_close(ours["shapes"], theirs["masks"][:, 0])


class Fixed(nn.Module):
    """A predictor that gives the same class logits and the same offsets to every proposal."""

    def __init__(self, logits, offsets):
        super().__init__()
        self.logits, self.offsets = torch.tensor(logits), torch.tensor(offsets)

    def forward(self, x):
        return self.logits.repeat(len(x), 1), self.offsets.repeat(len(x), len(self.logits))


def cascade(*predictors, **values):
    roi = build_stages(settings(cascade=True, **values), 16, 3)
    for stage, predictor in zip(roi.stages, predictors, strict=True):
        stage.box_predictor = predictor
    return roi


def test_a_cascade_averages_scores_and_hands_boxes_on():
    # In a box 40 wide and 20 high, offsets (dx, dy, dw, dh) / stage weights move its centre and stretch it.
    logits = [[0.0, 2.0, -1.0], [0.0, 0.5, 0.5], [1.0, 1.0, 0.0]]
    offsets = [[1.0, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, 15 * 0.1, 0]]
    roi = cascade(*(Fixed(a, b) for a, b in zip(logits, offsets, strict=True)), score_threshold=0.05)
    features, _, _ = case()
    found = roi.detect(features, [torch.tensor([[20.0, 30.0, 60.0, 50.0]]), torch.zeros(0, 4)], SIZES)[0]
    # Stage 1: x + 40 * 1 / 10 = 4; stage 2: y + 20 * 4 / 20 = 4; stage 3: width * exp(1.5 / 15) about the centre 44.
    half = 20 * torch.tensor(0.1).exp().item()
    expected = torch.tensor([44 - half, 34.0, 44 + half, 54.0])
    chances = torch.tensor(logits).softmax(1).mean(0)
    assert found["labels"].tolist() == [1, 2]
    torch.testing.assert_close(found["scores"], chances[1:])
    torch.testing.assert_close(found["boxes"], expected.repeat(2, 1))


def test_each_stage_of_a_cascade_has_its_own_threshold():
    roi = cascade(*(Fixed([0.0, 0.0, 0.0], [0.0] * 4) for _ in range(3)))
    target = {"boxes": torch.tensor([[0.0, 0.0, 100.0, 10.0]]), "labels": torch.tensor([2])}
    # Boxes inside the object with these IoUs, and the object itself, which torchvision adds.
    widths = [45.0, 55.0, 65.0, 75.0]
    proposals = torch.tensor([[0.0, 0.0, w, 10.0] for w in widths])
    for stage, positive in zip(roi.stages, ([55, 65, 75, 100], [65, 75, 100], [75, 100]), strict=True):
        boxes, _, labels, _ = stage.select_training_samples([proposals], [target])
        assert sorted(boxes[0][labels[0] == 2][:, 2].tolist()) == positive
        assert (labels[0][labels[0] != 2] == 0).all()


def test_later_stages_train_on_what_earlier_ones_made():
    """Proposals of IoU 0.45 are no positives of any stage, unless the first moves them onto the object."""
    target = {
        "boxes": torch.tensor([[20.0, 20.0, 60.0, 60.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 96, 128, dtype=torch.uint8),
    }
    features = {name: value[:1] for name, value in case()[0].items()}
    proposals = [torch.tensor([[35.2, 20.0, 75.2, 60.0]])]  # 15.2 to the right
    sampled = []

    def counting(stage):
        select = stage.select_training_samples

        def counted(*arguments):
            found = select(*arguments)
            sampled.append(int((found[2][0] == 1).sum()))
            return found

        stage.select_training_samples = counted

    for offset, expected in ((0.0, [1, 1, 1]), (-3.7, [1, 2, 2])):
        roi = cascade(Fixed([0.0] * 3, [offset, 0, 0, 0]), Fixed([0.0] * 3, [0.0] * 4), Fixed([0.0] * 3, [0.0] * 4))
        sampled.clear()
        for stage in roi.stages:
            counting(stage)
        roi.losses(features, proposals, SIZES[:1], [target])
        assert sampled == expected  # the object's own box is among the samples of every stage, once


def test_stage_losses_are_weighted():
    features, proposals, targets = case()
    roi = build_stages(settings(cascade=True), 16, 4)
    assert isinstance(roi, RoIStages) and roi.weights == (1.0, 0.5, 0.25)
    for stage in roi.stages:
        stage.box_predictor = Fixed([0.0] * 4, [0.0] * 4)
    found = roi.losses(features, proposals, SIZES, targets)
    assert found["class"].item() == pytest.approx(1.75 * torch.tensor(4.0).log().item(), rel=1e-5)


def test_the_cascade_regresses_one_box_for_all_classes():
    predictor = AgnosticPredictor(8, 5)
    scores, boxes = predictor(torch.randn(3, 8))
    assert scores.shape == (3, 5) and torch.equal(boxes.view(3, 5, 4), boxes[:, None, :4].expand(3, 5, 4))
