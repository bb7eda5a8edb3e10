"""What research/ says of the studies is what the records say, read again."""

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
    there = ROOT / "research/records" / records
    if not list(there.glob("*.json")):
        pytest.skip("no run has ended yet")
    here = shutil.copytree(there, tmp_path / "records" / records)
    (here / "runs.md").unlink()
    page = tmp_path / "results.md"
    page.write_text((ROOT / "research/results.md").read_text())
    report.write(read_plan(ROOT / "research/study" / plan), here, page)
    assert page.read_text() == (ROOT / "research/results.md").read_text()
    for made in ("runs.md", *(p.name for p in there.glob("*.svg"))):
        assert (here / made).read_text() == (there / made).read_text(), made


def test_the_second_protocol_has_the_power_that_is_computed():
    """From the first study's records."""
    plan, records = FIRST
    found = table(
        read_plan(ROOT / "research/study" / plan).comparisons[0],
        read_all(ROOT / "research/records" / records),
        ("cards", "heights"),
        sets=8,
    )
    page = (ROOT / "research/protocol-2.md").read_text()
    (told,) = re.findall("<!-- power: begin -->\n(.*)<!-- power: end -->", page, re.DOTALL)
    assert told == f"{found}\n"
