"""Semantic segmentation with Mask2Former: the head against transformers, training, autocast and inference."""

import pytest
import torch
import torch.nn.functional as F
from tiny_scenes import CHANNELS, CLASSES, TinyBackbone, random_maps, shapes

from sfa_ext import tasks

segmentation = pytest.importorskip("sfa_ext.tasks.segmentation")


def small(**values):
    torch.manual_seed(0)
    return tasks.build("mask2former", {"size": "small", **values}, CHANNELS, CLASSES, (1, 2, 3))


@pytest.mark.parametrize("points", [2, 4])
def test_head_equals_transformers(points):
    parts = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    head, maps = small(encoder_layers=2, decoder_layers=4, encoder_points=points).head, random_maps()
    with torch.no_grad():
        for parameter in head.parameters():  # away from the start, where attention weights and offsets are constant
            parameter.add_(0.1 * torch.randn_like(parameter))
    classes, masks = head(maps)
    decoded = parts.Mask2FormerPixelDecoder.forward(head.pixel_decoder, maps)
    oracle = parts.Mask2FormerTransformerModule.forward(
        head.decoder, list(decoded.multi_scale_features), decoded.mask_features
    )
    assert len(masks) == 5
    for ours, theirs in zip(masks, oracle.masks_queries_logits, strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    for ours, hidden in zip(classes, oracle.intermediate_hidden_states, strict=True):
        assert (ours - head.classifier(hidden.transpose(0, 1))).norm() < 1e-5 * ours.norm()


def test_paper_size_has_six_pixel_decoder_blocks_and_ten_predictions():
    head = tasks.build("mask2former", {"size": "paper"}, CHANNELS, CLASSES).head.eval()
    with torch.no_grad():
        classes, masks = head(random_maps())
    assert len(head.pixel_decoder.encoder.layers) == 6
    assert classes.shape == (10, 2, 100, 5) and [m.shape for m in masks] == [(2, 100, 16, 24)] * 10


def test_learns_eight_images():
    torch.set_num_threads(1)  # so small a model waits for its threads on a busy machine
    task, backbone = small(), TinyBackbone()
    images, labels = shapes(8, 64, seed=1)
    parameters = [*backbone.parameters(), *task.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-3)
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 20, (100 - step) / 50)
        loss, terms = task.loss(backbone(images), {"semantic": labels})
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    assert set(terms) == {"class", "mask", "dice"} and not any(t.requires_grad for t in terms.values())
    metric = task.metrics()
    metric.update(task.predict(backbone(images), (64, 64)), {"semantic": labels})
    assert metric.compute()["miou"] > 0.9


def test_weights_of_the_terms():
    task, maps = small(), random_maps()
    loss, terms = task.loss(maps, {"semantic": torch.randint(0, 4, (2, 64, 96))})
    layers = task.settings.decoder_layers + 1
    expected = layers * (2 * terms["class"] + 5 * terms["mask"] + 5 * terms["dice"])
    torch.testing.assert_close(loss.detach(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_stays_near_float32(dtype):
    task, maps = small(), random_maps()
    batch = {"semantic": torch.randint(0, 4, (2, 4, 6)).repeat_interleave(16, 1).repeat_interleave(16, 2)}
    torch.manual_seed(1)
    expected, _ = task.loss(maps, batch)
    with torch.autocast("cpu", dtype):
        torch.manual_seed(1)
        loss, _ = task.loss([m.to(dtype) for m in maps], batch)
        scores = task.predict([m.to(dtype) for m in maps], (64, 96))["semantic"]
    loss.backward()
    assert loss.dtype == scores.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    assert all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)
    reference = task.predict(maps, (64, 96))["semantic"]
    assert (scores - reference).norm() < 0.05 * reference.norm()


def test_training_after_inference_mode():
    task, maps = small(), [m[:, :, :-1, :-1].contiguous() for m in random_maps()]
    with torch.inference_mode():
        task.predict(maps, (32, 32))
    task.loss(maps, {"semantic": torch.randint(0, 4, (2, 60, 92))})[0].backward()
    assert all(p.grad is not None for p in task.head.pixel_decoder.encoder.parameters())


@pytest.mark.parametrize("chunk", [1, 3 * 40 * 50, 2**24], ids=["one-query", "three-queries", "all"])
def test_scores_equal_the_formula_whatever_the_chunk(chunk, monkeypatch):
    monkeypatch.setattr(segmentation, "_CHUNK", chunk)
    classes, masks = torch.randn(2, 7, 5, dtype=torch.float64), torch.randn(2, 7, 10, 12, dtype=torch.float64)
    full = F.interpolate(masks, size=(40, 50), mode="bilinear", align_corners=False).sigmoid()
    expected = torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], full)
    scores = segmentation.semantic_scores(classes.float(), masks.float(), (40, 50))
    assert (scores - expected).norm() < 1e-6 * expected.norm()


def test_wrong_maps_are_refused():
    with pytest.raises(ValueError, match="maps must be four feature maps, got 3"):
        small().predict(random_maps()[:3], (8, 8))
