"""The study: what is paired differs in lambda only, and what is reported is what was run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import set_seed

from augself_hub.atomic import write_json
from augself_hub.augmentations.sampling import draw
from augself_hub.augmentations.spec import Policy
from augself_hub.errors import UsageError
from augself_hub.modeling.encoders import build_encoder
from augself_hub.modeling.objective import AugSelfLoss
from augself_hub.preprocess import Preprocessing
from research.study import references, report
from research.study.plan import (
    HISTOGRAM,
    TRAINED,
    Arm,
    Comparison,
    Endpoint,
    Measure,
    Phase,
    Plan,
    Run,
    Selection,
    read_plan,
)
from research.study.power import power, spread
from research.study.records import Pairs, candidates, read_all
from research.study.runs import settings_of
from research.study.shuffled import ShuffledTargets
from training.run.pretraining import pretrain
from training.run.settings import Settings

STUDIES = Path(__file__).parents[2] / "research/study"
PLAN = STUDIES / "plan.toml"
PRIMARY = Comparison("Does it help?", ("confirmation", "plain"), ("confirmation", "augself"))


def a_plan(**changes: Any) -> Plan:
    """Two arms, tuned with two seeds at three rates, confirmed with three seeds."""
    both = ["plain", "augself"]
    given = {
        "settings": {},
        "arms": {"plain": Arm(), "augself": Arm(), "shuffled": Arm("shuffled", "augself")},
        "measures": {"all": [Measure(["linear"], ["final/*"])]},
        "phases": [
            Phase("tuning", both, [100, 101], "all", [0.03, 0.1, 0.3]),
            Phase("confirmation", both, [0, 1, 2], "all"),
        ],
        "comparisons": [PRIMARY],
    }
    return Plan(**{**given, **changes})


def a_record(arm: str, seed: int, answers: dict[str, str], **changes: Any) -> dict[str, Any]:
    """A record of a confirmation run; answers: set -> a digit for each test image."""
    results = [
        {
            "task": "linear probe",
            "set": f"final/{name}",
            "metric": "accuracy",
            "value": 100 * digits.count("1") / len(digits),
            "trivial": 25.0,
            "correct": digits,
        }
        for name, digits in answers.items()
    ]
    return {
        "name": f"confirmation-{arm}-seed{seed}",
        "phase": "confirmation",
        "arm": arm,
        "kind": "pretrained",
        "seed": seed,
        "rate": 0.1,
        "command": f"augself pretrain --seed {seed}",
        "results": results,
        "cpu_seconds": {"making": 100, "measuring": 20},
        **changes,
    }


def records(gains: list[int], other: str = "1100") -> list[dict[str, Any]]:
    """Of each seed a pair: of ten images of flags 4 and 4 + gain are right, of cards always two."""
    found = []
    for seed, gain in enumerate(gains):
        found.append(a_record("plain", seed, {"cards": "1100", "flags": "1" * 4 + "0" * 6}))
        right = "1" * (4 + gain) + "0" * (6 - gain)
        found.append(a_record("augself", seed, {"cards": other, "flags": right}))
    return found


@pytest.mark.parametrize("method", ["simclr", pytest.param("simsiam", marks=pytest.mark.slow)])
def test_paired_runs_differ_in_lambda_only(method, photo_folder, tmp_path, monkeypatch):
    """Heads that weigh next to nothing change no bit of the encoder: same start, order, views."""
    monkeypatch.setattr("training.run.publishing.find_spec", lambda name: None)  # no graphs
    trained = []
    for name, weights in (("without", {}), ("with", {"crop": 1e-30, "color": 1e-30})):
        given = {"method": method, "augself": weights, "epochs": 1, "monitor_every": 0}
        small = {"encoder": "resnet18-w16", "size": 32, "batch_size": 8, "workers": 0}
        settings = Settings(str(photo_folder), tmp_path / name, report_to=(), **small, **given)
        trained.append(load_file(pretrain(settings) / "model.safetensors"))
    first, second = trained
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_shuffled_targets_are_those_of_another_pair():
    """The loss of features whose targets were moved on by one, with the same heads."""
    policy, weights = Policy(size=32), {"crop": 1.0, "color": 1.0}
    torch.manual_seed(0)
    true = AugSelfLoss(8, weights, policy)
    shuffled = ShuffledTargets(8, weights, policy)
    shuffled.load_state_dict(true.state_dict())
    ya, yb = torch.randn(2, 6, 8)
    wa, wb = (_tensors(draw(policy, (0, 0, np.arange(6), view), 64, 64)) for view in (0, 1))
    moved = [{name: value[[5, 0, 1, 2, 3, 4]] for name, value in w.items()} for w in (wa, wb)]
    expected, _ = true(ya, yb, *moved)
    found, _ = shuffled(ya, yb, wa, wb)
    assert torch.equal(found, expected)
    assert not torch.equal(found, true(ya, yb, wa, wb)[0])


def _tensors(parameters: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in parameters.items()}


def test_an_arm_keeps_its_best_rate():
    """By the mean over seeds; a diverged run loses, and a control takes the rate of its arm."""
    scores = {("plain", 0.03): 40, ("plain", 0.1): 50, ("plain", 0.3): -np.inf}
    scores |= {("augself", 0.03): 60, ("augself", 0.1): 60, ("augself", 0.3): 59}
    plan = a_plan()

    def score(run: Run) -> float:
        return scores[run.arm, run.rate] + (run.seed - 100.5)

    assert [plan.rate(arm, score) for arm in plan.arms] == [0.1, 0.03, 0.03]
    runs = list(plan.runs(plan.phase("confirmation"), score))
    assert [run.name for run in runs[:2]] == [
        "confirmation-plain-seed0-lr0.1",
        "confirmation-augself-seed0-lr0.03",
    ]


def test_an_arm_that_diverged_at_every_rate_has_none():
    with pytest.raises(UsageError, match="'plain' diverged at every rate of tuning: give lower"):
        a_plan().rate("plain", lambda run: -np.inf)


def test_a_plan_that_names_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="unknown arm 'agself'"):
        a_plan(phases=[Phase("confirmation", ["agself"], [0], "all")])
    with pytest.raises(UsageError, match="unknown measures 'al'"):
        a_plan(phases=[Phase("confirmation", ["plain"], [0], "al")])
    with pytest.raises(UsageError, match="no phase tunes 'augself'"):
        a_plan(phases=[]).rate("shuffled", lambda run: 0)
    path = tmp_path / "plan.toml"
    path.write_text("[settings]\n")
    with pytest.raises(UsageError, match="not a plan"):
        read_plan(path)


def test_the_plan_is_the_protocol(tmp_path):
    """61 runs, four made anew; the arms differ in lambda and rate; tuning sees no final set."""
    plan = read_plan(PLAN)
    runs = [run for phase in plan.phases for run in plan.runs(phase, lambda run: -run.rate)]
    assert len(runs) == len({run.name for run in runs}) == 65
    for run in runs:
        settings_of(plan, run, tmp_path, tmp_path)
    for phase in plan.phases:
        for measure in plan.measures[phase.measures]:
            assert all(s.startswith("development/") for s in measure.sets) == bool(phase.rates)
    for pair in (("plain", "augself"), ("simsiam-plain", "simsiam-augself")):
        plain, augself = (plan.arms[name].settings for name in pair)
        assert plain == {**augself, "augself": {}}
        assert augself["augself"] == {"crop": 1.0, "color": 1.0}
    assert plan.phase("confirmation").seeds == list(range(8))
    named = {arm for phase in plan.phases for arm in phase.arms}
    assert named == set(plan.arms) and plan.arms["shuffled"].kind in TRAINED


def test_the_second_plan_is_its_protocol(tmp_path):
    """29 records of 24 trainings; one rate for both arms; ten pairs, one after the other.

    No run with AugSelf is measured on a candidate before the final sets are chosen.
    """
    plan = read_plan(STUDIES / "plan-2.toml")
    runs = [run for phase in plan.phases for run in plan.runs(phase, lambda run: run.rate)]
    assert len(runs) == len({run.name for run in runs}) == 29
    trained = {run.folder for run in runs if plan.arms[run.arm].kind in TRAINED}
    assert len(trained) == 24
    paired = [run for run in runs if run.phase == "confirmation"]
    assert [(r.arm, r.seed, r.rate) for r in paired] == [
        (arm, seed, 0.1) for seed in range(10) for arm in ("plain", "augself")
    ]
    a, b = (settings_of(plan, run, tmp_path, tmp_path) for run in paired[:2])
    assert a == dataclasses.replace(b, output=a.output, augself={})
    assert (b.epochs, b.size, b.encoder, b.batch_size) == (40, 48, "resnet18-w16", 128)
    assert b.augself == {"crop": 1.0, "color": 1.0} and "bf16" not in b.arguments
    before = runs[: runs.index(paired[0])]
    assert {r.arm for r in before if r.phase == "selection"} == {"random", "plain"}
    assert {r.seed for r in before} == {100}
    assert [m.sets for m in plan.measures["development"]] == [["development/*"]]
    assert [(e.task, e.no_loss) for e in plan.endpoints] == [
        ("few-shot", False),
        ("linear probe", False),
    ]
    assert plan.hidden and plan.selection.points == 3.0 and plan.selection.images == 300


def test_a_common_rate_is_the_best_of_both_arms():
    """By hand: 0.03 has 45 and 60, 0.1 has 50 and 54: 52.5 against 52."""
    both = ["plain", "augself"]
    scores = {("plain", 0.03): 45, ("plain", 0.1): 50, ("augself", 0.03): 60, ("augself", 0.1): 54}
    check = Phase("check", both, [100], "all", [0.03, 0.1], common=True)
    plan = a_plan(phases=[check, Phase("confirmation", both, [0], "all")])

    def rates() -> list[float | None]:
        return [plan.rate(arm, lambda run: scores[run.arm, run.rate]) for arm in both]

    assert rates() == [0.03, 0.03]
    scores["augself", 0.03] = -np.inf
    assert rates() == [0.1, 0.1]


def test_a_selection_keeps_what_a_baseline_learns():
    """At least 3 points above the untrained encoder on 10 images at least."""
    selection = Selection("selection", "plain", "random", points=3.0, images=10)
    answers = {"learned": "1" * 8 + "0" * 2, "not": "1" * 5 + "0" * 5, "small": "11111"}
    start = {"learned": "1" * 5 + "0" * 5, "not": "1" * 5 + "0" * 5, "small": "10000"}
    runs = [a_record("plain", 100, answers, phase="selection")]
    assert candidates(selection, runs) == {}
    runs.append(a_record("random", 100, start, phase="selection"))
    found = candidates(selection, runs)
    assert {name: c.chosen for name, c in found.items()} == {
        "final/learned": True,
        "final/not": False,
        "final/small": False,
    }
    assert (found["final/learned"].untrained, found["final/learned"].baseline) == (50.0, 80.0)


def test_power_is_that_of_the_paired_t_test():
    """0.803 for ten pairs and a difference of one standard deviation (Cohen's tables: .80)."""
    assert power(1.0, 1.0, 10) == pytest.approx(0.803, abs=5e-4)
    random = np.random.default_rng(0).normal(0.5, 1.0, (20_000, 16))
    t = random.mean(axis=1) / random.std(axis=1, ddof=1) * 4
    assert power(0.5, 1.0, 16) == pytest.approx((t > 2.131450).mean(), abs=0.01)


def test_a_spread_leaves_sets_out_and_shrinks_with_their_number():
    """Without cards the differences are 10, 20 and 30: sd 10 of one set, 5 of four."""
    found = spread(PRIMARY, records([1, 2, 3], other="0000"), "linear probe", ["cards"])
    assert (found.mean, found.deviation, found.sets, found.pairs) == (20.0, 10.0, 1, 3)
    assert found.with_sets(4) == 5.0


def test_an_unfinished_hidden_study_shows_no_final_set(tmp_path):
    """How many pairs are in, and nothing else of them; all of it when the last is in."""
    plan = a_plan(hidden=True, title="The second study")
    two = _reported(records([1, 2]), tmp_path, plan)
    assert "**Running: 2 of 3 pairs are in.**" in two
    runs = (tmp_path / "records/runs.md").read_text()
    assert "| confirmation-plain-seed1 | - (final) | 2.0 |" in runs
    assert "flags" not in two + runs
    lost = [a_record(arm, 2, {}, diverged="x") for arm in ("plain", "augself")]
    more = [Phase("confirmation", ["plain", "augself"], [0, 1, 2, 3], "all")]
    four = dataclasses.replace(plan, phases=more)
    assert "**Running: 3 of 4 pairs are in.**" in _reported(lost, tmp_path, four)
    three = _reported(records([1, 2, 3]), tmp_path, plan)
    assert "Running" not in three and "| flags | 40.0 | 60.0 | +20.0 |" in three
    assert three.count("<!-- second study: begin -->") == 1


@pytest.mark.parametrize(
    ("gains", "told"),
    [
        ([2, 2, 3], ["The bar of few-shot is met", "A null result of linear probe"]),
        ([2, -3, 2], ["A null result of few-shot", "an endpoint before linear probe did not meet"]),
    ],
)
def test_endpoints_are_asked_in_order(gains, told, tmp_path):
    """The linear probe's differences are 5, -15 and 10; few-shot's the gains, over both shots."""
    found = records([1, -3, 2], other="1100")
    for record, gain in zip(found, [g for some in gains for g in (0, some)], strict=True):
        for shots in (1, 5):
            shot = {"task": "few-shot", "set": "final/flags", "metric": "accuracy", "shots": shots}
            record["results"].append({**shot, "value": 30.0 + shots + gain, "trivial": 20.0})
    endpoints = [Endpoint("few-shot", "few-shot"), Endpoint("linear probe", "linear probe")]
    text = _reported(found, tmp_path, a_plan(endpoints=endpoints))
    assert all(part in text for part in told)
    assert f"| flags, 5-shot | 35.0 | {35 + np.mean(gains):.1f} |" in text


def test_the_endpoint_is_the_mean_over_sets_paired_by_seed():
    """Differences of 10, 20, 30 points on one of two sets: 10 on average, by hand."""
    pairs = Pairs.of(PRIMARY, records([1, 2, 3]))
    endpoint = pairs.on_all("final")
    assert (endpoint.without, endpoint.with_) == (45.0, 55.0)
    assert endpoint.difference == pytest.approx(10.0)
    half = 4.302653 * 5 / 3**0.5  # t(0.975, 2) x standard deviation / sqrt(n)
    assert endpoint.interval == pytest.approx((10 - half, 10 + half), abs=1e-4)


def test_the_bootstrap_over_images_keeps_the_seeds():
    """Where every image gains the same there is nothing to be unsure of."""
    flags = [a_record("plain", 0, {"flags": "0000"}), a_record("augself", 0, {"flags": "1111"})]
    assert Pairs.of(PRIMARY, flags).over_images(["flags"]) == (100.0, 100.0)
    low, high = Pairs.of(PRIMARY, records([3, 3, 3])).over_images(["flags"])
    assert 0 <= low < 30 < high <= 70


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (records([2, 2, 3]), "The bar is met"),
        (records([3, -3, 0]), "A null result**: 3 pairs, and the mean's interval does not lie"),
        (records([5, 5, 6], other="1000"), "A null result"),
        (records([2, 2]), "Not finished: 2 of 3 pairs"),
        (
            [*records([2, 2]), *(a_record(a, 2, {}, diverged="x") for a in ("plain", "augself"))],
            "No claim: confirmation-plain-seed2, confirmation-augself-seed2 diverged",
        ),
    ],
)
def test_the_report_claims_what_the_protocol_allows(found, verdict, tmp_path):
    """A gain with one set wholly below zero is null; missing or diverged pairs allow no claim."""
    assert verdict in _reported(found, tmp_path)


