"""Retrieval: the pictures of a gallery that are nearest to each query.

    augself extract PHOTOS --output gallery
    augself extract QUERIES --output queries
    python docs/examples/retrieval.py gallery queries

A picture's neighbours are named with the cosine of their features; both tables are of one model.
"""

from __future__ import annotations

import sys

import numpy as np

from augself_hub import FeatureTable


def main(gallery_folder: str, queries_folder: str, count: str = "5") -> None:
    gallery, queries = FeatureTable.read(gallery_folder), FeatureTable.read(queries_folder)
    if gallery.model != queries.model:
        sys.exit("the two tables come from two models: extract both with one")
    cosines = unit(queries.features) @ unit(gallery.features).T  # (queries, gallery)
    nearest = np.argsort(-cosines, axis=1)[:, : int(count)]
    for query, row, places in zip(queries.ids, cosines, nearest, strict=True):
        print(query)
        for place in places:
            print(f"  {row[place]:.3f}  {gallery.ids[place]}")


def unit(features: np.ndarray) -> np.ndarray:
    """(N, D) rows of length 1."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
