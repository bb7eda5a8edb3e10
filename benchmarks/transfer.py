"""The linear probe and few-shot against the plain ways of computing the same numbers.

    python benchmarks/transfer.py [--rounds 3] [--quick]

Prints one markdown table. The plain linear probe is torch's L-BFGS as the protocol was first run:
strong Wolfe, 5000 iterations, tolerance_grad 1e-10, tolerance_change 0, warm start from weak to
strong. It takes minutes and runs once; ours runs `--rounds` times, the median counts. Plain
few-shot is scikit-learn's liblinear, one class against the rest, on the same tasks.

The features are drawn: class means and noise with a falling spectrum, turned and cut off at zero,
as an encoder's last ReLU leaves them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import sklearn
import torch
import torch.nn.functional as F
from findings import Findings, machine
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from training.evaluation.examples import Examples, top_1
from training.evaluation.fewshot import draw_tasks, few_shot
from training.evaluation.linear import PENALTIES, linear_probe
from training.evaluation.softmax import SoftmaxRegression

Row = tuple[str, float, float, str]  # what, our seconds, the plain way's, compared


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Of ours.")
@click.option("--quick", is_flag=True, help="A small problem: does it run at all?")
@click.option("--json", "path", type=Path, help="Keep what was found for bench.py.")
def main(rounds: int, quick: bool, path: Path | None) -> None:
    """Measure and print the table."""
    n, width, classes, tasks = (200, 32, 6, 50) if quick else (4000, 512, 80, 2000)
    splits = [drawn(size, width, classes, name) for name, size in sizes(n)]
    rows = [linear(splits, rounds)]
    rows += [few(splits[2], shots, tasks, rounds) for shots in (1, 5)]
    found = Findings("times faster than the plain way")
    threads, version = torch.get_num_threads(), sklearn.__version__
    found.say(
        f"{machine()}, scikit-learn {version}; {threads} threads; ours: median of {rounds} "
        "rounds, plain: once"
    )
    cells = [
        (name, f"{ours:.2f} s", f"{plain:.1f} s", f"{plain / ours:.1f}", compared)
        for name, ours, plain, compared in rows
    ]
    found.table(["what", "ours", "plain", "times faster", "compared"], cells)
    found.chart({f"ours, {name}": [plain / ours] for name, ours, plain, _ in rows})
    found.write(path)


def sizes(n: int) -> list[tuple[str, int]]:
    return [("train", n), ("validation", n // 4), ("test", n)]


def drawn(n: int, width: int, classes: int, name: str) -> Examples:
    """(n, width) features of `classes` classes, the same classes for every name."""
    shared = np.random.default_rng(0)
    scale = np.arange(1, width + 1) ** -0.5
    means = 0.15 * shared.standard_normal((classes, width)) * scale
    turn = np.linalg.qr(shared.standard_normal((width, width)))[0]
    random = np.random.default_rng(list(name.encode()))
    labels = random.permutation(np.arange(n) % classes)
    y = (means[labels] + random.standard_normal((n, width)) * scale) @ turn
    return Examples(np.maximum(y * (width / (scale**2).sum()) ** 0.5, 0), labels, name)


# -- Linear probe ----------------------------------------------------------------------------------


def linear(splits: list[Examples], rounds: int) -> Row:
    """The whole protocol, and how far each penalty's objective is from the better of both."""
    train, validation, test = splits
    seconds, ours = timed(lambda: linear_probe(train, validation, test), rounds)
    slow, (accuracy, penalty, found) = timed(lambda: plain_probe(train, validation, test), 1)
    classes = int(train.labels.max()) + 1
    path = SoftmaxRegression(train.features, train.labels, classes).path(PENALTIES)
    mine = [objective(train, s.theta, s.penalty) for s in path][::-1]
    best = np.minimum(mine, found)
    compared = (
        f"accuracy {ours.accuracy:.2f} at w {ours.penalty:.3g}, plain {accuracy:.2f} at w "
        f"{penalty:.3g}; objective an image above the better of both: {max(mine - best):.1e} at "
        f"most, plain {max(found - best):.1e}"
    )
    n, d = train.features.shape
    name = f"linear probe, {len(PENALTIES)} strengths, N={n} D={d} C={classes}"
    return name, seconds, slow, compared


def objective(examples: Examples, theta: torch.Tensor, penalty: float) -> float:
    """The protocol's sum in float64 for theta (D + 1, C), an image."""
    theta = theta.double()
    logits = torch.from_numpy(examples.features).double() @ theta[:-1] + theta[-1]
    loss = F.cross_entropy(logits, torch.from_numpy(examples.labels), reduction="sum")
    return float(loss + penalty * theta.square().sum()) / len(examples)


def plain_probe(
    train: Examples, validation: Examples, test: Examples
) -> tuple[float, float, list[float]]:
    """Test accuracy, the penalty chosen, and the objective at every penalty, weak to strong."""
    layer = torch.nn.Linear(train.features.shape[1], int(train.labels.max()) + 1)
    scores, objectives = [], []
    for penalty in PENALTIES:
        plain_fit(layer, train, penalty)
        scores.append(top_1(validation.labels, answers(layer, validation)))
        theta = torch.cat([layer.weight.detach().T, layer.bias.detach()[None]])
        objectives.append(objective(train, theta, penalty))
    penalty = float(PENALTIES[np.argmax(scores)])
    plain_fit(layer, Examples.concatenate(train, validation, "both"), penalty)
    return top_1(test.labels, answers(layer, test)), penalty, objectives


def plain_fit(layer: torch.nn.Linear, examples: Examples, penalty: float) -> None:
    x, t = torch.from_numpy(examples.features), torch.from_numpy(examples.labels)
    optimizer = torch.optim.LBFGS(
        layer.parameters(),
        max_iter=5000,
        tolerance_grad=1e-10,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), t, reduction="sum")
        loss = loss + penalty * sum(p.square().sum() for p in layer.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)


@torch.no_grad()
def answers(layer: torch.nn.Linear, examples: Examples) -> np.ndarray:
    return layer(torch.from_numpy(examples.features)).argmax(dim=1).numpy()


# -- Few-shot --------------------------------------------------------------------------------------


def few(examples: Examples, shots: int, tasks: int, rounds: int) -> Row:
    """All tasks by ours and by scikit-learn."""
    seconds, ours = timed(lambda: few_shot(examples, 5, shots, tasks=tasks), rounds)
    drawn_tasks = draw_tasks(examples, 5, shots, 16, tasks, seed=0)
    slow, plain = timed(lambda: [liblinear(examples, task, shots) for task in drawn_tasks], 1)
    margin = 1.96 * float(np.std(plain, ddof=1)) / tasks**0.5
    compared = (
        f"{ours.mean:.2f} ± {ours.margin_of_error:.2f}, plain {np.mean(plain):.2f} ± {margin:.2f}; "
        f"{int((ours.accuracies != plain).sum())} tasks differ"
    )
    name = f"{tasks} tasks of 5-way {shots}-shot, D={examples.features.shape[1]}"
    return name, seconds, slow, compared


def liblinear(examples: Examples, task: np.ndarray, shots: int) -> float:
    """Percent right of one task (ways, shots + queries)."""
    known, asked = task[:, :shots].ravel(), task[:, shots:].ravel()
    model = OneVsRestClassifier(LogisticRegression(solver="liblinear"))
    model.fit(examples.features[known], examples.labels[known])
    return top_1(examples.labels[asked], model.predict(examples.features[asked]))


# -- Measuring -------------------------------------------------------------------------------------


def timed(job: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Median seconds, and what the job returned."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        result = job()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), result


if __name__ == "__main__":
    main()