def _reported(found: list[dict[str, Any]], folder: Path, plan: Plan | None = None) -> str:
    place = folder / "records"
    place.mkdir(exist_ok=True)
    for record in found:
        (place / f"{record['name']}.json").write_text(json.dumps(record))
    report.write(plan or a_plan(), place, folder / "results.md")
    return (folder / "results.md").read_text()


def test_the_report_keeps_what_stands_around_it(tmp_path):
    """Its section is replaced; every run stands beside the records with its command."""
    (tmp_path / "results.md").write_text("# Results\n\nBefore.\n")
    first = _reported(records([1, 2]), tmp_path)
    assert first.startswith("# Results\n\nBefore.\n\n<!-- study: begin -->")
    (tmp_path / "results.md").write_text(first + "\nAfter.\n")
    second = _reported(records([1, 2, 3]), tmp_path)
    assert second.count("## The study") == 1 and second.endswith("After.\n")
    assert "](records/runs.md)" in second
    runs = (tmp_path / "records/runs.md").read_text()
    for seed in range(3):
        assert f"confirmation-plain-seed{seed}" in runs
        assert f"augself pretrain --seed {seed}\n" in runs
    assert (tmp_path / "records/differences.svg").is_file()
    assert "](records/differences.svg)" in second


def test_a_rate_at_which_one_run_diverged_is_told(tmp_path):
    good = [{"task": "linear probe", "set": "development/x", "value": 50.0}]
    tuning = {"phase": "tuning", "rate": 0.3}
    runs = [
        a_record("plain", 100, {}, name="t-100", results=good, **tuning),
        a_record("plain", 101, {}, name="t-101", results=[], diverged="the loss", **tuning),
    ]
    text = _reported(runs, tmp_path)
    assert "| plain | 0.3 | diverged | 2 |" in text
    assert "| plain | 0.1 | - | 0 |" in text


