"""OpenVINO: what it is told, what it took, and whether it answers as the plain provider does.

First through sessions that only say they are OpenVINO's, then, where ONNX Runtime has it, through
real ones. Its wheel has the same files as the others', so the last test makes an environment of its
own and runs this file there. All use the embedded model: no torch is needed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import onnxruntime
import pytest

from augself_hub import Encoder
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.preprocess import load as read
from serving.inference import provider_options, providers
from serving.inference.engine import LANE_IMAGES, Engine, graphs_of

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "augself_hub/pretrained"
OPENVINO = "OpenVINOExecutionProvider"
HERE = OPENVINO in onnxruntime.get_available_providers()
needs_openvino = pytest.mark.skipif(
    not HERE, reason="no OpenVINO: pip install 'augself-hub[openvino]' in an environment of its own"
)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    paths = sorted((ROOT / "serving/demo/examples").glob("*.jpg"))
    return [read(path, 64) for path in paths]


# -- Through sessions that say they are OpenVINO's -------------------------------------------------


def same(features: np.ndarray) -> np.ndarray:
    return features


def rounded(features: np.ndarray) -> np.ndarray:
    """To bf16: the upper half of each number's bits, rounded half up."""
    bits = features.view(np.uint32) + 0x8000
    return (bits & 0xFFFF0000).view(np.float32)


