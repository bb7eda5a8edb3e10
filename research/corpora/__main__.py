"""python -m research.corpora PACKAGES OUTPUT [first|second]"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from augself_hub.errors import AugSelfError
from research.corpora.building import MANIFEST, build
from research.corpora.first import FIRST
from research.corpora.second import SECOND

TABLES = {"first": FIRST, "second": SECOND}  # by the study


def main(arguments: list[str]) -> None:
    """Build the collections, print what they hold and the sha256 of it all."""
    packages, output, study = [*arguments, "first"][:3] if len(arguments) in (2, 3) else [""] * 3
    if study not in TABLES:
        sys.exit(f"usage: python -m research.corpora PACKAGES OUTPUT [{'|'.join(TABLES)}]")
    try:
        counts = build(Path(packages), Path(output), TABLES[study])
    except (AugSelfError, OSError) as error:
        sys.exit(f"error: {error}")
    for part, count in sorted(counts.items()):
        print(f"{part:32}{count:6}")
    print(json.loads(Path(output, MANIFEST).read_text())["sha256"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1:])