def test_a_record_that_was_not_finished_is_none(tmp_path, monkeypatch):
    """Killed before its file has its place: what lies there is not read as a record."""

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for name in ("rename", "replace", "unlink"):  # nothing tidies up after a kill
        monkeypatch.setattr(Path, name, killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "confirmation-plain-seed0.json", {"name": "half"})
    assert list(tmp_path.iterdir())
    assert read_all(tmp_path) == []


def test_what_knows_nothing_stands_beside_its_own_task(tmp_path):
    """The linear probe's commonest class has 25% here; of few-shot tasks it is one way in five."""
    histogram = a_record("colours", 0, {"flags": "1100"}, phase="references", kind=HISTOGRAM)
    shot = {"task": "few-shot", "set": "final/flags", "shots": 1, "value": 40.0, "trivial": 20.0}
    histogram["results"] += [shot, {**histogram["results"][0], "set": "generated/flags"}]
    histogram["results"][-1]["trivial"] = 10.0
    reported = _reported([*records([1]), histogram], tmp_path)
    assert "| colours | 50.0 | 50.0 |\n| commonest class | 25.0 | 25.0 |" in reported


def test_a_histogram_counts_colours():
    """Half black and half white: two of 125 bins, each with the square root of a half."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2] = 255
    for gray in (False, True):
        found = references.histogram(pixels, gray)
        assert found.shape == (125,)
        assert found[[0, -1]] == pytest.approx([0.5**0.5] * 2)
        assert found.sum() == pytest.approx(2 * 0.5**0.5)


def test_an_untrained_encoder_sees_images_as_its_run_would(tmp_path, monkeypatch):
    """The same weights as a run starts from, and the same normalisation."""
    monkeypatch.setattr(references, "export_folder", lambda folder: None)
    given = {"encoder": "resnet18-w16", "size": 32, "normalization": "stl10"}
    references.untrained(Settings("photos", tmp_path / "run", seed=3, **given), tmp_path / "model")
    assert Preprocessing.from_folder(tmp_path / "model").mean == (0.43, 0.42, 0.39)
    set_seed(3)
    start = build_encoder("resnet18-w16", 32).network.state_dict()
    saved = load_file(tmp_path / "model/model.safetensors")
    assert all(torch.equal(value, start[name]) for name, value in saved.items())
