"""What a test needs that is no Python package."""

import os
import shutil

import pytest


def needs(program: str, package: str) -> str:
    """Return the program's path; without it skip and name the Debian package, or fail where `CI` is set."""
    path = shutil.which(program)
    if path is None:
        why = f"{program} is not installed (apt-get install --no-install-recommends {package})"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return path
