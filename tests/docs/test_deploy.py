"""What can be checked of docs/deploy without Docker, a GPU or a proxy."""

from __future__ import annotations

import configparser
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from serving.commands import serve
from serving.limits import Limits
from serving.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs/deploy"
SERVED = (  # in words, by Docker, on Ray
    r"augself serve ([^`#]*)|docker run .* augself\S* (.*)|serve run .* options=\"([^\"]*)\""
)
OPTIONS = {name for option in serve.params for name in option.opts} | {"--help"}


def compose() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def manifests() -> dict[str, dict]:
    """Kind -> what kubernetes.yaml says of it."""
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


def by_queue() -> dict:
    """The autoscaler that takes the place of the one in kubernetes.yaml."""
    return yaml.safe_load((DEPLOY / "kubernetes-queue.yaml").read_text())


def pod() -> dict:
    return manifests()["Deployment"]["spec"]["template"]


def container() -> dict:
    return pod()["spec"]["containers"][0]


def ray_application() -> dict:
    return yaml.safe_load((DEPLOY / "ray-serve.yaml").read_text())["applications"][0]


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read(DEPLOY / "augself.service")
    return parser["Service"]


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, its arguments), lines that go on joined."""
    text = (DEPLOY / dockerfile).read_text().replace("\\\n", " ")
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return [tuple(line.split(maxsplit=1)) for line in lines]


def commands() -> Iterator[tuple[str, list[str]]]:
    """(where it stands, the arguments of one `augself serve`)."""
    for name in ("Dockerfile", "Dockerfile.cuda"):
        entry = next(given for word, given in instructions(name) if word == "ENTRYPOINT")
        yield name, yaml.safe_load(entry)[2:]
    yield "compose.yaml", compose()["services"]["augself"]["command"]
    yield "kubernetes.yaml", container()["args"]
    yield "ray-serve.yaml", shlex.split(ray_application()["args"]["options"])
    yield "augself.service", shlex.split(unit()["ExecStart"])[2:]
    pages = (
        "docs/deploy/README.md",
        "docs/serve.md",
        "docs/server.md",
        "docs/fleet-serving.md",
        "README.md",
    )
    for path in (ROOT / page for page in pages):
        for line in path.read_text().splitlines():
            if found := re.search(SERVED, line):
                yield f"{path.name}: {line}", shlex.split(next(filter(None, found.groups()), ""))


COMMANDS = dict(commands())


@pytest.mark.parametrize("where", COMMANDS)
def test_every_option_given_exists(where):
    options = [word.split("=")[0] for word in COMMANDS[where] if word.startswith("--")]
    assert set(options) <= OPTIONS, where


def test_the_commands_were_found():
    files = ("compose.yaml", "augself.service", "kubernetes.yaml", "ray-serve.yaml")
    assert len(COMMANDS) > 10 and all(COMMANDS[file] for file in files)
    assert any("serve run" in where for where in COMMANDS)


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_a_dockerfile_copies_what_there_is_and_installs_extras_that_exist(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    words = dict(instructions(name))
    for word, given in instructions(name):
        if word == "COPY" and "--from" not in given:
            *sources, _ = given.split()
            assert all((ROOT / source).exists() for source in sources)
        for group in re.findall(r'pip install .*?"\.\[(.*?)\]"', given):
            group = group.replace("${EXTRAS}", words.get("ARG", "").removeprefix("EXTRAS="))
            assert set(group.split(",")) <= set(extras)
            runtimes = {"gpu", "cpu", "openvino", "cuda"} & set(group.split(","))
            assert len(runtimes) == 1  # one ONNX Runtime
    assert words["USER"] == "augself" and words["EXPOSE"] == "7860"
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    copied = {given.split()[0] for word, given in instructions(name) if word == "COPY"}
    assert set(packages) <= copied


@pytest.mark.parametrize("name", ["nginx.conf", "Caddyfile"])
def test_a_proxy_configuration_is_balanced_and_leads_to_the_server(name):
    text = re.sub(r"#.*", "", (DEPLOY / name).read_text())
    depth = [0]
    for sign in re.findall(r"[{}]", text):
        depth.append(depth[-1] + (1 if sign == "{" else -1))
    assert min(depth) == depth[-1] == 0
    assert ":7860" in text
    if name == "nginx.conf":
        lines = (line.strip() for line in text.splitlines())
        assert all(line == "" or line[-1] in ";{}" for line in lines)


def test_every_way_to_run_has_a_place_for_the_token_of_a_private_model():
    """Which need not be there; huggingface_hub reads the variable by itself."""
    environment = compose()["services"]["augself"]["environment"]
    assert environment["HF_TOKEN"] is None  # the shell's, where that has one
    (token,) = [each for each in container()["env"] if each["name"] == "HF_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"]["optional"] is True
    assert unit()["EnvironmentFile"].startswith("-")  # systemd: it may be missing
    script = "from huggingface_hub import get_token; print(get_token())"
    for given in ({"HF_TOKEN": "hf_read"}, {}):
        done = subprocess.run(
            [sys.executable, "-c", script], env={"HF_HOME": "/nowhere", **given},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == given.get("HF_TOKEN", "None")


def test_only_who_is_not_reached_from_outside_believes_everybody():
    """compose.yaml's server takes from nginx, which has another address, whose a request is."""
    service = compose()["services"]["augself"]
    assert service["environment"]["FORWARDED_ALLOW_IPS"] == "*" and "ports" not in service
    assert all("FORWARDED" not in each["name"] for each in container()["env"])


