"""The Dockerfile, read as its builder reads it: instructions of each stage, and the files that they may see."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy/Dockerfile"
IGNORED = ROOT / ".dockerignore"
BUILD_SECONDS = 300.0


class Instruction(NamedTuple):
    """One instruction, on one line."""

    word: str
    rest: str


def stages() -> tuple[list[Instruction], list[Instruction]]:
    """Return the instructions of the build and of the image."""
    text = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE.read_text())
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    found: list[list[Instruction]] = [[]]
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        found[-1].append(Instruction(word, rest.strip()))
    _, build, image = found
    return build, image


def visible() -> list[str]:
    """Return the paths that .dockerignore lets the builder see: nothing, and what it names."""
    lines = [line for line in IGNORED.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    return [line[1:] for line in lines if line.startswith("!")]


def build(at: Path, *, python: Path) -> Path:
    """Do what the build stage does, below a folder instead of below the root; return where the environment is."""
    folder, environment = at / "build", at / "opt/prompt-sidecar"
    folder.mkdir(parents=True)
    for word, rest in stages()[0]:
        if word == "COPY":
            *sources, _ = rest.split()
            target = folder / rest.split()[-1]
            for source in sources:
                _copy(ROOT / source, target / Path(source).name if target.name in {".", ""} else target)
        elif word == "RUN":
            subprocess.run(
                ["/bin/sh", "-ec", rest.replace("/opt/prompt-sidecar", str(environment))],
                cwd=folder,
                env=dict(_environ(python)),
                check=True,
                capture_output=True,
                timeout=BUILD_SECONDS,
            )
    return environment


def _copy(source: Path, target: Path) -> None:
    assert any(fnmatch(str(source.relative_to(ROOT)), each) for each in visible()), f".dockerignore hides {source}"
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _environ(python: Path) -> Iterator[tuple[str, str]]:
    for name, value in os.environ.items():
        if not name.startswith(("COV", "PYTHON", "VIRTUAL_ENV")):
            yield name, value
    yield "PATH", f"{python}:{os.environ['PATH']}"
    for word, rest in stages()[0]:
        if word == "ENV":
            yield from ((name, value) for name, _, value in (each.partition("=") for each in rest.split()))
    yield "PIP_NO_CACHE_DIR", "0"  # a layer must not hold it; a developer's machine may
