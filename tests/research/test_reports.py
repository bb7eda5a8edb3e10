"""What docs/ say of the studies is what the records say, read again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from research.study import report
from research.study.plan import read_plan
from research.study.power import table
from research.study.records import read_all

ROOT = Path(__file__).parents[2]
FIRST = ("plan.toml", "study")


@pytest.mark.parametrize(("plan", "records"), [FIRST, ("plan-2.toml", "study-2")])
def test_results_are_computed_from_the_records(plan, records, tmp_path):
    """Reporting again changes nothing of the page; the chart is drawn from the same numbers."""
    if not list((ROOT / "docs" / records).glob("*.json")):
        pytest.skip("no run has ended yet")
    shutil.copytree(ROOT / "docs" / records, tmp_path / records)
    page = tmp_path / "results.md"
    page.write_text((ROOT / "docs/results.md").read_text())
    report.write(read_plan(ROOT / "research/study" / plan), tmp_path / records, page)
    assert page.read_text() == (ROOT / "docs/results.md").read_text()


def test_the_second_protocol_has_the_power_that_is_computed():
    """From the first study's records."""
    plan, records = FIRST
    found = table(
        read_plan(ROOT / "research/study" / plan).comparisons[0],
        read_all(ROOT / "docs" / records),
        ("cards", "heights"),
        sets=8,
    )
    page = (ROOT / "docs/protocol-2.md").read_text()
    (told,) = re.findall("<!-- power: begin -->\n(.*)<!-- power: end -->", page, re.DOTALL)
    assert told == f"{found}\n"
