"""What is measured comes from the whole list, and no neighbour is taken for a stranger."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from augself_hub.errors import UsageError
from augself_hub.images.source import UNLABELED
from training.data.drawing import drawn_keys, halves, kin, strangers
from training.data.sources import Images


def listed(labels, groups=None) -> Images:
    names = [str(i) for i in range(len(labels))]
    return Images(names, labels, [str(c) for c in range(max(labels) + 1)], names, groups=groups)


def test_fewer_pairs_than_images_are_of_all_parts_of_the_list():
    """2,000 of 3,000 images in ten classes: of each about 200, where the head has seven classes."""
    keys = drawn_keys(3000, 2000, 0)
    assert {epoch for epoch, _ in keys} == {0} and len({index for _, index in keys}) == 2000
    counts = np.bincount([index // 300 for _, index in keys], minlength=10)
    assert counts.min() > 170 and counts.max() < 230  # 6.7 hypergeometric deviations apart
    halfway = np.bincount([index // 300 for _, index in keys[:1000]], minlength=10)
    assert halfway.min() > 70  # the same of any part of them


def test_more_pairs_than_images_are_of_every_image_alike():
    keys = drawn_keys(7, 17, 0)
    assert sorted(keys[:14]) == [(epoch, index) for epoch in (0, 1) for index in range(7)]
    assert {epoch for epoch, _ in keys[14:]} == {2}
    assert keys == drawn_keys(7, 17, 0) != drawn_keys(7, 17, 1)


def test_kin_are_of_one_group_else_of_one_class_else_alone():
    labels = [2, 2, UNLABELED, 5, UNLABELED]
    assert kin(listed(labels)).tolist() == [0, 0, 2, 1, 3]
    assert kin(listed(labels, groups=[9, 4, 4, 4, 9])).tolist() == [1, 0, 0, 0, 1]
    assert kin(listed([3, 3, 3])).tolist() == [0, 1, 2]  # one class says nothing
    chosen = listed([0] * 5, groups=[9, 4, 4, 4, 9]).at([4, 1])
    assert list(chosen.groups) == [9, 4]


def test_groups_are_what_names_have_in_common():
    names = ["a/beach-3.jpg", "a/beach-4.jpg", "b/beach-3.jpg", "alone.png", "wood-1.jpg"]
    images = dataclasses.replace(listed([0] * 5), names=names)
    assert list(images.grouped(r"(\w+)-\d+").groups) == [0, 0, 0, 5, 1]
    assert list(images.grouped(r"^.+(?=-)").groups) == [0, 0, 1, 6, 2]
    refused = {"(": "no regular expression", "jungle": "finds 0 groups", r"\.": "finds 1 groups"}
    for pattern, said in refused.items():
        with pytest.raises(UsageError, match=f"--group .* ?{said}"):
            images.grouped(pattern)


def test_of_few_images_none_calibrates():
    assert halves(listed([UNLABELED] * 39)) == ([], list(range(39)))


def test_halves_of_a_list_without_classes_are_drawn():
    one, other = halves(listed([UNLABELED] * 401))
    assert len(one) == 200 and sorted(one + other) == list(range(401))
    # Of neighbours every second pair is parted, as of any two; by even and odd rows all would be.
    assert 80 < sum(i + 1 in other for i in one) < 120


@pytest.mark.parametrize("what", ["classes", "groups"])
def test_a_class_or_group_is_in_one_half(what):
    number = np.repeat(np.arange(25), 8)
    groups = number if what == "groups" else None
    one, other = halves(listed([0] * 200 if groups is not None else number.tolist(), groups))
    assert not set(number[one]) & set(number[other])
    assert sorted(one + other) == list(range(200)) and 96 <= len(one) <= 104


def test_few_large_classes_are_in_both_halves_and_large_groups_in_one():
    labels = np.repeat([0, 1, 2], [60, 20, 20])
    one, other = halves(listed(labels.tolist()))
    assert set(labels[one]) == set(labels[other]) == {0, 1, 2}
    one, other = halves(listed([0] * 100, groups=labels))
    assert one and other and not set(labels[one]) & set(labels[other])


def test_strangers_are_of_another_class_each_as_likely():
    """By hand: of 60, 30 and 10 rows, one of the first has 3 in 4 to meet the second."""
    number = torch.tensor([1] * 30 + [0] * 60 + [2] * 10).repeat(100)
    rows, other = strangers(number, torch.Generator().manual_seed(0))
    assert rows.tolist() == list(range(len(number)))
    assert not (number[rows] == number[other]).any()
    of_first = number[other[number[rows] == 0]]
    assert float((of_first == 1).double().mean()) == pytest.approx(0.75, abs=0.02)
    assert len(other.unique()) > 5000  # of 10,000: one of them is not drawn with 37%


def test_without_a_stranger_there_is_none():
    rows, other = strangers(torch.zeros(4, dtype=torch.long), torch.Generator())
    assert len(rows) == len(other) == 0
    rows, other = strangers(torch.zeros(0, dtype=torch.long), torch.Generator())
    assert len(rows) == len(other) == 0
