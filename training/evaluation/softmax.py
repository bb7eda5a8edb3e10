"""Softmax regression with an L2 penalty of many weights w: the solver of the linear probe.

    f_w(theta) = sum over i of -log softmax([x_i, 1] theta)[t_i] + w |theta|^2

Newton's method, its equations solved by conjugate gradients (Nocedal & Wright, algorithm 7.1):

- features are projected onto the principal axes of [X, 1] once. There the Hessian is near the
  Kronecker product of the axes' spreads lambda and A, plus 2w; A (C, C) is the mean of
  diag(p) - p p^T. Its inverse preconditions, so that a handful of products is enough: also for
  features that are nearly collinear, and for separable classes, whose Hessian all but vanishes;
- penalties are solved from strong to weak, each from where the two before point to;
- logits are linear in theta, so that a line search costs no matrix product.

Features whose root mean square is below TINY, as an untrained or badly scaled encoder's may be, are
solved for at a scale of about 1, and theta is given for them as they are: at their own scale every
usual penalty would leave nothing but the commonest class.

The certificate: f_w is 2w-strongly convex, so that

    f_w(theta) - min f_w <= |gradient|^2 / 4w,

which is brought below TOLERANCE for each image, and below a hundredth of f_w where that is less:
separable classes have next to no f_w at weak penalties, and theta would be wherever the solver came
from. In float32, and where its rounding hides the way down (large features, overlapping classes,
weak penalties) from there on in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from augself_hub.errors import AugSelfError

TOLERANCE = 1e-5  # of f_w / N
TINY = 1e-4
FINEST = 1e-7  # likewise, however small f_w is
STEPS = 30  # for one penalty and precision; one to five are usual
PRODUCTS = 200  # with the Hessian for one step; two to twenty are usual
TRIES = 25  # lengths of one step; one or two are usual
ROWS = 4096  # of features in float64 at a time


@dataclass(frozen=True)
class Solution:
    """theta (D + 1, C) float64, bias last; f_w / N, and a bound on its excess over the optimum, of
    tiny features as they are scaled. penalty: w."""

    penalty: float
    theta: Tensor
    objective: float
    gap: float


@dataclass(frozen=True)
class Point:
    """Where the solver stands, in principal axes: theta (r, C), logits and p (N, C), the sum of
    cross-entropies and its gradient (r, C), both without the penalty."""

    theta: Tensor
    logits: Tensor
    p: Tensor
    loss: float
    gradient: Tensor


class SoftmaxRegression:
    """The problem of one training set, for every penalty.

    Args:
        features: (N, D) float32.
        targets: (N,) integers from 0 to classes - 1.
    """

    def __init__(self, features: np.ndarray, targets: np.ndarray, classes: int) -> None:
        self.features = torch.from_numpy(features)
        self.scale = scale_of(self.features)
        self.axes, self.spread = principal_axes(self.features, self.scale)  # (D + 1, r), (r, 1)
        self.x = self._projected(torch.float32)  # (N, r)
        self.targets = torch.from_numpy(targets)[:, None]
        self.classes = classes

    def _projected(self, dtype: torch.dtype) -> Tensor:
        """In float64 first: a small axis beside a large one keeps its digits in float32 too."""
        x = torch.empty(len(self.features), self.axes.shape[1], dtype=dtype)
        for into, part in zip(x.split(ROWS), self.features.split(ROWS), strict=True):
            into.copy_(with_ones(part, self.scale) @ self.axes)
        return x

    def path(self, penalties: Iterable[float], start: Tensor | None = None) -> Iterator[Solution]:
        """Solve strong to weak, whatever the order given.

        Args:
            start: (D + 1, C) float64, near the strongest solution; zeros by default.

        Raises:
            AugSelfError: a solution cannot be certified.
        """
        zero = self.axes.new_zeros(self.axes.shape[1], self.classes)
        own = torch.full((len(self.axes), 1), self.scale, dtype=torch.float64)
        own[-1] = 1  # theta of the features as they are is `own` times that of the scaled ones
        before = theta = zero if start is None else balanced(self.axes.T @ (start / own))
        for penalty in sorted(map(float, penalties), reverse=True):
            # Where float32's rounding of p alone puts more than a quarter into the certificate.
            rounding = torch.finfo(torch.float32).eps ** 2 * float(self.spread.sum())
            too_rough = rounding > penalty * TOLERANCE * len(self.x)
            if self.x.dtype == torch.float32 and too_rough:
                self.x = self._projected(torch.float64)
            point, gap = self._solve(2 * theta - before, penalty)
            before, theta = theta, point.theta.double()
            value = self._value(point.loss, theta, penalty)
            yield Solution(
                penalty, own * (self.axes @ theta), value / len(self.x), gap / len(self.x)
            )

    def _value(self, loss: float, theta: Tensor, w: float) -> float:
        return loss + w * dot(theta, theta)

    def _solve(self, theta: Tensor, w: float) -> tuple[Point, float]:
        theta = theta.to(self.x.dtype)
        point: Point | None = self._point(theta, self.x @ theta)
        for _ in range(STEPS):
            if point is None:
                break
            theta, gradient = point.theta, point.gradient + 2 * w * point.theta
            gap = dot(gradient, gradient) / (4 * w)
            value, n = self._value(point.loss, theta, w), len(self.x)
            allowed = min(TOLERANCE * n, max(0.01 * value, FINEST * n))
            if gap <= allowed:
                return point, gap
            point = self._step(point, gradient, w, allowed)
        return self._solve_exactly(theta, w, gap)

    def _solve_exactly(self, theta: Tensor, w: float, gap: float) -> tuple[Point, float]:
        """Go on in float64, with this penalty and with all that follow."""
        if self.x.dtype == torch.float64:
            raise AugSelfError(
                f"the linear probe at penalty {w:.3g} is {gap / len(self.x):.2g} an image from "
                "its optimum even in float64: the features span too many orders of magnitude, so "
                "leave linear out of --tasks"
            )
        self.x = self._projected(torch.float64)
        return self._solve(theta, w)

    def _point(self, theta: Tensor, logits: Tensor) -> Point:
        loss, p = self._softmax(logits)
        wrong = p.scatter_add(1, self.targets, -torch.ones_like(self.targets, dtype=p.dtype))
        return Point(theta, logits, p, loss, balanced(self.x.T @ wrong))

    def _softmax(self, logits: Tensor) -> tuple[float, Tensor]:
        """The sum of the cross-entropies, and p. The sum is in float64."""
        logs = logits.log_softmax(dim=1)
        return -float(logs.gather(1, self.targets).sum(dtype=torch.float64)), logs.exp_()

    def _step(self, point: Point, gradient: Tensor, w: float, allowed: float) -> Point | None:
        """Along Newton's direction to where the slope has halved and the value has not risen.

        The full length where rounding hides the slope; None where it hides the way down as well.
        """
        direction = self._direction(point.p, gradient, w, allowed)
        change = self.x @ direction  # (N, C), of the logits for length 1
        value, slope = self._value(point.loss, point.theta, w), dot(gradient, direction)
        rounding = 10 * value * torch.finfo(change.dtype).eps
        enough = max(-slope / 2, rounding if slope < 0 else 0.0)
        bracket, length = Bracket(), 1.0
        for _ in range(TRIES):
            theta = point.theta + length * direction
            logits = torch.add(point.logits, change, alpha=length)
            loss, p = self._softmax(logits)
            rise = dot(p, change) - float(change.gather(1, self.targets).sum(dtype=torch.float64))
            at = rise + 2 * w * dot(theta, direction)  # the slope there
            fell = self._value(loss, theta, w) <= value + rounding
            if fell and abs(at) <= enough:
                return self._point(theta, logits)
            mean = (p * change).sum(dim=1)
            curvature = (
                dot(p * change, change) - dot(mean, mean) + 2 * w * dot(direction, direction)
            )
            newton = length - at / max(curvature, 1e-30)
            length = bracket.shortened(length, not fell or at >= 0, newton)
        return None

    def _direction(self, p: Tensor, gradient: Tensor, w: float, allowed: float) -> Tensor:
        """Newton's direction, to a tenth of the gradient or to half of what is allowed."""
        values, basis = torch.linalg.eigh(mean_curvature(p).double())  # (C,), (C, C)
        scale, basis = (self.spread * values.clamp(min=0) + 2 * w).to(p.dtype), basis.to(p.dtype)
        enough = max(0.01 * dot(gradient, gradient), 2 * w * allowed)
        direction, residual = torch.zeros_like(gradient), -gradient
        conjugate, size = torch.zeros_like(gradient), float("inf")
        for _ in range(PRODUCTS):
            z = balanced((residual @ basis / scale) @ basis.T)  # preconditioned
            size, before = dot(residual, z), size
            conjugate = z + (size / before) * conjugate
            product = self._hessian_times(conjugate, p) + 2 * w * conjugate
            step = size / dot(conjugate, product)
            direction, residual = direction + step * conjugate, residual - step * product
            if dot(residual, residual) <= enough:
                break
        return direction

    def _hessian_times(self, v: Tensor, p: Tensor) -> Tensor:
        """The cross-entropy's Hessian times (r, C)."""
        change = self.x @ v
        change -= (p * change).sum(dim=1, keepdim=True)
        return balanced(self.x.T @ change.mul_(p))


def dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))


class Bracket:
    """Where along a direction the slope, which rises, changes its sign.

    Newton's method on its own may go to and fro between two lengths for ever: where a step leaves
    more than half of the bracket, the next one halves it (Numerical Recipes, section 9.4).
    """

    def __init__(self) -> None:
        self.low, self.high = 0.0, float("inf")

    def shortened(self, length: float, too_far: bool, newton: float) -> float:
        """The length to try next; at most ten times this one, which was too far or too short."""
        before = self.high - self.low
        self.low, self.high = (self.low, length) if too_far else (length, self.high)
        if self.high == float("inf"):
            return min(max(newton, 2 * self.low), 10 * self.low)
        halved = self.high - self.low <= before / 2
        middle = (self.low + self.high) / 2
        return newton if halved and self.low < newton < self.high else middle


def balanced(theta: Tensor) -> Tensor:
    """Without the rows' means: 0 in exact arithmetic, and no curvature but 2w ends their drift."""
    return theta - theta.mean(dim=1, keepdim=True)


def mean_curvature(p: Tensor) -> Tensor:
    """The mean of diag(p) - p p^T; its rows add up to 0, which spares 1 - p its rounding."""
    shared = (p.T @ p / len(p)).fill_diagonal_(0)
    return shared.sum(dim=1).diag() - shared


def scale_of(features: Tensor) -> float:
    """The power of two that brings tiny features to about 1; 1 for all others, zeros among them."""
    squares = sum((float(part.double().square().sum()) for part in features.split(ROWS)), 0.0)
    rms = (squares / max(features.numel(), 1)) ** 0.5
    return 2.0 ** -round(math.log2(rms)) if 0 < rms < TINY else 1.0


def with_ones(features: Tensor, scale: float) -> Tensor:
    """[scale X, 1] in float64."""
    return torch.cat([features.double() * scale, features.new_ones(len(features), 1)], dim=1)


def principal_axes(features: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Axes (D + 1, r) that span the rows of [scale X, 1], X (N, D), and its spread (r, 1) along
    them; r = min(N, D + 1); both float64."""
    basis = torch.eye(features.shape[1] + 1, dtype=torch.float64)
    if len(features) < len(basis):
        basis = torch.linalg.qr(with_ones(features, scale).T)[0]
    inner = basis.new_zeros(basis.shape[1], basis.shape[1])
    for part in features.split(ROWS):
        projected = with_ones(part, scale) @ basis
        inner += projected.T @ projected
    spread, axes = torch.linalg.eigh(inner)
    return basis @ axes, spread.clamp(min=0)[:, None]
