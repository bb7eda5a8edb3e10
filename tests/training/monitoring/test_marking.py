"""Marks of a folder that has none are measured on images that no run trains on."""

from __future__ import annotations

import pytest
from PIL import Image

from augself_hub.errors import AugSelfError
from training.monitoring import marking


def test_of_a_source_with_splits_the_validation_images_are_read(tiny_model, tmp_path, monkeypatch):
    """As --held-out takes them: a run on the same source has seen the others."""
    for name in ("train/a", "val/a", "test/a"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    seen = []

    def none(model, views, pairs):
        seen.extend(views.images.names)
        return []

    monkeypatch.setattr(marking, "held_out_pairs", none)
    with pytest.raises(AugSelfError, match="has no heads to measure, or"):
        marking.mark(tiny_model, str(tmp_path))
    assert seen == ["val/a/0.png"]


def test_images_are_grouped_as_was_said(tiny_model, photo_folder, monkeypatch):
    seen = []
    monkeypatch.setattr(marking, "held_out_pairs", lambda m, v, p: seen.append(v.images) or [])
    for group in (None, r"(\d)\d\."):
        with pytest.raises(AugSelfError, match="has no heads to measure, or"):
            marking.mark(tiny_model, str(photo_folder), group=group)
    alone, grouped = seen
    assert alone.groups is None
    assert len(set(grouped.groups)) == len({name[-6] for name in grouped.names}) > 1