def turned(cosine: float) -> Callable[[np.ndarray], np.ndarray]:
    """Features to others of the same length, with this cosine to them."""

    def turn(features: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(features, axis=1, keepdims=True)
        aside = np.random.default_rng(0).normal(size=features.shape)
        aside -= (aside * features).sum(1, keepdims=True) * features / length**2
        aside *= length / np.linalg.norm(aside, axis=1, keepdims=True)
        return (cosine * features + (1 - cosine**2) ** 0.5 * aside).astype(np.float32)

    return turn


class FakeRuntime:
    """ONNX Runtime with an OpenVINO that computes on the CPU and then changes the features.

    Attributes:
        opened: (graph, provider, its options) of every session, in order.
        took: providers that a session for OpenVINO gets. nodes: which run its parts.
        change: of features; in_lane: of those of a session with a stream a core.
        maps_in_lane: of such a session's maps. rows: of each of its runs.
    """

    def __init__(self) -> None:
        self.opened: list[tuple[str, str, dict[str, str]]] = []
        self.took, self.nodes = [OPENVINO, "CPUExecutionProvider"], {OPENVINO}
        self.change = self.in_lane = rounded
        self.maps_in_lane, self.rows = same, []

    def __getattr__(self, name):
        return getattr(onnxruntime, name)

    def get_available_providers(self):
        return self.took

    def InferenceSession(self, path, options, providers, enable_fallback):
        name, told = providers[0]
        self.opened.append((Path(path).name, name, told))
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        if name != OPENVINO:
            return session
        streams = json.loads(told["load_config"])["CPU"]["NUM_STREAMS"]
        if streams == 1:
            return FakeSession(session, self, self.change)
        return FakeSession(session, self, self.in_lane, lambda m: self.maps_in_lane(m), self.rows)


class FakeSession:
    def __init__(self, session, runtime, change, change_maps=same, rows=None) -> None:
        self._session, self._runtime, self._change = session, runtime, change
        self._change_maps, self._rows = change_maps, [] if rows is None else rows

    def __getattr__(self, name):
        return getattr(self._session, name)

    def get_providers(self):
        return self._runtime.took

    def get_provider_graph_assignment_info(self):
        return [SimpleNamespace(ep_name=name) for name in self._runtime.nodes]

    def run(self, *arguments):
        features, *maps = self._session.run(*arguments)
        self._rows.append(len(features))
        return [self._change(features), *map(self._change_maps, maps)]


@pytest.fixture
def fake(monkeypatch) -> FakeRuntime:
    runtime = FakeRuntime()
    for module in (providers, provider_options):
        monkeypatch.setattr(module, "onnxruntime", runtime)
    monkeypatch.setattr(providers, "_load_error", lambda library: None)
    monkeypatch.setattr(provider_options, "usable_cores", lambda: 2)
    return runtime


@pytest.mark.parametrize(
    ("precision", "hint"), [("fp32", "f32"), ("bf16", "bf16"), ("int8", "f32")]
)
def test_the_encoder_is_compiled_for_its_precision_and_the_heads_are_not(fake, precision, hint):
    fake.change = rounded if precision == "bf16" else same
    Engine(MODEL, "openvino", 2, precision=precision)
    at = [provider for _, provider, _ in fake.opened].index(OPENVINO)
    plain, (graph, _, told), rest = fake.opened[:at], fake.opened[at], fake.opened[at + 1 :]
    assert [name for name, _, _ in rest] == ["heads.onnx", "matcher.onnx"]
    assert {provider for _, provider, _ in rest} == {"CPUExecutionProvider"}
    assert graph == ("features_int8.onnx" if precision == "int8" else "features.onnx")
    assert told["device_type"] == "CPU"
    assert json.loads(told["load_config"])["CPU"]["INFERENCE_PRECISION_HINT"] == hint
    # Before that, on the plain provider: what is endless there has a time limit.
    encoders = [name for name, _, _ in plain if name.startswith("features")]
    assert {provider for _, provider, _ in plain} == {"CPUExecutionProvider"}
    assert set(encoders) == {"features.onnx", graph}


@pytest.mark.parametrize(
    ("cores", "threads", "streams", "together"),
    [(2, 2, 1, 2), (2, 1, 2, 2), (8, 2, 4, 8), (8, 3, 2, 6), (2, 4, 1, 4)],
)
def test_as_many_runs_at_once_as_there_are_cores_for(
    fake, monkeypatch, cores, threads, streams, together
):
    monkeypatch.setattr(provider_options, "usable_cores", lambda: cores)
    Engine(MODEL, "openvino", threads, precision="bf16")
    told = next(told for _, provider, told in fake.opened if provider == OPENVINO)
    cpu = json.loads(told["load_config"])["CPU"]
    assert (cpu["NUM_STREAMS"], cpu["INFERENCE_NUM_THREADS"]) == (streams, together)
    assert told["num_of_threads"] == str(together)
    assert cpu["ENABLE_CPU_PINNING"] is False  # each session would pin itself to the same cores


def test_bf16_is_openvinos_also_for_auto(fake):
    engine = Engine(MODEL, "auto", 1, precision="bf16")
    assert (engine.provider, engine.precision) == (OPENVINO, "bf16")
    assert Engine(MODEL, "auto", 1, precision="int8").provider == "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("cpu", "bf16", "bf16 is for --device openvino: give --precision fp32 with cpu"),
        ("openvino", "fp16", "fp16 is for GPUs: give --precision fp32 or int8 on the CPU"),
    ],
)
def test_a_precision_that_is_not_the_devices_is_refused(
    fake, monkeypatch, device, precision, message
):
    monkeypatch.setattr("serving.inference.engine.graphs_of", _with_fp16)
    with pytest.raises(UsageError, match=message):
        Engine(MODEL, device, 1, precision=precision)


def _with_fp16(folder, precision):
    """As of a folder whose fp16 graph is the fp32 one."""
    if precision != "fp16":
        return graphs_of(folder, precision)
    first, *rest = graphs_of(folder, "fp32")
    return [dataclasses.replace(first, precision="fp16"), *rest]


@pytest.mark.skipif(HERE, reason="there is OpenVINO")
def test_where_it_is_not_installed_the_two_commands_are_named():
    package = next(p for p in ("onnxruntime-gpu", "onnxruntime") if p in providers.installed())
    for device in ("openvino", "auto"):
        with pytest.raises(AugSelfError) as caught:
            Engine(MODEL, device, 1, precision="bf16")
        assert str(caught.value) == (
            f"--device openvino cannot be used: the installed {package} has no such provider: "
            f"pip uninstall -y {package}, then pip install 'augself-hub[openvino]'"
        )


