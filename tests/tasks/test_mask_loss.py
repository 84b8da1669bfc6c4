"""MaskClassificationLoss: against transformers' own loss, and its treatment of what is not labelled."""

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, multiprocessing

from sfa_ext.tasks.mask_loss import MaskClassificationLoss, present_classes

N_CLASSES = 5


def predictions(n_images=2, n_queries=9, layers=2, size=(12, 16)):
    classes = torch.randn(layers, n_images, n_queries, N_CLASSES + 1)
    masks = [3 * torch.randn(n_images, n_queries, 3, 4) for _ in range(layers)]
    masks = [F.interpolate(m, size=size, mode="bilinear") for m in masks]
    return classes.requires_grad_(), [m.requires_grad_() for m in masks]


def blocks(n_images=2, high=48, wide=64):
    """Label maps of 3 x 4 blocks."""
    return torch.randint(0, N_CLASSES, (n_images, 3, 4)).repeat_interleave(high // 3, 1).repeat_interleave(wide // 4, 2)


def uniform_images():
    """Three images of one class each: their mask terms do not depend on the points that are drawn."""
    torch.manual_seed(7)
    classes = torch.randn(1, 3, 4, N_CLASSES + 1)
    masks = [torch.randn(3, 4, 1, 1).expand(-1, -1, 6, 6).contiguous()]
    return classes, masks, torch.tensor([0, 3, 2])[:, None, None].expand(-1, 8, 8).contiguous()


def test_terms_and_matching_equal_transformers():
    parts = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    points = 20000  # both losses draw their own points, so they agree up to the spread of a mean over that many
    config = parts.Mask2FormerConfig(num_labels=N_CLASSES, train_num_points=points)
    (classes, masks), labels = predictions(size=(96, 128)), blocks()  # large: theirs differs in the outer half cell
    truth = [[(one == c).float() for c in one.unique()] for one in labels]
    auxiliary = [{"masks_queries_logits": masks[1], "class_queries_logits": classes[1]}]
    oracle = parts.Mask2FormerLoss(config, {})(
        masks[0], classes[0], [torch.stack(t) for t in truth], [one.unique() for one in labels], auxiliary
    )
    ours = MaskClassificationLoss(N_CLASSES, points)(classes, masks, labels)
    for name, theirs in (("class", "loss_cross_entropy"), ("mask", "loss_mask"), ("dice", "loss_dice")):
        expected = (oracle[theirs] + oracle[f"{theirs}_0"]).item()
        assert ours[name].item() == pytest.approx(expected, rel=0.02 if name != "class" else 1e-5)


def test_good_predictions_are_matched_and_cost_nothing():
    labels = blocks()
    present = present_classes(labels, N_CLASSES)
    small = labels[:, 2::4, 2::4]
    order = torch.randperm(N_CLASSES)  # query q predicts class order[q]
    masks = [torch.where(small[:, None] == order[:, None, None], 40.0, -40.0)]
    classes = (40 * F.one_hot(order, N_CLASSES + 1).float()).repeat(1, 2, 1, 1)
    classes[0][~present[:, order]] = torch.tensor([0.0] * N_CLASSES + [40.0])
    loss = MaskClassificationLoss(N_CLASSES, 500)
    pairs = loss.match(classes, masks, labels, present)
    assert torch.equal(order[pairs.query], pairs.label) and len(pairs.query) == present.sum()
    terms = loss(classes, masks, labels)
    assert terms["class"] < 1e-6 and terms["mask"] < 3 and terms["dice"] < 0.2


def test_ignored_pixels_are_neither_positive_nor_negative():
    labels = blocks()
    labels[:, :, 32:] = 255
    loss = MaskClassificationLoss(N_CLASSES, 64)
    classes, masks = predictions()
    torch.manual_seed(5)
    terms = loss(classes, masks, labels)
    (terms["mask"] + terms["dice"]).backward()
    assert all(m.grad[..., :8].abs().sum() > 0 for m in masks)
    assert all(m.grad[..., 9:].abs().sum() == 0 for m in masks)  # column 8 borders on labelled pixels
    with torch.no_grad():
        for m in masks:
            m[..., 9:] = 50 * torch.randn_like(m[..., 9:])
    torch.manual_seed(5)
    again = loss(classes, masks, labels)
    torch.testing.assert_close(again, terms)


def test_an_image_without_labels_adds_nothing():
    loss = MaskClassificationLoss(N_CLASSES, 64)
    classes, masks, labels = uniform_images()
    classes, masks = classes.requires_grad_(), [m.requires_grad_() for m in masks]
    labels[1] = 255
    terms = loss(classes, masks, labels)
    sum(terms.values()).backward()
    assert classes.grad[:, 1].abs().sum() == 0 and classes.grad[:, [0, 2]].abs().sum() > 0
    assert all(m.grad[1].abs().sum() == 0 for m in masks)
    labelled = loss(classes[:, [0, 2]], [m[[0, 2]] for m in masks], labels[[0, 2]])
    torch.testing.assert_close(terms, labelled)


def test_a_batch_without_labels_gives_zero_and_finite_gradients():
    classes, masks = predictions()
    terms = MaskClassificationLoss(N_CLASSES, 64)(classes, masks, torch.full((2, 24, 32), 255))
    total = sum(terms.values())
    total.backward()
    assert total.item() == 0
    assert all(g is None or (g == 0).all() for g in (classes.grad, *(m.grad for m in masks)))


def test_seeding_torch_reproduces_the_loss():
    loss = MaskClassificationLoss(N_CLASSES, 64)
    (classes, masks), labels = predictions(), blocks()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(loss(classes, masks, labels)["mask"].item())
    assert found[0] == found[1] != found[2]


def test_matching_survives_predictions_that_are_not_finite():
    (classes, masks), labels = predictions(), blocks()
    with torch.no_grad():
        masks[0][:, :3], masks[1][:, 3] = torch.nan, torch.inf
        classes[0, :, 4] = torch.nan
    present = present_classes(labels, N_CLASSES)
    pairs = MaskClassificationLoss(N_CLASSES, 64).match(classes, masks, labels, present)
    assert len(pairs.query) == 2 * present.sum()  # every target in each of the two layers
    if present.sum(1).max() <= 5:
        assert not set(pairs.query[pairs.layer == 0].tolist()) & {0, 1, 2, 4}


def test_more_classes_than_queries():
    classes, masks = predictions(n_queries=2)
    labels = torch.arange(N_CLASSES).repeat(2, 8, 4)
    loss = MaskClassificationLoss(N_CLASSES, 64)
    pairs = loss.match(classes, masks, labels, present_classes(labels, N_CLASSES))
    assert len(pairs.query) == 2 * 2 * 2
    assert all(term.isfinite() for term in loss(classes, masks, labels).values())


@pytest.mark.parametrize("bad", [N_CLASSES, 254, 256, -1])
def test_labels_that_are_no_class_are_named(bad):
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, 1, 1] = bad
    with pytest.raises(ValueError, match=rf"must hold 0\.\.4 or 255, got .*{bad}"):
        present_classes(labels, N_CLASSES)


def rank_loss(rank, address, queue):
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    classes, masks, labels = uniform_images()
    own = slice(0, 1) if rank == 0 else slice(1, 3)
    terms = MaskClassificationLoss(N_CLASSES, 16)(classes[:, own], [masks[0][own]], labels[own])
    queue.put((terms["mask"].item(), terms["dice"].item()))
    distributed.destroy_process_group()


def test_ranks_of_unequal_targets_average_to_the_whole_batch(tmp_path):
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(rank_loss, args=(f"file://{tmp_path}/store", queue), nprocs=2)
    ranks = torch.tensor([queue.get(), queue.get()])
    whole = MaskClassificationLoss(N_CLASSES, 16)(*uniform_images())
    torch.testing.assert_close(ranks.mean(0), torch.stack([whole["mask"], whole["dice"]]))
