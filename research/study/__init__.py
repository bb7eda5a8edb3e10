"""Studies of what AugSelf does, as two cores can repeat them and as the paper ran it.

plan.toml and plan-2.toml carry out research/protocol.md and research/protocol-2.md; stl10.toml and
imagenet100.toml are for those who have the paper's data.

    python -m research.study run PLAN OUTPUT --corpus CORPUS --records RECORDS
    python -m research.study report PLAN RECORDS RESULTS.md
    python -m research.study power PLAN RECORDS --sets N
    python -m research.study beside MODEL TWIN WORK --corpus CORPUS --recipe NAME

The first command runs what a plan asks for and is not in RECORDS yet: two runs side by side, a
thread each. Killed, it goes on where it was. A run leaves one small JSON file in RECORDS, and the
report is computed from these files alone. The third says what a next study could find, from the
spread of this one. The fourth is of a single pair that is to be published: it
adds its results to the model's card.
"""
