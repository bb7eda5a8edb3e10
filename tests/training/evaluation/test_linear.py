"""The linear probe against float64 solvers that share no line with it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.optimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from augself_hub.errors import AugSelfError, UsageError
from training.evaluation.examples import Examples
from training.evaluation.linear import PENALTIES, linear_probe
from training.evaluation.softmax import TRIES, Bracket, SoftmaxRegression


def drawn(n, seed, width=16, classes=5, scale=1.0, noise=1.0):
    """Features as an encoder's: not negative, some units never fire, of unequal scale."""
    means = np.random.default_rng(0).standard_normal((classes, width))
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    y = (means[labels] + noise * random.standard_normal((n, width))) * np.linspace(0.1, 2, width)
    features = np.maximum(y, 0)
    features[:, -2:] = 0
    return (scale * features).astype(np.float32), labels


def objective(theta, x, labels, penalty):
    """In float64: value, gradient and Hessian of the protocol's sum, theta of shape (C, D + 1)."""
    classes = int(labels.max()) + 1
    x = np.concatenate([x.astype(np.float64), np.ones((len(x), 1))], axis=1)
    theta = theta.reshape(classes, -1)
    logits = x @ theta.T
    value = -log_softmax(logits, axis=1)[np.arange(len(x)), labels].sum()
    p = softmax(logits, axis=1)
    gradient = (p - np.eye(classes)[labels]).T @ x + 2 * penalty * theta
    spread = p[:, :, None] * np.eye(classes) - p[:, :, None] * p[:, None, :]
    hessian = np.einsum("nab,nd,ne->adbe", spread, x, x, optimize=True).reshape(theta.size, -1)
    hessian += 2 * penalty * np.eye(theta.size)
    return value + penalty * (theta**2).sum(), gradient.ravel(), hessian


def newton(x, labels, penalty, start):
    """theta of the optimum by scipy's trust region with the exact Hessian."""
    fun = {
        "fun": lambda t: objective(t, x, labels, penalty)[0],
        "jac": lambda t: objective(t, x, labels, penalty)[1],
        "hess": lambda t: objective(t, x, labels, penalty)[2],
    }
    return scipy.optimize.minimize(
        x0=start, method="trust-exact", options={"gtol": 1e-9, "maxiter": 500}, **fun
    ).x


