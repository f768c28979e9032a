"""What a test needs from outside Python's own packages: it is skipped where that is absent, and fails under CI=true."""

import os
import shutil
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

BESIDE_PYTHON = str(Path(sys.executable).parent)
"""Where wheels put their programs: what is locked beats what the machine happens to have."""


def program(name: str, *, from_: str) -> str:
    """Return the path of a program; `from_`: the package that brings it, for whoever lacks it."""
    found = shutil.which(name, path=BESIDE_PYTHON) or shutil.which(name)
    return found or lacks(f"there is no {name} here; {from_} has it")


def module(name: str, *, from_: str) -> ModuleType:
    """Return a module that is not among what every test needs."""
    return import_module(name) if find_spec(name) else lacks(f"there is no module {name} here; {from_} has it")


def root(why: str) -> None:
    """Go on as root only."""
    if os.geteuid() != 0:
        lacks(f"only root can {why}")


def lacks(reason: str) -> NoReturn:
    """Skip the test, or fail it where nothing may be missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
