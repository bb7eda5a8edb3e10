"""Linear probe: how well frozen features tell your classes apart, by scikit-learn.

    augself extract PHOTOS --output features
    python docs/examples/linear_probe.py features

The sub-folders of PHOTOS are the classes; a quarter of the pictures is kept for the test.
Pictures of no class are left out. For the paper's protocol, which also chooses the strength of the
regularisation: augself evaluate.
"""

from __future__ import annotations

import sys

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from augself_hub import FeatureTable


def main(folder: str) -> None:
    table = FeatureTable.read(folder)
    table = table[table.labels >= 0]
    if not len(table):
        sys.exit(f"no picture of {folder} has a label: sort them into a sub-folder for each class")
    x, test_x, y, test_y = train_test_split(
        table.features, table.labels, test_size=0.25, stratify=table.labels, random_state=0
    )
    answers = LogisticRegression(max_iter=1000).fit(x, y).predict(test_x)
    commonest = np.bincount(test_y).max() / len(test_y)
    print(f"{len(test_y)} test images: {np.mean(answers == test_y):.1%} right", end=", ")
    print(f"{commonest:.1%} by always naming the commonest class")
    for label, name in enumerate(table.label_names):
        of_it = test_y == label
        print(f"{name:20} {np.sum(answers[of_it] == label):4} of {of_it.sum()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