def test_a_session_that_went_on_without_it_is_refused(fake):
    """ONNX Runtime leaves a provider out whose options do not parse, and says so nowhere."""
    fake.took = ["CPUExecutionProvider", OPENVINO]
    with pytest.raises(
        AugSelfError, match="--device openvino cannot be used: ONNX Runtime took an"
    ):
        Engine(MODEL, "openvino", 1)


def test_a_graph_of_which_it_runs_nothing_is_refused_and_of_which_a_part_is_said(fake, caplog):
    fake.nodes = {OPENVINO, "CPUExecutionProvider"}
    Engine(MODEL, "openvino", 1, precision="bf16")
    assert "the plain provider runs the parts of" in caplog.text
    fake.nodes = {"CPUExecutionProvider"}
    with pytest.raises(AugSelfError, match=r"it can run no part of .*features\.onnx"):
        Engine(MODEL, "openvino", 1)


@pytest.mark.parametrize(
    ("precision", "cosine", "refused"),
    [
        ("fp32", 0.9999, True),
        ("bf16", 0.99995, False),
        ("bf16", 0.9998, True),
        ("int8", 0.35, True),
        ("bf16", -1.0, True),
    ],
)
def test_features_too_far_from_fp32_are_refused_with_the_figure(fake, precision, cosine, refused):
    fake.change = turned(cosine)
    if not refused:
        Engine(MODEL, "openvino", 2, precision=precision)
        return
    with pytest.raises(AugSelfError) as caught:
        Engine(MODEL, "openvino", 2, precision=precision)
    message = str(caught.value)
    assert message.startswith(
        f"--device openvino cannot be used for pretrained in {precision}, held against fp32 on the "
        "plain provider: the features' cosine is "
    )
    (figure,) = re.findall(r"cosine is (\S+) on average, at least 0\.99", message)
    assert float(figure) == pytest.approx(cosine, abs=0.01 if precision == "int8" else 1e-5)
    assert message.endswith(": give another --precision, or --device cpu")


def test_heads_that_tell_something_else_are_refused(fake):
    """Lengths leave the cosines at 1, and change what heads see."""
    fake.change = lambda features: 1.5 * features
    with pytest.raises(AugSelfError, match=r"change of head \w+ is 0\.\d+, at most 0\.1 is wanted"):
        Engine(MODEL, "openvino", 2, precision="int8")


def test_lanes_are_held_to_the_same(fake):
    fake.change, fake.in_lane = rounded, turned(0.5)
    Engine(MODEL, "openvino", 2, precision="bf16")
    with pytest.raises(AugSelfError, match=r"cosine is 0\.50000 on average"):
        Engine(MODEL, "openvino", 2, precision="bf16", in_lanes=True)


def test_so_are_the_maps_of_lanes_in_batches_as_lanes_have_them(fake):
    fake.maps_in_lane = lambda maps: maps[:, ::-1]
    Engine(MODEL, "openvino", 2, precision="bf16")
    with pytest.raises(AugSelfError, match=r"the maps' cosine is 0\.\d+ on average"):
        Engine(MODEL, "openvino", 2, precision="bf16", in_lanes=True)
    assert max(fake.rows) == LANE_IMAGES and len(fake.rows) > 3


def test_bf16_that_is_computed_in_fp32_is_refused(fake):
    fake.change = same
    Engine(MODEL, "openvino", 2)
    with pytest.raises(AugSelfError, match="--precision bf16 cannot be had: this processor has no"):
        Engine(MODEL, "openvino", 2, precision="bf16")


# -- Through OpenVINO ------------------------------------------------------------------------------


@needs_openvino
@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-5), ("bf16", 0.02)])
def test_features_are_those_of_the_plain_provider(images, precision, most):
    engine, plain = Engine(MODEL, "openvino", 1, precision=precision), Engine(MODEL, "cpu", 1)
    assert (engine.provider, engine.precision) == (OPENVINO, precision)
    for n in (1, 3, 5, 40):
        some = [images[i % len(images)] for i in range(n)]
        found, expected = engine.features(some), plain.features(some)
        error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert error.max() < most
        assert (error.min() > 1e-4) == (precision == "bf16")