def seconds(text: str, name: str) -> float:
    return float(re.findall(rf"{name} (\d+)s", text)[0])


@pytest.mark.parametrize(
    ("name", "body", "headers", "upload", "answer"),
    [
        ("nginx.conf", r"client_max_body_size (\d+)m", "client_header_timeout",
         "client_body_timeout", "proxy_read_timeout"),
        ("Caddyfile", r"max_size (\d+)MiB", "read_header", "read_body", "response_header_timeout"),
    ],
)  # fmt: skip
def test_a_proxy_lets_through_what_the_server_allows(name, body, headers, upload, answer):
    """What is too much is the server's to say, in JSON; headers are the proxy's alone."""
    text, limits = (DEPLOY / name).read_text(), Limits()
    assert int(re.findall(body, text)[0]) * 2**20 > limits.body_bytes
    assert seconds(text, headers) <= limits.upload_seconds <= seconds(text, upload)
    assert seconds(text, answer) > limits.upload_seconds + limits.deadline_seconds


def test_there_is_time_to_answer_what_was_accepted():
    longest = Limits().deadline_seconds + 5
    assert int(unit()["TimeoutStopSec"]) > longest
    assert int(compose()["services"]["augself"]["stop_grace_period"].rstrip("s")) > longest
    asleep = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod()["spec"]["terminationGracePeriodSeconds"] > asleep + longest


# -- Kubernetes and Ray ----------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.30", "1.35"])
@pytest.mark.parametrize("kind", manifests())
def test_a_manifest_is_what_kubernetes_reads(kind, version):
    reason = "no schemas here: pip install 'augself-hub[dev]'"
    kubernetes = pytest.importorskip("kubernetes_validate", reason=reason)
    kubernetes.validate(manifests()[kind], version, strict=True)
    broken = {**manifests()[kind], "spek": {}}
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(broken, version, strict=True)


@pytest.mark.parametrize("version", ["1.30", "1.35"])
def test_the_autoscaler_by_queue_is_what_kubernetes_reads(version):
    kubernetes = pytest.importorskip("kubernetes_validate", reason="no schemas here")
    kubernetes.validate(by_queue(), version, strict=True)


