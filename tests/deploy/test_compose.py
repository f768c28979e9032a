"""The compose overlay: valid, and the sidecar where LearnFlow looks for it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.app import installed_version
from sidecar.config_file import load
from sidecar.settings import Settings
from tests import needs

FOLDER = Path(__file__).parents[2] / "deploy/compose"
OVERLAY = FOLDER / "compose.sidecar.yaml"


def service(name: str = "prompt-sidecar") -> Any:
    return yaml.safe_load(OVERLAY.read_text())["services"][name]


@pytest.fixture
def settings() -> Settings:
    return load(FOLDER / "prompt-sidecar/sidecar.yaml", environ={}, flags={})


def check(file: Path) -> subprocess.CompletedProcess[str]:
    program = needs.program("check-jsonschema", from_="the wheel check-jsonschema")
    return subprocess.run(
        [program, "--builtin-schema", "vendor.compose-spec", str(file)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_overlay_fits_the_compose_specification() -> None:
    done = check(OVERLAY)
    assert done.returncode == 0, done.stdout


def test_a_mistake_in_it_would_be_seen(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(OVERLAY.read_text().replace("network_mode:", "networkmode:"))
    done = check(wrong)
    assert done.returncode == 1
    assert "networkmode" in done.stdout


def test_learnflows_localhost_is_the_sidecar(settings: Settings) -> None:
    assert service()["network_mode"] == "service:learnflow"
    assert service("learnflow")["environment"]["PROMPT_SERVICE_URL"] == f"http://localhost:{settings.listen.port}"
    assert not {"ports", "networks", "expose"} & service().keys()  # they are LearnFlow's, whose network it is


def test_the_ops_port_is_open_to_this_host_alone(settings: Settings) -> None:
    port = settings.ops.listen.port
    assert service("learnflow")["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_the_settings_and_the_store_are_where_the_overlay_mounts_them(settings: Settings) -> None:
    bind, volume = service()["volumes"]
    assert service()["command"] == ["run", "--config", f"{bind['target']}/sidecar.yaml"]
    assert bind["read_only"] is True
    assert str(settings.store.path.parent) == volume["target"]
    assert volume["source"] in yaml.safe_load(OVERLAY.read_text())["volumes"]


def test_the_container_is_restricted_and_given_time_to_drain(settings: Settings) -> None:
    assert service()["read_only"] is True
    assert service()["cap_drop"] == ["ALL"]
    assert service()["security_opt"] == ["no-new-privileges:true"]
    assert int(service()["stop_grace_period"].removesuffix("s")) > 2 * settings.deadline


def test_it_is_this_version_and_probed_by_itself() -> None:
    assert f":-{installed_version()}}}" in service()["image"]
    assert service()["healthcheck"]["test"][:3] == ["CMD", "prompt-sidecar", "probe"]
