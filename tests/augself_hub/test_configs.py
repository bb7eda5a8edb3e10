"""Configurations by which transformers, timm or sentence-transformers run a stranger's code."""

import json
import shutil

import pytest

from augself_hub import hub
from augself_hub.configs import computes, refuse_code
from augself_hub.errors import ModelFolderError
from augself_hub.folder import write_manifest

KERNEL = "would download and run a kernel"
CODE = "would load code, kernels or weights from elsewhere"
FIELDS = {
    "attn_implementation": ("org/kernel", KERNEL),
    "_attn_implementation": ("org/kernel@main:f", KERNEL),
    "_attn_implementation_internal": ("flash_attention_2", KERNEL),
    "experts_implementation": ("org/experts", KERNEL),
    "_experts_implementation_internal": ("org/experts", KERNEL),
    "quantization_config": ({"quant_method": "bitsandbytes"}, CODE),
    "compression_config": ({"format": "x"}, CODE),
    "auto_map": ({"AutoModel": "org/repo--code.Mine"}, CODE),
    "trust_remote_code": (True, CODE),
    "code_revision": ("main", CODE),
    "custom_pipelines": ({"mine": {"impl": "code.Mine"}}, CODE),
    "custom_generate": ("org/code", CODE),
    "kernel_config": ({"Linear": "org/kernel"}, CODE),
    "use_kernels": (True, CODE),
    "distributed_config": ({"tp_size": 2}, CODE),
    "fusion_config": ({"patch_embeddings": True}, CODE),
    "transformers_weights": ("adapter_model.bin", CODE),
    "base_model_name_or_path": ("org/base", CODE),
    "use_pretrained_backbone": (True, CODE),
    "backbone": ("hf-hub:org/model", "timm would load it from elsewhere"),
    "architecture": ("hf-hub:org/model", "no name of timm's"),
    "model_args": ({"checkpoint_path": "/tmp/x.pth"}, "model_args.checkpoint_path"),
}


@pytest.fixture
def spoilt(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "spoilt")


def edit(path, **changes):
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_runs_code_is_refused_by_name(spoilt, field, augself):
    value, reason = FIELDS[field]
    edit(spoilt / "config.json", **{field: value})
    write_manifest(spoilt)
    with pytest.raises(
        ModelFolderError,
        match=rf"config\.json: .*{reason if field == 'model_args' else field + '.*' + reason}",
    ):
        hub.resolve(spoilt)
    shown = augself("verify", spoilt)
    assert shown.status == 1 and field in shown.err and shown.err.count("\n") == 1


@pytest.mark.parametrize("field", [f for f in FIELDS if f not in ("architecture", "model_args")])
def test_however_deep_it_lies(spoilt, field):
    value, reason = FIELDS[field]
    edit(spoilt / "config.json", parts=[{"vision_config": {field: value}}])
    with pytest.raises(ModelFolderError, match=rf"parts\.vision_config\.{field} is .*{reason}"):
        refuse_code(spoilt)


@pytest.mark.parametrize(
    "name", ["preprocessor_config.json", "processor_config.json", "tokenizer_config.json",
             "generation_config.json", "onnx/config.json", "0_Transformer/config.json"],
)  # fmt: skip
def test_in_every_file_that_a_reader_reads(spoilt, name):
    (spoilt / name).parent.mkdir(exist_ok=True)
    edit(spoilt / name, auto_map={"AutoProcessor": "code.Mine"})
    write_manifest(spoilt)
    with pytest.raises(ModelFolderError, match=rf"{name}: auto_map is .*{CODE}"):
        hub.resolve(spoilt)


def test_an_adapter_beside_the_weights_is_refused(spoilt):
    edit(spoilt / "adapter_config.json", peft_type="LORA")
    write_manifest(spoilt)
    with pytest.raises(ModelFolderError, match=r"adapter_config\.json is an adapter's.*merge"):
        hub.resolve(spoilt)


def test_a_module_of_sentence_transformers_is_its_own(spoilt):
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Pooling"}]
    (spoilt / "modules.json").write_text(json.dumps(modules))
    refuse_code(spoilt)
    modules[0]["type"] = "os.system"
    (spoilt / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelFolderError, match=r"modules\.json: type is 'os.system'"):
        refuse_code(spoilt)
    (spoilt / "modules.json").write_text("[" * 100_000)
    with pytest.raises(ModelFolderError, match=r"modules\.json cannot be read"):
        refuse_code(spoilt)


@pytest.mark.parametrize("place", [".hidden", "../elsewhere", "/tmp/x", "a/b", ".."])
def test_a_module_lies_where_it_was_verified(spoilt, place):
    """Names that begin with a dot are no part of the manifest: kernels could be named there."""
    kind = "sentence_transformers.models.Transformer"
    (spoilt / "modules.json").write_text(json.dumps([{"path": place, "type": kind}]))
    with pytest.raises(ModelFolderError, match=r"modules\.json: path is .*nobody has verified"):
        refuse_code(spoilt)


@pytest.mark.parametrize("kind", ["models.Router", "models.Dense", "util.import_from_string"])
def test_modules_that_import_what_their_files_name_are_refused(spoilt, kind):
    modules = [{"path": "", "type": f"sentence_transformers.{kind}"}]
    (spoilt / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelFolderError, match=rf"modules\.json: type is .*{kind}"):
        refuse_code(spoilt)
    (spoilt / "modules.json").unlink()
    (spoilt / "sub").mkdir()
    (spoilt / "sub/router_config.json").write_text('{"types": {"query": "os.system"}}')
    with pytest.raises(ModelFolderError, match=r"router_config\.json: .*import the classes"):
        refuse_code(spoilt)


def test_stock_values_are_harmless(spoilt):
    edit(
        spoilt / "config.json",
        attn_implementation="sdpa",
        _attn_implementation=None,
        quantization_config=None,
        auto_map={},
        trust_remote_code=False,
        backbone="resnet50",
        architecture="vit_small_patch16_224.dino",
        model_args={"depth": 3},
    )
    refuse_code(spoilt)


def test_transformers_reads_no_field_that_this_list_does_not_know():
    """Every name that the installed transformers takes from a configuration to load something."""
    from pathlib import Path

    import transformers

    from augself_hub.configs import _IMPLEMENTATION, _RUNS_CODE

    names = ("configuration_utils.py", "modeling_utils.py", "pipelines/__init__.py")
    names += ("models/auto/auto_factory.py", "models/auto/configuration_auto.py")
    source = "".join((Path(transformers.__file__).parent / name).read_text() for name in names)
    suspicious = ("auto_map", "quantization_config", "custom_pipelines", "transformers_weights")
    suspicious += ("fusion_config", "distributed_config", "attn_implementation", "kernel_config")
    for name in suspicious:
        assert name in source, f"{name} is no longer transformers': what took its place?"
        assert _RUNS_CODE.fullmatch(name) or _IMPLEMENTATION.fullmatch(name)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model.safetensors", True), ("config.json", True), ("onnx/model.onnx", True),
        ("onnx/model.onnx_data", True), ("augself/config.json", True), ("deep/config.json", True),
        ("code.py", True), ("README.md", False), ("LICENSE", False), ("curves.png", False),
        ("evaluation.json", False), ("training_log.json", False),
    ],
)  # fmt: skip
def test_what_computes(path, expected):
    assert computes(path) == expected
