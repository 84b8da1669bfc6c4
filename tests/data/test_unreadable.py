"""Samples that cannot be read are replaced, the same way every time, and counted; too many are an error."""

import itertools

import pytest
import torch
from torchvision import tv_tensors

from sfa_ext import data
from sfa_ext.data.unreadable import Unreadable


class Partly(torch.utils.data.Dataset):
    """Numbered pictures, of which some cannot be read."""

    def __init__(self, bad, count=12):
        self.bad, self.count = set(bad), count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.bad:
            raise data.DataError(f"{index}.jpg: cannot be read")
        return {"image": tv_tensors.Image(torch.full((3, 8, 8), index, dtype=torch.uint8)), "name": index}


def batches(bad, count=6, start=0, workers=0):
    transform = data.train_transform(8)
    seeds = {"order_seed": 1, "augment_seed": 2}
    loader = data.loader(Partly(bad), transform, batch_size=4, start=start, workers=workers, **seeds)
    return list(itertools.islice(loader, count))


def test_only_the_places_of_unreadable_samples_change():
    good, partly = batches(()), batches((3, 7))
    for a, b in zip(good, partly, strict=True):
        for place in range(4):
            if a["name"][place] in (3, 7):
                assert b["name"][place] not in (3, 7)
            else:
                assert a["name"][place] == b["name"][place] and torch.equal(a["image"][place], b["image"][place])
        assert {3, 7} & set(a["name"]) == b.get("unreadable", {}).keys()
    assert all("unreadable" not in b for b in good)
    assert batches((3,))[0].get("unreadable", {3: "3.jpg: cannot be read"}) == {3: "3.jpg: cannot be read"}


def test_the_replacement_does_not_depend_on_what_was_met_before_or_on_processes():
    whole = batches((0, 3, 7), 6)
    for start, workers in ((2, 0), (4, 0), (1, 2)):
        for a, b in zip(whole[start:], batches((0, 3, 7), 6 - start, start, workers), strict=True):
            assert a["name"] == b["name"] and torch.equal(a["image"], b["image"])
            assert a.get("unreadable") == b.get("unreadable")


def test_replacements_are_spread_over_the_data_set():
    names = sum((b["name"] for b in batches([*range(1, 12, 2)], 60)), [])
    assert set(names) == set(range(0, 12, 2))
    assert max(map(names.count, set(names))) < 2 * min(map(names.count, set(names)))


def test_a_data_set_without_a_readable_sample_says_so():
    with pytest.raises(
        data.DataError, match=r"no sample can be read, 12 were tried; the last: \d+.jpg: cannot be read"
    ):
        batches(range(12))


def test_evaluation_leaves_them_out():
    seen = list(data.eval_loader(Partly((1, 4, 5)), batch_size=2))
    assert [b.get("name") for b in seen[:3]] == [[0], [2, 3], None]
    assert [b.get("unreadable", {}).keys() for b in seen[:3]] == [{1}, set(), {4, 5}]


def test_each_is_counted_once_and_too_many_are_an_error():
    found = Unreadable(count=100, share=0.02, known=[50])
    for positions in ({50: "old"}, {7: "7.jpg: broken"}, {7: "7.jpg: broken"}, {}):
        found.take({"unreadable": positions} if positions else {})
    assert found.positions == [7, 50] and len(found) == 2
    assert list(found.news()) == ["7.jpg: broken"] and list(found.news()) == []
    with pytest.raises(data.DataError, match="3 of 100 samples cannot be read, more than 2 % .data.bad_share.*8.jpg"):
        found.take({"unreadable": {8: "8.jpg: broken"}})


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match="bad_share must be a part of the data set between 0 and 1; got 2"):
        Unreadable(10, 2)