@needs_openvino
def test_python_has_it_too(images):
    found, expected = (
        Encoder(device=device, precision=precision, threads=1).features(images)
        for device, precision in (("openvino", "bf16"), ("cpu", "fp32"))
    )
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
    assert cosine == pytest.approx(np.linalg.norm(expected, axis=1), rel=1e-3)


@needs_openvino
def test_the_graph_it_compiles_wrongly_is_refused():
    """If this fails OpenVINO has mended it: say so in docs/engine.md."""
    with pytest.raises(AugSelfError, match=r"the features' cosine is 0\.3\d+ at worst"):
        Engine(MODEL, "openvino", 1, precision="int8")


@needs_openvino
def test_options_it_does_not_understand_are_no_fallback(monkeypatch):
    """This very option is one that ONNX Runtime only logs, and then runs the plain provider."""
    unparsed = {"device_type": "CPU", "precision": "BF16"}
    monkeypatch.setitem(provider_options.OPTIONS, "openvino", lambda graph, threads: unparsed)
    with pytest.raises(AugSelfError, match="ONNX Runtime took another provider"):
        Engine(MODEL, "openvino", 1)


@needs_openvino
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_thread_is_pinned_to_a_core():
    """Looked at while two sessions run: threads are pinned only so long."""
    done = subprocess.run(
        [sys.executable, "-c", PINNED, MODEL], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) == 1, done.stdout


PINNED = """
import contextlib, sys, threading
from pathlib import Path
import numpy as np
from serving.inference.engine import Engine

engines = [Engine(Path(sys.argv[1]), "openvino", 1, precision="bf16") for _ in range(2)]
seen = set()

def run(engine):
    for _ in range(100):
        engine.features([np.zeros((64, 64, 3), np.uint8)] * 16)

runs = [threading.Thread(target=run, args=(engine,)) for engine in engines]
for each in runs:
    each.start()
while any(each.is_alive() for each in runs):
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            lines = (task / "status").read_text().splitlines()
            seen.update(line for line in lines if line.startswith("Cpus_allowed_list"))
print(*seen, sep="\\n")
"""


@needs_openvino
def test_a_server_answers_each_of_many_clients_with_its_own(images, encoded, server_process):
    server = server_process("--device", "openvino", "--precision", "bf16", "--threads", "2")
    expected = Engine(MODEL, "cpu", 1).features(images)
    wrong: list[int] = []

    def ask(number: int) -> None:
        picture = encoded(images[number])
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for _ in range(5):
                answer = client.post("/v1/embeddings", content=picture).json()
                found = np.array(answer["data"][0]["embedding"])
                if np.linalg.norm(found - expected[number]) > 0.02 * np.linalg.norm(found):
                    wrong.append(number)

    try:
        clients = [threading.Thread(target=ask, args=(n,)) for n in range(len(images))]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        (model,) = httpx.get(f"{server.url}/v1/models").json()["data"]
    finally:
        status = server.stop()
    assert (wrong, status) == ([], 0)
    assert (model["provider"], model["precision"]) == (OPENVINO, "bf16")


@needs_openvino
def test_extraction_says_what_it_ran_on_and_goes_on_with_nothing_else(augself, tmp_path):
    pictures, table = ROOT / "serving/demo/examples", tmp_path / "table"
    words = ("extract", pictures, "--output", table, "--shard-rows", 4)
    done = augself(*words, "--device", "openvino", "--precision", "bf16")
    assert done.status == 0, done.err
    plan = json.loads((table / "manifest.json").read_text())
    assert (plan["provider"], plan["precision"]) == (OPENVINO, "bf16")
    assert any(name.startswith("onnxruntime") for name in plan["versions"])
    assert augself(*words, "--device", "openvino").status == 1


# -- In an environment of its own ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(HERE, reason="this is one")
def test_all_of_this_in_an_environment_with_openvino(tmp_path):
    python = tmp_path / "bin/python"
    tools = ("pytest", "pytest-timeout", "pytest-xdist", "httpx")
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    extras = f"{ROOT}[serve,openvino]"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-e", extras, *tools], check=True)
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        cwd=ROOT, env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "no OpenVINO" not in done.stdout
