"""Commands and public names, imported when they are first used.

What can go wrong then is said in one line: a package that was not installed, by the extra it comes
with, and a file of the user's that has the name of one of our packages and is found first.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from augself_hub.errors import AugSelfError, MissingExtra

ROOT = Path(__file__).parents[1]  # where augself_hub, training and serving lie side by side


def load(module: str, name: str, extra: str) -> Any:
    """The attribute `name` of a module of ours.

    Raises:
        MissingExtra: a package that `extra` brings is not installed.
        AugSelfError: another file has the place of one of our packages, or of one they need.
    """
    _refuse_other(module.partition(".")[0])
    with needs(extra):
        return getattr(importlib.import_module(module), name)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports: what is not installed is an error that names the extra it comes with."""
    try:
        yield
    except ImportError as error:
        raise explained(error, extra) from error


def _refuse_other(package: str) -> None:
    """`python -m` and torchrun look into the working folder first."""
    found = importlib.util.find_spec(package)
    if found is None:
        raise AugSelfError(f"the package {package} is missing: install augself-hub again")
    places = [Path(place) for place in found.submodule_search_locations or ()]
    if ROOT / package not in [place.resolve() for place in places]:
        file = next(iter([found.origin, *places]))
        raise AugSelfError(
            f"{file} stands in the way of the package {package} of augself-hub: rename it, or run "
            "from another folder"
        )


def explained(error: ImportError, extra: str) -> ImportError | AugSelfError:
    """What to tell the user of an import that failed; the error itself where it is a fault here."""
    here = [*Path.cwd().glob("*.py"), *Path.cwd().glob("*/__init__.py")]
    for file in here:
        package = file.stem if file.parent == Path.cwd() else file.parent.name
        ours = ROOT in (file.parent, file.parent.parent)
        if package in sys.modules and package in packages_distributions() and not ours:
            return AugSelfError(
                f"{file} stands in the way of the package {package}: rename it, or run from "
                "another folder"
            )
    package = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package and not installed(package):
        return MissingExtra(package, extra)
    return error


def installed(package: str) -> bool:
    """Whether it could be imported; None in sys.modules forbids it, which is a ValueError."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