def test_the_autoscaler_by_queue_takes_the_others_place_and_asks_for_what_there_is():
    other = manifests()["HorizontalPodAutoscaler"]
    assert by_queue()["metadata"] == other["metadata"]
    for name in ("scaleTargetRef", "minReplicas", "maxReplicas"):
        assert by_queue()["spec"][name] == other["spec"][name]
    pods = [m["pods"] for m in by_queue()["spec"]["metrics"] if m["type"] == "Pods"]
    asked = {pod["metric"]["name"]: int(pod["target"]["averageValue"]) for pod in pods}
    served = set(re.findall(r"^# TYPE (\w+) gauge$", Metrics().text().decode(), re.M))
    assert len(asked) == 2 and set(asked) <= served
    assert max(asked.values()) < Limits().max_queue_size / 2  # long before anybody gets a 429
    (rule,) = yaml.safe_load((DEPLOY / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    pattern = re.findall(r'__name__=~"([^"]+)"', rule["seriesQuery"])[0]
    assert {name for name in served if re.fullmatch(pattern, name)} == set(asked)


def test_the_manifests_belong_together():
    found = manifests()
    labels = pod()["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"].items() <= labels.items()
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert found[kind]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    deployment = found["Deployment"]
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"]  # two hands on one number
    volumes = {volume["name"] for volume in pod()["spec"]["volumes"]}
    assert {mount["name"] for mount in container()["volumeMounts"]} == volumes
    words = dict(instructions("Dockerfile"))
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == {"http": int(words["EXPOSE"])}
    assert pod()["metadata"]["annotations"]["prometheus.io/port"] == words["EXPOSE"]
    mounts = [mount["mountPath"] for mount in container()["volumeMounts"]]
    assert words["VOLUME"] in mounts


def test_probes_ask_for_what_the_server_says():
    """By routes that need no key, and patiently enough for a process that is busy decoding."""
    routes = {"startupProbe": "ready", "readinessProbe": "ready", "livenessProbe": "live"}
    for probe, route in routes.items():
        asked = container()[probe]
        assert asked["httpGet"] == {"path": f"/health/{route}", "port": "http"}
    assert container()["livenessProbe"]["failureThreshold"] * 10 >= Limits().deadline_seconds
    start = container()["startupProbe"]
    assert start["failureThreshold"] * start["periodSeconds"] >= 300  # a model from the Hub


def measured_peaks() -> list[float]:
    """MB at most, of the rows of benchmarks/decoding_memory.py in sizing.md."""
    table = (DEPLOY / "sizing.md").read_text().partition("| picture | decoders |")[2]
    rows = [line.split("|") for line in table.partition("\n\n")[0].splitlines()[2:]]
    return [float(row[4].replace(",", "")) for row in rows]


def test_the_memory_allowed_holds_the_worst_request_and_all_bodies():
    """What was measured with the worst legal pictures, and bodies up to their limit."""
    limits, peaks = container()["resources"]["limits"], measured_peaks()
    assert len(peaks) >= 9
    need = max(peaks) * 1e6 + Limits().total_bytes
    assert int(limits["memory"].removesuffix("Gi")) * 2**30 >= 1.25 * need
    assert int(compose()["services"]["augself"]["mem_limit"].removesuffix("g")) * 2**30 >= need
    assert int(unit()["MemoryMax"].removesuffix("G")) * 2**30 >= need


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="no Ray here: augself-hub[fleet]"
)
def test_ray_reads_its_file():
    from ray.serve.schema import ServeDeploySchema

    from serving.fleet.ray_serve import Arguments

    schema = ServeDeploySchema.model_validate(
        yaml.safe_load((DEPLOY / "ray-serve.yaml").read_text())
    )
    (application,) = schema.applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert Arguments.model_validate(application.args).min_replicas == 2


def test_the_sizes_are_the_measured_rates_and_their_quotients():
    measured = (ROOT / "docs/performance.md").read_text()
    sizes = (DEPLOY / "sizing.md").read_text()
    rows = re.findall(r"^\| ResNet-18, (\w+) \| ([\d.]+) \| ([\d.]+) \|$", sizes, re.M)
    assert [row[0] for row in rows] == ["fp32", "int8"]
    for precision, rate, cores in rows:
        table = measured.partition(f"| {precision}, 8 clients |")[2]
        assert re.findall(r"^\| ours \| ([\d.]+) \|", table, re.M)[0] == rate
        assert float(cores) == pytest.approx(2 * 100 / float(rate), abs=0.05)


def test_the_arithmetic_of_cores_is_the_measured_figure_times_the_rate():
    table = (ROOT / "docs/performance.md").read_text()
    measured = float(re.findall(r"decode and resize \(ours\).*?\| ([\d.]+) ms", table)[0])
    text = (DEPLOY / "sizing.md").read_text()
    assert f"{measured:g} ms for a 500x375 JPEG" in text
    assert f"{1000 / measured:.0f} of them a second" in text
    for rate, cores, half in re.findall(r"^\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.M):
        rate = float(rate.replace(",", ""))
        assert float(cores) == pytest.approx(rate * measured / 1000)
        assert float(half) == pytest.approx(float(cores) / 2)