PROBLEMS = {
    "overlapping classes": drawn(300, 1, noise=2.0),
    "separable": drawn(150, 1, noise=0.3),
    "fewer images than features": drawn(30, 1, width=40, classes=3),
    "small features": drawn(200, 1, scale=0.01),
    "large features": drawn(200, 1, scale=50.0, noise=2.0),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_penalty_is_solved_to_a_thousandth_an_image(problem):
    """Also: the bound that is given holds."""
    x, labels = PROBLEMS[problem]
    theta = np.zeros((labels.max() + 1) * (x.shape[1] + 1))
    for solution in SoftmaxRegression(x, labels, labels.max() + 1).path(PENALTIES):
        theta = newton(x, labels, solution.penalty, theta)
        best = objective(theta, x, labels, solution.penalty)[0]
        found = objective(solution.theta.numpy().T.astype(float), x, labels, solution.penalty)[0]
        excess = (found - best) / len(x)
        assert -1e-9 < excess < 1e-3, (solution.penalty, excess)
        assert excess <= solution.gap + 1e-6, (solution.penalty, excess)
        assert solution.objective == pytest.approx(found / len(x), abs=1e-5)


def nearly_constant(scale, offset, n=62, width=128, classes=4):
    """Features as a barely trained encoder's: a large mean, a small spread, fewer images than
    features."""
    random = np.random.default_rng(2)
    x = random.standard_normal((n, width)) / np.arange(1, width + 1)
    turn = np.linalg.qr(random.standard_normal((width, width)))[0]
    labels = np.arange(n) % classes
    return (scale * (x @ turn + offset * random.standard_normal(width))).astype(np.float32), labels


def histograms(scale, n=300, width=512, classes=6):
    """Most columns are 0, and fifty rows are there twice, with other labels."""
    random = np.random.default_rng(3)
    labels = random.integers(0, classes, n)
    colours = random.dirichlet(np.full(width, 0.02), classes)
    own = random.dirichlet(np.full(width, 0.01), n)
    x = np.array([random.multinomial(2304, p) for p in (colours[labels] + own) / 2]) / 2304
    x[50:100] = x[100:150]
    return (scale * x).astype(np.float32), labels


def repeated(n=200):
    """Every column three times."""
    x, labels = drawn(n, 1, noise=2.0)
    return np.tile(x, 3), labels


def rank_one(scale):
    random = np.random.default_rng(4)
    x = np.outer(random.standard_normal(150), random.standard_normal(50))
    return (scale * x).astype(np.float32), random.integers(0, 4, 150)


HARD = {
    f"spread {scale}, mean {offset} times as large": nearly_constant(scale, offset)
    for scale in (1e-3, 1.0, 1e3)
    for offset in (0.0, 1e3)
} | {
    "histograms": histograms(1.0),
    "histograms of counts": histograms(2304.0),
    "repeated columns": repeated(),
    "one image a class": nearly_constant(1.0, 10.0, n=40, classes=40),
    "rank one": rank_one(1.0),
    "rank one, large": rank_one(1e3),
    "constant": (np.full((60, 20), 3, np.float32), np.arange(60) % 3),
    "overlapping, far from 0": (1e5 + drawn(200, 1, scale=1e3, noise=2.0)[0], drawn(200, 1)[1]),
}


def below_the_optimum(theta, x, labels, penalty):
    """A float64 bound by duality that holds for every theta: sum of H(p) - |X^T (t - p)|^2 / 4w."""
    logits = x @ theta[:-1] + theta[-1]
    p, logs = softmax(logits, axis=1), log_softmax(logits, axis=1)
    pull = np.concatenate([x, np.ones((len(x), 1))], axis=1).T @ (np.eye(p.shape[1])[labels] - p)
    return max(0.0, -(p * logs).sum() - (pull**2).sum() / (4 * penalty))


@pytest.mark.parametrize("problem", HARD)
def test_every_penalty_is_certified_on_hard_features(problem):
    """Also by duality, in float64 and for the features as they were given, rounding included."""
    x, labels = HARD[problem]
    solutions = list(SoftmaxRegression(x, labels, labels.max() + 1).path(PENALTIES))
    assert [s.penalty for s in solutions] == sorted(PENALTIES, reverse=True)
    for solution in solutions:
        theta, penalty = solution.theta.numpy(), solution.penalty
        logits = x @ theta[:-1] + theta[-1]
        found = -log_softmax(logits, axis=1)[np.arange(len(x)), labels].sum()
        found += penalty * (theta**2).sum()
        excess = (found - below_the_optimum(theta, x, labels, penalty)) / len(x)
        assert solution.gap <= 1e-5
        assert excess <= 1e-4, (penalty, excess)


@pytest.mark.parametrize("penalty", [1e-2, 1.0, 100.0])
def test_scikit_learn_agrees(penalty):
    """Its C is 1 / (2 w); the bias is a feature of 1, so that it is regularised as well."""
    x, labels = PROBLEMS["overlapping classes"]
    wide = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    reference = LogisticRegression(
        C=1 / (2 * penalty), fit_intercept=False, tol=1e-8, max_iter=10_000
    ).fit(wide, labels)
    (solution,) = SoftmaxRegression(x, labels, 5).path([penalty])
    expected = objective(reference.coef_, x, labels, penalty)[0]
    found = objective(solution.theta.numpy().T.astype(float), x, labels, penalty)[0]
    assert found == pytest.approx(expected, abs=1e-3 * len(x))
    agree = (wide @ solution.theta.numpy()).argmax(axis=1) == reference.predict(wide)
    assert agree.mean() > 0.99


@pytest.fixture(scope="module")
def splits():
    """Overlapping classes that need a penalty in the middle: 200 to learn from, 2000 to test."""

    def split(n, seed, name):
        features, labels = drawn(n, seed, width=60, noise=2.5)
        return Examples(features, labels * 3 + 1, name)  # 1, 4, 7 ...: not every number is a class

    return split(200, 1, "train"), split(500, 2, "validation"), split(2000, 3, "test")


@pytest.fixture(scope="module")
def reference(splits):
    """The protocol by scikit-learn in float64: the validation scores, and the test answers."""

    def fitted(x, labels, penalty):
        wide = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
        model = LogisticRegression(C=1 / (2 * penalty), fit_intercept=False, tol=1e-6)
        return model.set_params(max_iter=20_000).fit(wide, labels)

    def answers(model, examples):
        return model.predict(np.concatenate([examples.features, np.ones((len(examples), 1))], 1))

    train, validation, test = splits
    models = [fitted(train.features, train.labels, w) for w in PENALTIES]
    scores = [100 * (answers(m, validation) == validation.labels).mean() for m in models]
    features = np.concatenate([train.features, validation.features])
    labels = np.concatenate([train.labels, validation.labels])
    chosen = fitted(features, labels, PENALTIES[np.argmax(scores)])
    return np.array(scores), answers(chosen, test)


def test_the_protocol_is_followed_to_its_end(splits, reference):
    """Each penalty's validation score, and the refit's answers to the test images."""
    scores, expected = reference
    found = linear_probe(*splits)
    assert np.abs(found.validation - scores).max() < 1.5
    assert found.validation.max() == pytest.approx(scores.max(), abs=0.3)
    accuracy = 100 * (expected == splits[2].labels).mean()
    assert found.accuracy == pytest.approx(accuracy, abs=0.3)
    assert (found.predicted == expected).mean() > 0.98
    assert found.accuracy == 100 * found.correct.mean()
    assert found.validation[found.penalty == PENALTIES] == found.validation.max()


def test_the_test_split_chooses_nothing(splits):
    """Other test labels, the same penalty and the same answers."""
    train, validation, test = splits
    swapped = Examples(test.features, np.roll(test.labels, 1), "test")
    first, second = (
        linear_probe(train, validation, t, penalties=[1, 100]) for t in (test, swapped)
    )
    assert first.penalty == second.penalty
    assert (first.predicted == second.predicted).all()
    assert first.accuracy > second.accuracy + 10


def test_the_metric_of_the_set_chooses_and_is_reported(splits):
    """A validation split of nearly one class: what is best for it alone is not best per class."""
    train, validation, test = splits
    common = np.flatnonzero((validation.labels == 1) | (np.arange(500) % 25 == 0))
    skewed = validation.at(common)
    top, mean = (linear_probe(train, skewed, test, m) for m in ("top-1", "mean per class"))
    assert (top.validation != mean.validation).any()
    recalls = [mean.correct[test.labels == c].mean() for c in np.unique(test.labels)]
    assert mean.accuracy == pytest.approx(100 * np.mean(recalls))


def test_what_cannot_be_probed_is_named(splits):
    train, validation, test = splits
    one = train.at(train.labels == 4)
    with pytest.raises(AugSelfError, match="train: every image is of class 4; at least two"):
        linear_probe(one, validation, test)
    with pytest.raises(AugSelfError, match="validation: class 7 has no image in train"):
        linear_probe(train.at(train.labels != 7), validation, test)
    unlabelled = np.where(np.arange(2000) < 3, -1, test.labels)
    with pytest.raises(AugSelfError, match="test: 3 of 2000 images have no label"):
        Examples(test.features, unlabelled, "test")
    broken = np.where(np.arange(2000)[:, None] == 5, np.nan, test.features)
    with pytest.raises(AugSelfError, match="test features: 1 of 2000 rows hold NaN"):
        Examples(broken, test.labels, "test")
    with pytest.raises(UsageError, match=r"width 60 \(train\) and 9 \(test\) are of different"):
        linear_probe(train, validation, Examples(test.features[:, :9], test.labels, "test"))
    with pytest.raises(AugSelfError, match="train: there is no image in this split"):
        train.at(slice(0))


LARGE = """
import resource, numpy as np
from training.evaluation.examples import Examples
from training.evaluation.linear import linear_probe
random = np.random.default_rng(0)
means = random.standard_normal((397, 2048), dtype=np.float32)
def split(n, name):
    labels = random.integers(0, 397, n)
    features = random.standard_normal((n, 2048), dtype=np.float32)
    features *= 6
    features += means[labels]
    return Examples(np.maximum(features, 0, out=features), labels, name)
train, validation, test = split(90_000, "train"), split(10_000, "validation"), split(2000, "test")
result = linear_probe(train, validation, test, penalties=[1000.0])
print(result.accuracy, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_large_problem_fits_into_12_gib():
    """SUN397 with a ResNet-50: 100,000 images, 2048 features, 397 classes, one penalty."""
    run = [sys.executable, "-c", LARGE]
    output = subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()
    assert float(output[0]) > 50
    assert float(output[1]) < 12, "GiB"


@pytest.mark.parametrize("power", [-14, -30, -110])
def test_tiny_features_are_classified_as_large_ones(power):
    """An untrained encoder's: of 1e-5 every penalty but the weakest gave the commonest class."""
    features, labels = drawn(200, 1)
    features /= np.sqrt((features.astype(float) ** 2).mean())  # root mean square 1
    tiny = np.ldexp(features, power)
    classes = int(labels.max()) + 1
    penalties = [1e-3, 1.0, 30.0]
    for small, plain in zip(
        SoftmaxRegression(tiny, labels, classes).path(penalties),
        SoftmaxRegression(features, labels, classes).path(penalties),
        strict=True,
    ):
        assert small.gap < 1e-5
        np.testing.assert_allclose(
            np.ldexp(small.theta[:-1], power), plain.theta[:-1], rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose(small.theta[-1], plain.theta[-1], rtol=1e-4, atol=1e-4)


def test_a_path_of_tiny_features_starts_where_it_is_told():
    """The refit on more images starts from theta of the features as they are."""
    features, labels = drawn(200, 1)
    problem = SoftmaxRegression(np.ldexp(features, -20), labels, int(labels.max()) + 1)
    (first,) = problem.path([1.0])
    (again,) = problem.path([1.0], first.theta)
    np.testing.assert_allclose(again.theta, first.theta, atol=1e-6 * first.theta.abs().max())


@pytest.mark.parametrize("end", [0.15, 0.3, 7.0, 3000.0])
@pytest.mark.parametrize("power", [0.5, 0.505, 1.0, 3.0])
def test_a_line_search_never_goes_to_and_fro(power, end):
    """On slopes sign(t - end) |t - end|^power Newton's steps jump over the end by
    1 / power - 1 times the distance: for a half they come back to where they were. One probe of a
    study stopped so."""
    bracket, length, start = Bracket(), 1.0, end**power
    for _ in range(TRIES):
        away = length - end
        if abs(away) ** power <= start / 2:
            return
        length = bracket.shortened(length, away > 0, length - away / power)
    pytest.fail(f"at {length} after {TRIES} lengths")


def test_features_of_zeros_have_the_commonest_class():
    zeros = Examples(np.zeros((40, 8), np.float32), np.arange(40) % 4 // 2 * 2)
    assert linear_probe(zeros, zeros, zeros).accuracy == 50.0
