"""Batches depend on the seeds and the step alone; transforms keep image and labels together."""

import itertools

import pytest
import torch
from torchvision import tv_tensors

from sfa_ext import data
from sfa_ext.data.augment import MEAN, STD


class Numbered(torch.utils.data.Dataset):
    """Pictures whose pixels, labels and depth all tell the same thing: 4 times the row plus 2 times the column."""

    def __init__(self, count=10, height=20, width=30):
        self.count, self.height, self.width = count, height, width

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        code = (torch.arange(self.height)[:, None] * 4 + torch.arange(self.width) * 2).to(torch.uint8)
        return {
            "image": tv_tensors.Image(code.expand(3, -1, -1).clone()),
            "semantic": tv_tensors.Mask(code),
            "depth": tv_tensors.Mask(code.float() + 1),
            "labels": torch.tensor([1]),
            "label": index,
            "name": f"n{index}",
        }


def batches(count=4, start=0, workers=0, order=1, augment=2, dataset=None, batch_size=4, **settings):
    loader = data.loader(
        Numbered() if dataset is None else dataset,
        data.train_transform(16, **settings),
        batch_size=batch_size,
        order_seed=order,
        augment_seed=augment,
        start=start,
        workers=workers,
    )
    return list(itertools.islice(loader, count))


def same(a, b):
    assert a["name"] == b["name"]
    for name in ("image", "semantic", "depth", "label"):
        assert torch.equal(a[name], b[name]), name


def test_worker_processes_and_restarts_change_nothing():
    whole = batches(8)
    for a, b in zip(whole, batches(8, workers=2), strict=True):
        same(a, b)
    for a, b in zip(whole[5:], batches(3, start=5, workers=1), strict=True):
        same(a, b)
    same(whole[7], batches(1, start=7)[0])


def test_neither_the_process_random_state_nor_the_threads_matter_and_the_state_is_kept():
    torch.manual_seed(1)
    first = batches(3)
    torch.manual_seed(2)
    torch.set_num_threads(1)
    before = torch.get_rng_state()
    for a, b in zip(first, batches(3), strict=True):
        same(a, b)
    assert torch.equal(torch.get_rng_state(), before)


def test_order_and_augmentation_are_separate_streams():
    base, other_order, other_augment = batches(3), batches(3, order=9), batches(3, augment=9)
    assert [b["name"] for b in base] == [b["name"] for b in other_augment] != [b["name"] for b in other_order]
    assert not torch.equal(base[0]["image"], other_augment[0]["image"])
    # With nothing drawn the augmentation's seed has no effect.
    still = {"scale": (1, 1), "flip": 0, "jitter": 0, "dataset": Numbered(height=16, width=16)}
    assert torch.equal(batches(1, **still)[0]["image"], batches(1, augment=9, **still)[0]["image"])


