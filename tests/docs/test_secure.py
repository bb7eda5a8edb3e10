"""docs/secure.md names a test for each promise; every one of them is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/secure.md").read_text()
PROMISES = [
    row.strip("|").split(" | ")
    for row in PAGE.splitlines()
    if row.startswith("| ") and not row.startswith("| promise")
]
NAMED = sorted(set(re.findall(r"`((?:tests|benchmarks)/[\w/]+\.py(?:::\w+)?)`", PAGE)))


def test_every_promise_names_a_test():
    assert len(PROMISES) > 20
    assert [promise for promise, held_by in PROMISES if "`tests/" not in held_by] == []


@pytest.mark.parametrize("named", NAMED)
def test_what_is_named_is_there(named):
    path, _, function = named.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not function or function in defined
    assert path.startswith("benchmarks/") or any(name.startswith("test_") for name in defined)
