"""CITATION.cff says the version that there is, and the hosted CI runs what .ci/run runs."""

from pathlib import Path

import yaml

from augself_hub import __version__

ROOT = Path(__file__).parents[2]


def test_the_citation_names_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


def test_the_pages_that_show_a_version_show_this_one():
    """docs/server.md as the log says it, docs/upgrade.md what 0.1 is upgraded to."""
    for page, said in (
        ("server", f"(version {__version__})"),
        ("upgrade", f"itself {__version__}"),
    ):
        assert said in (ROOT / f"docs/{page}.md").read_text()


def test_the_hosted_ci_runs_the_script_and_nothing_else():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
