"""The embedded model: candidates, the choice, the final pair, its folder. See plan.toml.

    python -m research.embedded budget --corpus CORPUS
    python -m research.embedded run OUTPUT --corpus CORPUS --photographs PHOTOGRAPHS \\
        --records RECORDS

The first measures what a candidate costs an image and says how the hours are shared out. The second
does everything, step by step; killed, it goes on where it was. research/embedded-model.md has what
decides, and what is in OUTPUT and RECORDS.
"""
