"""Who may import whom, read from the source: imports inside functions count too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("augself_hub", "training", "serving", "research")
FILES = [
    path.relative_to(ROOT)
    for path in (
        *(p for package in PACKAGES for p in (ROOT / package).rglob("*.py")),
        ROOT / "app.py",
    )
    if path.is_file()
]
SERVING = sorted(
    path.stem for path in (ROOT / "serving").iterdir() if path.suffix == ".py" or path.is_dir()
)
TORCH = ("torch", "torchvision", "transformers", "safetensors.torch", "timm")
MODELING = "augself_hub.modeling"
LAZY_EXPORTS = Path("augself_hub/__init__.py")


def imported(source, path):
    """Dotted names a file imports: `from a.b import c` gives a.b and a.b.c, `.` is resolved."""
    here = path.with_suffix("").parts
    package = here[:-1]  # of a module and of an __init__.py alike
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant))


def called(node):
    return getattr(node.func, "attr", getattr(node.func, "id", None))


def within(name, *packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def lazy_exports(packages):
    """Public names of augself_hub that load one of these packages when they are used."""
    table = next(
        node.value
        for node in ast.parse((ROOT / LAZY_EXPORTS).read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "_EXPORTS"
    )
    exports = ast.literal_eval(table)
    return [f"augself_hub.{name}" for name, home in exports.items() if within(home, *packages)]


def forbidden_to(path):
    """What a file may not import, by the rules of the design's "Who may import whom"."""
    top = path.parts[0].removesuffix(".py")
    modeling = path.parts[:2] == ("augself_hub", "modeling")
    forbidden = {"augself_hub": ["training", "serving"], "training": ["serving"],
                 "serving": ["training"], "app": ["training"], "research": []}[top]  # fmt: skip
    if path.parts[:2] == ("training", "evaluation"):  # features are extracted in one way
        forbidden = [f"serving.{room}" for room in SERVING if room != "extraction"]
    if path.parts[:2] in (("serving", "inference"), ("serving", "extraction")):
        forbidden = [*forbidden, "serving.http", "fastapi", "starlette"]
    light = top not in ("training", "research") and not modeling
    if path == LAZY_EXPORTS:
        forbidden = []
    elif light:
        forbidden = [*forbidden, MODELING]
    forbidden = [*forbidden, *lazy_exports(forbidden)]
    forbidden += (name for name in ("app", "research") if name != top)
    return [*forbidden, *TORCH] if light else forbidden


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_only_what_it_may(path):
    names = imported((ROOT / path).read_text(), path)
    assert [name for name in names if within(name, *forbidden_to(path))] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("augself_hub/hub.py", "import training"),
        ("augself_hub/card.py", "from serving.http.api import app"),
        ("augself_hub/hub.py", "def f():\n    from augself_hub.modeling.model import AugSelfModel"),
        ("augself_hub/hub.py", "from . import modeling"),
        ("augself_hub/augmentations/spec.py", "from ..modeling import model"),
        ("augself_hub/preprocess.py", "import torch.nn.functional as F"),
        ("augself_hub/hub.py", "from safetensors.torch import load_file"),
        ("augself_hub/hub.py", "from safetensors import torch"),
        ("augself_hub/hub.py", "import importlib; importlib.import_module('transformers')"),
        ("augself_hub/modeling/model.py", "from training.run.trainer import AugSelfTrainer"),
        ("training/run/trainer.py", "if True:\n    import serving.inference.engine"),
        ("serving/inference/engine.py", "from training import data"),
        ("serving/inference/service.py", "from serving.http.problems import Problem"),
        ("serving/inference/service.py", "from fastapi import Request"),
        ("training/data/batches.py", "from serving.extraction import pipeline"),
        ("training/evaluation/cache.py", "from serving.inference.engine import load"),
        ("training/run/trainer.py", "from research.study import plan"),
        ("serving/inference/engine.py", "from augself_hub import AugSelfModel"),
        ("serving/inference/engine.py", "from augself_hub import pretrain"),
        ("augself_hub/card.py", "from augself_hub import fit_heads"),
        ("serving/demo/try_it.py", "try:\n    import torchvision\nexcept ImportError: pass"),
        ("app.py", "from augself_hub.modeling import model"),
        ("serving/http/api.py", "import app"),
    ],
)
def test_a_forbidden_import_is_seen(path, source):
    path = Path(path)
    assert any(within(name, *forbidden_to(path)) for name in imported(source, path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("augself_hub/modeling/model.py", "import torch; from augself_hub.hub import verify"),
        ("training/run/trainer.py", "from augself_hub import AugSelfModel; import torch"),
        ("serving/inference/engine.py", "from augself_hub.augmentations.spec import Spec"),
        ("serving/inference/engine.py", "from augself_hub import __version__; import torchless"),
        ("training/evaluation/cache.py", "from serving.extraction.pipeline import extract"),
        ("research/study/runs.py", "import torch; from serving.extraction import pipeline"),
        ("app.py", "from serving.demo import similarity"),
    ],
)
def test_an_allowed_import_is_not(path, source):
    path = Path(path)
    assert not any(within(name, *forbidden_to(path)) for name in imported(source, path))


RUNTIME = Path("augself_hub/runtime.py")
PRODUCT = [*FILES, *(p.relative_to(ROOT) for p in (ROOT / "benchmarks").rglob("*.py"))]


@pytest.mark.parametrize("path", PRODUCT, ids=str)
def test_only_one_file_imports_onnx_runtime(path):
    names = imported((ROOT / path).read_text(), path)
    assert path == RUNTIME or not any(within(name, "onnxruntime") for name in names)


def test_no_module_has_a_name_that_says_nothing():
    nothing = {"utils", "common", "helpers", "misc", "base", "util", "helper"}
    named = {path.with_suffix("").name for path in FILES} | {p.parent.name for p in FILES}
    assert named & nothing == set()


def modules():
    """All of augself_hub but the modeling package, and the HTTP server where there is one."""
    paths = [p for p in FILES if p.parts[0] == "augself_hub" and p.parts[1] != "modeling"]
    paths += [p for p in FILES if p == Path("serving/http/api.py")]
    return sorted(".".join(p.with_suffix("").parts).removesuffix(".__init__") for p in paths)


@pytest.mark.parametrize("module", ["augself_hub", "augself_hub.cli", "all of them"])
def test_torch_is_not_loaded_by_what_does_without(module):
    names = modules() if module == "all of them" else [module]
    if not set(names) <= set(modules()):
        pytest.skip(f"there is no {module} yet")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "for name in sys.argv[2:]: __import__(name)\n"
        "print(sorted({'torch', 'torchvision', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT), *names],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
