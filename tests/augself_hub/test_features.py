"""FeatureTable as a table: rows, slices, other libraries' frames, neighbours worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas
import polars
import pytest

from augself_hub import FeatureTable
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.features import DifferenceTable

FEATURES = np.array([[3, 0], [0, 2], [1, 1], [-1, 0]], np.float32)


@pytest.fixture(params=["float32", "float16"])
def table(request) -> FeatureTable:
    return FeatureTable(
        ids=["a/1.jpg", "b/2.jpg", "a/3.jpg", "4.jpg"],
        labels=np.array([0, 1, 0, -1], np.int32),
        label_names=["a", "b"],
        splits=["train", "test", "train", None],
        features=FEATURES.astype(request.param),
        model="0123456789abcdef",
        normalized=False,
        errors=(("5.jpg", "damaged"),),
    )


def test_a_row(table):
    assert len(table) == 4
    row = table[1]
    assert (row.id, row.label, row.split) == ("b/2.jpg", "b", "test")
    assert row.features.tolist() == [0, 2]
    assert table[-1].label is None and table[np.int64(-1)].id == "4.jpg"
    assert [row.id for row in table] == table.ids
    with pytest.raises(IndexError):
        table[4]


@pytest.mark.parametrize(
    ("which", "ids"),
    [
        (slice(1, 3), ["b/2.jpg", "a/3.jpg"]),
        (slice(None, None, -2), ["4.jpg", "b/2.jpg"]),
        ([2, 0], ["a/3.jpg", "a/1.jpg"]),
        (np.array([True, False, False, True]), ["a/1.jpg", "4.jpg"]),
        ([], []),
    ],
)
def test_parts_are_tables(table, which, ids):
    part = table[which]
    assert part.ids == ids and len(part) == len(ids)
    rows = [table.ids.index(name) for name in ids]
    assert np.array_equal(part.features, table.features[rows])
    assert part.labels.tolist() == table.labels[rows].tolist()
    assert part.splits == [table.splits[row] for row in rows]


def test_frames_of_other_libraries(table):
    pandas_frame, polars_frame = table.to_pandas(), table.to_polars()
    assert isinstance(pandas_frame, pandas.DataFrame) and isinstance(polars_frame, polars.DataFrame)
    for labels in (pandas_frame["label"].tolist(), polars_frame["label"].to_list()):
        assert [None if pandas.isna(label) else label for label in labels] == ["a", "b", "a", None]
    assert np.array_equal(np.stack(pandas_frame["features"]), table.features)
    assert np.array_equal(polars_frame["features"].to_numpy(), table.features)
    assert table.to_arrow().schema.field("features").type.list_size == 2


def test_neighbours_by_hand(table):
    numbers, cosines = table.nearest(np.array([1.0, 0.5]), k=3)
    assert numbers.tolist() == [2, 0, 1]
    assert cosines == pytest.approx([1.5 / 2.5**0.5, 2 / 5**0.5, 1 / 5**0.5], abs=1e-3)
    numbers, cosines = table.nearest(np.array([[1.0, 0.5], [-1.0, 0.0]]), k=1)
    assert numbers.tolist() == [[2], [3]] and cosines.shape == (2, 1)


def test_a_row_is_not_its_own_neighbour(table):
    assert table.nearest(0, k=9)[0].tolist() == [2, 1, 3]
    assert table.nearest(table[2:3], k=1)[0].tolist() == [[2]]  # a table's rows may be


def test_neighbours_are_those_of_scikit_learn():
    from sklearn.neighbors import NearestNeighbors

    random = np.random.default_rng(0)
    features, queries = random.normal(size=(40_000, 8)), random.normal(size=(300, 8))
    table = FeatureTable(
        ["x"] * len(features), np.zeros(len(features), int), ["x"], [None] * len(features),
        features.astype(np.float32), "m", False,
    )  # fmt: skip
    numbers, cosines = table.nearest(queries.astype(np.float32), k=4)
    peer = NearestNeighbors(n_neighbors=4, metric="cosine", algorithm="brute").fit(features)
    distances, wanted = peer.kneighbors(queries)
    assert np.array_equal(numbers, wanted)
    assert cosines == pytest.approx(1 - distances, abs=1e-5)


def test_what_cannot_be_compared_is_refused(table):
    for wrong in (np.zeros(3), np.zeros((2, 2, 2)), np.zeros(())):
        with pytest.raises(UsageError, match=r"takes \(Q, 2\) features"):
            table.nearest(wrong)
    with pytest.raises(UsageError, match="k=0"):
        table.nearest(0, k=0)
    with pytest.raises(AugSelfError, match="extract both with one model"):
        table.nearest(FeatureTable(**{**vars(table), "model": "f" * 16}))


def test_it_is_shown_in_a_line_and_in_a_notebook(table):
    kind = table.features.dtype
    assert repr(table) == (
        f"FeatureTable(4 images, 2 features ({kind}), 2 classes, train 2, test 1, 1 unreadable, "
        "model 0123456789ab)"
    )
    html = table._repr_html_()
    assert html.count("<tr>") == 5 and "<td>b/2.jpg</td><td>b</td><td>test</td>" in html


def test_differences_are_frames_too():
    values = {"color_hue": np.array([0.1, np.nan], np.float32),
              "rot_quarter_turns": np.array([[0.7, 0.1, 0.1, 0.1], [np.nan] * 4])}  # fmt: skip
    table = DifferenceTable(["a", "c"], ["b", "d"], values, dict.fromkeys(values, ""), "m")
    assert (
        len(table) == 2 and repr(table) == "DifferenceTable(2 pairs, color_hue, rot_quarter_turns)"
    )
    assert table.to_polars()["color_hue"].to_list()[1] is None
    assert table.to_arrow()["rot_quarter_turns"].to_pylist()[1] is None
    assert table.to_pandas()["a"].tolist() == ["a", "c"]


@pytest.mark.parametrize(
    ("queries", "k", "words"),
    [
        (np.array([np.nan, 1], np.float32), 1, "query 0 has features that are no numbers"),
        (np.array([[1, 2], [np.inf, 1]]), 1, "query 1 has features that are no numbers"),
        (0, 1.5, r"whole number k, not k=1\.5"),
        (0, True, "whole number k, not k=True"),
        (True, 1, "takes a row or features"),
    ],
)
def test_what_has_no_neighbours_is_refused(table, queries, k, words):
    """The row of an image that `features(on_error="skip")` could not read had the first rows."""
    with pytest.raises(UsageError, match=words):
        table.nearest(queries, k)


def test_no_tables_are_no_table():
    with pytest.raises(UsageError, match="there is no table to concatenate"):
        FeatureTable.concatenate([])
