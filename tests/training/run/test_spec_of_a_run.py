"""What a run's heads are measured in: the shapes of its pictures, kept for its resumes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from augself_hub import AugSelfLoss
from augself_hub.augmentations.sampling import draw
from augself_hub.augmentations.spec import Policy, Spec
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.modeling.views import stack_parameters
from augself_hub.preprocess import Preprocessing
from training.methods.method import Method, MethodOutput
from training.run import pretraining
from training.run.objective import Pretraining
from training.run.pretraining import pretrain
from training.run.settings import policy_of


class Begun(Exception):
    """In place of training."""


@pytest.fixture
def begin(monkeypatch, small_run):
    """Begins (or resumes) a run up to its first step -> the spec its heads would be trained by."""

    def stopped(self, **_):
        raise Begun(self.model.augself.spec)

    monkeypatch.setattr(pretraining.AugSelfTrainer, "train", stopped)

    def call(resume=False, **changes):
        settings = small_run(**{"encoder": "resnet18-w16", **changes})
        with pytest.raises(Begun) as begun:
            pretrain(settings, resume)
        return settings, begun.value.args[0]

    return call


@pytest.fixture
def wide(tmp_path):
    """24 pictures of 4:3 on their side, by their EXIF."""
    folder = tmp_path / "wide"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for n in range(24):
        noise = np.random.default_rng(n).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{n}.jpg", exif=exif)
    return folder


def written(settings):
    return json.loads((settings.output / "settings.json").read_text())


def deviations(spec):
    return [d.std for d in spec.heads["crop"].dimensions]


def test_targets_are_standardised_for_the_run_s_own_pictures(begin, wide):
    """40 x 30 pixels shown upright as 30 x 40."""
    settings, spec = begin(data=str(wide))
    expected = AugSelfLoss(4, {"crop": 1}, Policy(16), sizes=[(30, 40)]).spec
    assert deviations(spec) == deviations(expected)
    assert Spec.from_json(json.dumps(written(settings)["spec"])) == spec


def test_a_resume_takes_the_spec_the_run_saved(begin):
    settings, spec = begin()
    changed = written(settings)
    changed["spec"]["heads"]["crop"]["dimensions"][1]["std"] = 0.5
    (settings.output / "settings.json").write_text(json.dumps(changed))
    _, resumed = begin(resume=True)
    assert (deviations(resumed)[1], deviations(spec)[1]) == (0.5, pytest.approx(0.21, abs=0.05))


def without_what_0_1_did_not_write(settings):
    before = {k: v for k, v in written(settings).items() if k not in ("spec", "schedule_by")}
    (settings.output / "settings.json").write_text(json.dumps(before))


def test_a_run_of_0_1_goes_on_with_the_deviations_of_squares(begin, wide):
    settings, _ = begin(data=str(wide))
    without_what_0_1_did_not_write(settings)
    _, resumed = begin(resume=True, data=str(wide))
    assert deviations(resumed) == deviations(AugSelfLoss(4, {"crop": 1}, Policy(16)).spec)


def test_a_paper_run_of_0_1_is_not_resumed_with_another_x(begin, small_run):
    settings, _ = begin(convention="paper")
    without_what_0_1_did_not_write(settings)
    with pytest.raises(AugSelfError, match=r"begun by version 0\.1, whose target of x"):
        pretrain(small_run(convention="paper"), resume=True)


class Seen(Method):
    """Keeps the views it is given."""

    def forward(self, x1, x2):
        self.x1, self.x2 = x1, x2
        y = torch.zeros(len(x1), 4)
        return MethodOutput(y.sum(), y, y)


def views(policy, crops, w1, w2):
    method = Seen(torch.nn.Identity())
    loss = AugSelfLoss(4, {}, policy)
    Pretraining(method, loss, Preprocessing(16, (0, 0, 0), (1, 1, 1)))(crops, w1, w2, None)
    return method.x1, method.x2


def test_one_order_of_the_jitter_a_batch_and_view():
    policy = Policy(size=16, order="batch", color=1.0)
    crops = torch.randint(0, 256, (24, 16, 16, 3), dtype=torch.uint8)
    w1, w2 = (
        stack_parameters([draw(policy, (0, 0, np.arange(12), view), 64, 64)]) for view in (0, 1)
    )
    assert len({tuple(order) for order in w1["order"].tolist()}) > 3
    assert w1["order"][0].tolist() != w2["order"][0].tolist()
    a, b = ({**w, "order": w["order"][0].repeat(12, 1)} for w in (w1, w2))
    expected = views(Policy(size=16, color=1.0), crops, a, b)
    for found, wanted in zip(views(policy, crops, w1, w2), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    own = views(Policy(size=16, color=1.0), crops, w1, w2)
    assert not torch.allclose(own[0], expected[0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policy": {"saturate": "rgb"}}, "policy saturate='rgb': use luma or hsv"),
        ({"policy": {"order": 1}}, "policy order=1: use sample or batch"),
        ({"schedule_by": "batch"}, "--schedule-by"),
    ],
)
def test_words_that_are_not_to_be_chosen_are_refused(small_run, changes, said):
    with pytest.raises(UsageError, match=said):
        pretrain(small_run(**changes))


def test_words_of_a_policy_are_taken(small_run):
    policy = policy_of(small_run(policy={"saturate": "hsv", "order": "batch"}))
    assert (policy.saturate, policy.order) == ("hsv", "batch")
