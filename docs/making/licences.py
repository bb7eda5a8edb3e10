"""Writes the licences of everything `pip install 'augself-hub[EXTRA]'` brings, as installed here:

    python docs/making/licences.py all docs/licences.md

Only what is installed can be asked, so install the extra first. A package whose licence is neither
among ALLOWED nor among KNOWN stops it by name: read the licence, then add it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from augself_hub.errors import AugSelfError

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
OURS = "augself-hub"
# What may be installed beside Apache-2.0: none asks anything of a program that only imports it.
ALLOWED = re.compile(
    r"0BSD|3-Clause BSD License|Apache([ -]2\.0)?( License)?|Apache Software License|"
    r"Apache License, Version 2\.0|"
    r"BSD([ -]\d-Clause)?( License)?|BSL-1\.0|CC0-1\.0|CNRI-Python|DFSG approved|"
    r"ISC( License ISCL)?|MIT([ -]License|-0|-CMU)?|PSF-2\.0|Python Software Foundation License|"
    r"MPL-2\.0|Mozilla Public License 2\.0 MPL 2\.0|The Unlicense Unlicense|Unlicense|"
    r"ZPL-2\.1|Zlib|Apache-2\.0 WITH LLVM-exception"
)
NVIDIA = "NVIDIA's own: may be used and passed on with programs; brought by torch"
KNOWN = re.compile(r"nvidia-.*|cuda-.*")


def main(extra: str, page: Path) -> None:
    entries = installed()
    rows = [
        f"| {name} | {entries[name]['Version']} | {licence_of(entries[name])} |"
        for name in packages(extra)
    ]
    page.write_text(PAGE.format(extra=extra, count=len(rows), table="\n".join(rows)))


PAGE = """# Licences

AugSelf Hub is under Apache-2.0 and contains no code of other projects. These {count} packages are
what `pip install 'augself-hub[{extra}]'` brought on Linux. All may be used beside Apache-2.0; the
libraries of NVIDIA, which torch brings, under terms of their own. None is part of what we publish.
`python docs/making/licences.py {extra} docs/licences.md` writes this page and refuses a licence
that nobody has looked at. Pictures have their licences beside them.

| package | version | licence |
|---|---|---|
{table}
"""


def packages(extra: str) -> list[str]:
    """Every package an extra needs, in order of their names."""
    found: dict[str, set[str]] = {}
    waiting = [Requirement(f"{OURS}[{extra}]")]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in found and wanted.extras <= found[name]:
            continue
        found.setdefault(name, set()).update(wanted.extras)
        waiting += needed(name, found[name])
    return sorted(set(found) - {OURS})


def needed(name: str, extras: set[str]) -> list[Requirement]:
    """What a package asks for on this machine; of ours pyproject.toml says so."""
    if name == OURS:
        project = tomllib.loads(PROJECT.read_text())["project"]
        texts = [*project["dependencies"]]
        texts += [text for e in extras for text in project["optional-dependencies"][e]]
        asked = [Requirement(text) for text in texts]
        return [r for r in asked if r.marker is None or r.marker.evaluate()]
    try:
        asked = [Requirement(text) for text in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        raise AugSelfError(f"{name} is not installed: pip install '.[all]' first") from None
    contexts = [{"extra": extra} for extra in ("", *extras)]
    return [r for r in asked if r.marker is None or any(map(r.marker.evaluate, contexts))]


def licence_of(entry: dict[str, str]) -> str:
    """The licence of one of `installed`.

    Raises:
        AugSelfError: one that nobody has looked at.
    """
    licence = entry["License"]
    if KNOWN.fullmatch(canonicalize_name(entry["Name"])):
        return NVIDIA
    parts = re.split(r"; | AND | OR ", re.sub(r"[()]", "", licence))
    if not all(map(ALLOWED.fullmatch, parts)):
        raise AugSelfError(f"{entry['Name']}: nobody has looked at its licence {licence!r}")
    return licence


def installed() -> dict[str, dict[str, str]]:
    """Name -> Name, Version and License, as pip-licenses reads the packages' metadata."""
    command = [sys.executable, "-m", "piplicenses", "--format=json", "--with-system"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {canonicalize_name(entry["Name"]): entry for entry in json.loads(done.stdout)}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
