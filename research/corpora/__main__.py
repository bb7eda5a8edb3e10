"""python -m research.corpora PACKAGES OUTPUT"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from augself_hub.errors import AugSelfError
from research.corpora.building import MANIFEST, build


def main(arguments: list[str]) -> None:
    """Build the collections, print what they hold and the sha256 of it all."""
    if len(arguments) != 2:
        sys.exit("usage: python -m research.corpora PACKAGES OUTPUT")
    packages, output = map(Path, arguments)
    try:
        counts = build(packages, output)
    except (AugSelfError, OSError) as error:
        sys.exit(f"error: {error}")
    for part, count in sorted(counts.items()):
        print(f"{part:32}{count:6}")
    print(json.loads((output / MANIFEST).read_text())["sha256"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1:])
