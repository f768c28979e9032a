"""What the sidecar depends on is said, locked, and under licences that let everybody use it."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/dependencies.md").read_text("utf-8")
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
ALLOWED = ("apache", "bsd", "mit", "isc", "psf", "python software foundation")
FOREIGN = {"colorama", "tzdata", "async-timeout", "typing-extensions", "backports-asyncio-runner"}
"""Locked for other systems or versions of Python; what is not installed here cannot be looked at."""


def locked() -> dict[str, str]:
    """Return what is locked, by name: its hashes."""
    parts = re.split(r"(?m)^(?=[a-z0-9])", LOCK)
    found = (re.match(r"([a-z0-9._-]+)(?:\[[a-z,]+\])?==", part) for part in parts)
    return {each[1]: part for each, part in zip(found, parts, strict=True) if each is not None}


def licence(name: str) -> str:
    """Return what a package says of its licence, in small letters."""
    package = distribution(name)
    said = package.metadata
    stated = [*(said.get_all("License-Expression") or ()), *(said.get_all("License") or ())]
    classified = [each for each in said.get_all("Classifier") or () if each.startswith("License ::")]
    words = " ".join([each[:60] for each in stated] + classified).strip()
    texts = [each.read_text()[:2000] for each in package.files or () if "LICENSE" in each.name.upper()]
    return (words or _recognised(" ".join(texts))).lower()


def _recognised(text: str) -> str:
    """Name the licence whose text this is; nothing where it is none that we know."""
    return "BSD" if "Redistribution and use in source and binary forms" in text else ""


def test_the_page_names_what_pyproject_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = {re.split(r"[><=;\[ ]", each, maxsplit=1)[0] for each in project["dependencies"]}
    assert set(re.findall(r"(?m)^\| ([a-z0-9-]+) \|", PAGE)) - {"package"} == named
    extra = {re.split(r"[><=;\[ ]", each, maxsplit=1)[0] for each in project["optional-dependencies"]["otel"]}
    assert all(f"`{each}`" in PAGE for each in extra)


def test_every_dependency_is_locked_by_hash() -> None:
    found = locked()
    assert len(found) > 20
    assert [name for name, part in found.items() if "--hash=sha256:" not in part] == []
    assert "://" not in re.sub(r"#.*", "", LOCK)


def test_every_licence_is_one_of_those_allowed() -> None:
    found = {name: licence(name) for name in locked() if name not in FOREIGN}
    assert {name: said for name, said in found.items() if not any(word in said for word in ALLOWED)} == {}
    assert {name: said for name, said in found.items() if re.search(r"\b[al]?gpl\b|general public", said)} == {}


def test_the_sbom_that_is_made_lists_all_that_is_locked_with_versions_and_licences(tmp_path: Path) -> None:
    venv.create(tmp_path / "env")
    packages = next((tmp_path / "env").glob("lib/*/site-packages"))
    named = {name: distribution(name) for name in locked() if name not in FOREIGN}
    for each in named.values():
        metadata = next(file for file in each.files or () if file.name == "METADATA")
        (packages / metadata.parent.name).symlink_to(Path(str(metadata.locate())).parent)
    ours, made = Path(sys.executable).parent, tmp_path / "sbom.cdx.json"
    recipe = next(line for line in (ROOT / "Makefile").read_text("utf-8").splitlines() if "/cyclonedx-py " in line)
    for word, stands_for in (("$(BIN)", ours), ("dist/sbom-env", tmp_path / "env"), ("dist/sbom.cdx.json", made)):
        assert word in recipe
        recipe = recipe.replace(word, str(stands_for))
    subprocess.run(shlex.split(recipe), cwd=ROOT, check=True, capture_output=True)
    listed = {
        each["name"].lower().replace("_", "-"): each for each in json.loads(made.read_text("utf-8"))["components"]
    }
    assert {name: each["version"] for name, each in listed.items()} == {n: e.version for n, e in named.items()}
    assert [name for name, each in listed.items() if not each.get("licenses")] == []