def test_every_pass_takes_each_sample_once_in_a_new_order():
    names = sum((b["name"] for b in batches(15)), [])
    passes = [names[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(p) == [f"n{i}" for i in range(10)] for p in passes)
    assert len({tuple(p) for p in passes}) > 4


def test_a_data_set_smaller_than_a_batch_is_repeated():
    assert sorted(batches(1, dataset=Numbered(2), batch_size=6)[0]["label"].tolist()) == [0, 0, 0, 1, 1, 1]


def test_the_crop_keeps_pixels_labels_and_depth_together():
    for scale in ((1, 1), (0.5, 0.5), (2, 2), (0.6, 1.7)):
        for batch in batches(6, scale=scale, jitter=0):
            assert batch["image"].shape == (4, 3, 16, 16) and batch["semantic"].shape == (4, 16, 16)
            pixels = batch["image"] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
            known = batch["semantic"] != 255
            assert torch.equal(known, batch["depth"] > 0)
            # On a ramp an interpolated pixel and the nearest label differ by half a source pixel; at the borders of the
            # cut, where interpolation has one side only, by a little more.
            error = (pixels[:, 0] * 255 - batch["semantic"])[known]
            assert error.abs().max() <= 5 and error.abs().mean() < 2 and abs(float(error.mean())) < 0.25
            if scale[0] >= 1:
                assert known.all()
            if scale == (0.5, 0.5):
                # The shorter side of 20 becomes 8 pixels, the longer one 12.
                assert (known.sum((1, 2)) == 8 * 12).all()
                assert (pixels[~known[:, None].expand(-1, 3, -1, -1)] - 0.45).abs().max() < 0.05


def test_depth_is_divided_by_the_zoom():
    flat = Numbered()
    still = batches(1, scale=(2, 2), jitter=0, flip=0, dataset=flat)[0]
    assert torch.equal(still["depth"] * 2, still["semantic"].float() + 1)


def test_a_mirror_image_mirrors_its_labels():
    square = {"scale": (1, 1), "jitter": 0, "dataset": Numbered(height=16, width=16)}
    plain, mirrored = batches(1, flip=0, **square)[0], batches(1, flip=1, **square)[0]
    assert torch.equal(plain["image"].flip(-1), mirrored["image"])
    assert torch.equal(plain["semantic"].flip(-1), mirrored["semantic"])


def test_colour_jitter_changes_colours_but_not_labels():
    square = {"scale": (1, 1), "flip": 0, "dataset": Numbered(height=16, width=16)}
    plain, jittered = batches(1, jitter=0, **square)[0], batches(1, jitter=0.4, **square)[0]
    assert torch.equal(plain["semantic"], jittered["semantic"])
    shift = (plain["image"] - jittered["image"]).abs().flatten(1).mean(1)
    assert (shift > 0).all() and len(set(shift.tolist())) == 4


def test_evaluation_sees_every_sample_once_at_its_own_size():
    loader = data.eval_loader(Numbered(5), batch_size=2)
    assert len(loader) == 3
    seen = list(loader)
    assert sum((b["name"] for b in seen), []) == [f"n{i}" for i in range(5)]
    assert seen[0]["image"].shape == (2, 3, 20, 30) and seen[2]["image"].shape == (1, 3, 20, 30)
    raw = Numbered()[0]["image"]
    assert torch.equal(seen[0]["image"][0], data.normalise(raw))
    assert seen[0]["semantic"].dtype == torch.int64 and seen[0]["label"].dtype == torch.int64


def test_normalise_takes_out_the_mean_and_deviation():
    image = torch.tensor([[255.0], [0.0], [127.5]])[:, :, None].round().to(torch.uint8)
    out = data.normalise(image).flatten()
    expected = [(v / 255 - m) / s for v, m, s in zip((255, 0, 128), MEAN, STD, strict=True)]
    torch.testing.assert_close(out, torch.tensor(expected))
    torch.testing.assert_close(data.normalise(image.float() / 255).flatten(), out)


def test_samples_of_different_sizes_are_padded_with_ignored_pixels():
    transform = data.eval_transform()
    batch = data.collate([transform(Numbered(1, 8, 12)[0]), transform(Numbered(1, 10, 4)[0])])
    assert batch["image"].shape == (2, 3, 10, 12)
    assert (batch["semantic"][0, 8:] == 255).all() and (batch["semantic"][1, :, 4:] == 255).all()
    assert (batch["semantic"] != 255).sum() == 8 * 12 + 10 * 4
    assert (batch["image"][0, :, 8:] == 0).all() and (batch["depth"][1, :, 4:] == 0).all()
    assert isinstance(batch["labels"], list)


def test_samples_with_different_keys_are_refused():
    sample = Numbered()[0]
    with pytest.raises(ValueError, match="same keys; depth is only in some"):
        data.collate([sample, {k: v for k, v in sample.items() if k != "depth"}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"scales": (1, 2)},
            "unknown augmentation setting 'scales'; the known ones are scale, flip, jitter, photometric",
        ),
        ({"scale": (2, 1)}, r"scale must be two zooms.*got \(2, 1\)"),
        ({"scale": 1.5}, r"scale must be two zooms.*got 1.5"),
        ({"flip": 2}, "flip must be a probability between 0 and 1; got 2"),
        ({"jitter": 1}, "jitter must be at least 0 and below 1; got 1"),
        ({"crop": 0}, "crop must be at least 1 pixel; got 0"),
    ],
)
def test_bad_augmentation_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        data.train_transform(**{"crop": 16, **settings})


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        batches(1, batch_size=0)
    with pytest.raises(ValueError, match="empty data set"):
        batches(1, dataset=torch.utils.data.Subset(Numbered(), []))
