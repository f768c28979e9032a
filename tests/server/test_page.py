"""The status page's files on the wire: what may run in the browser, and that a package has them."""

import re
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sidecar.server.ops import ops_routes
from sidecar.server.page import FOLDER, page_routes
from tests.wire import Wire, get, serving, wire

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in page_routes() if path != "/")


@asynccontextmanager
async def listener() -> AsyncIterator[Wire]:
    async def no_metrics(_: str | None) -> tuple[bytes, str]:
        return b"", "text/plain"

    async with serving(ops_routes(ready=lambda: True, metrics=no_metrics)) as served, wire(served.port) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/?x=1", *FILES])
async def test_every_file_comes_with_headers_that_allow_nothing_from_elsewhere(path: str) -> None:
    async with listener() as client:
        answer = await client.ask(get(path))
    assert answer.status == 200
    assert answer.header("Content-Security-Policy") == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert answer.header("X-Content-Type-Options") == "nosniff"
    assert answer.header("Referrer-Policy") == "no-referrer"
    assert answer.header("Cache-Control") == "no-cache"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page/status.css", "text/css; charset=utf-8"),
        ("/page/status.js", "text/javascript; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
    ],
)
async def test_a_file_comes_as_what_it_is(path: str, kind: str) -> None:
    async with listener() as client:
        assert (await client.ask(get(path))).header("Content-Type") == kind


@pytest.mark.parametrize("path", ["/page/", "/page/index.html", "/page/../ops.py", "/page/page.py", "/index.html"])
async def test_nothing_else_is_served(path: str) -> None:
    async with listener() as client:
        assert (await client.ask(get(path))).status == 404


def test_nothing_in_the_files_is_inline_or_from_elsewhere() -> None:
    page = (FOLDER / "index.html").read_text("utf-8")
    assert re.findall(r"\s(?:style|on\w+)=", page) == []
    assert re.findall(r"<(?:style|script)>", page) == []
    assert all(each.startswith(("/", "#")) for each in re.findall(r'(?:href|src)="([^"]*)"', page))


@pytest.mark.parametrize("path", [path for path in FILES if path.endswith(".js")])
def test_no_script_writes_markup(path: str) -> None:
    script = (FOLDER / path.rpartition("/")[2]).read_text("utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|Function\(", script)


def test_a_package_that_is_built_has_the_files(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as package:
        names = set(package.namelist())
    wanted = {"index.html", *(path.removeprefix("/page/") for path in FILES)}
    assert {f"sidecar/server/status_page/{name}" for name in wanted} <= names
