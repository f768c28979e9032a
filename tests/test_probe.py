"""The probe: a sentence and an exit code, from as little as possible."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from sidecar.app import running
from sidecar.cli import main
from sidecar.probe import ProbeError, probe, seconds, split
from tests.harness import settings_for

ROOT = Path(__file__).parents[1]
SECONDS = 20.0  # until a probe that hangs fails its test; it takes some 50 ms


async def ran(*arguments: str) -> tuple[int | None, str, str]:
    """Run the command as a kubelet does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "probe", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(SECONDS):
        stdout, stderr = await process.communicate()
    return process.returncode, stdout.decode(), stderr.decode()


@asynccontextmanager
async def answering(with_: bytes | None) -> AsyncIterator[str]:
    """Serve these bytes to whoever asks; None: nothing, and never."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if with_ is None:
            await reader.read()
        else:
            writer.write(with_)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


# Asked of a sidecar


async def test_a_ready_sidecar_is_exit_code_0_and_not_a_word() -> None:
    async with running(settings_for("http://127.0.0.1:9")) as sidecar:
        for path in ("/readyz", "/livez"):
            assert await ran("--url", f"http://{sidecar.ops}{path}") == (0, "", "")


async def test_a_path_that_is_not_there_is_exit_code_1_and_a_sentence() -> None:
    async with running(settings_for("http://127.0.0.1:9")) as sidecar:
        url = f"http://{sidecar.ops}/nowhere"
        assert await ran(f"--url={url}") == (1, "", f"{url} answered 404 Not Found.\n")


# Asked of others


@pytest.mark.parametrize(
    ("with_", "says"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "answered 503 Service Unavailable."),
        (b"HTTP/1.1 302 Found\r\n\r\n", "answered 302 Found."),
        (b"HTTP/1.0 404\r\n\r\n", "answered 404."),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP."),
        (b"HTTP/1.1 ok\r\n\r\n", "does not speak HTTP."),
        (b"", "does not speak HTTP."),
        (b"x" * 100_000, "does not speak HTTP."),
        (None, "did not answer within 0.05 s."),
    ],
)
async def test_any_other_answer_is_named(with_: bytes | None, says: str) -> None:
    async with answering(with_) as url:
        with pytest.raises(ProbeError) as raised:
            await asyncio.to_thread(probe, f"{url}/readyz", 0.05 if with_ is None else SECONDS)
    assert str(raised.value) == f"{url}/readyz {says}"


async def test_the_question_is_a_whole_http_request() -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\n\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await asyncio.to_thread(probe, f"http://127.0.0.1:{port}", SECONDS)
    first, *fields = heard[0].decode().splitlines()
    assert first == "GET / HTTP/1.1"
    assert fields == [f"Host: 127.0.0.1:{port}", "User-Agent: prompt-sidecar-probe", "Connection: close", ""]


async def test_an_ipv6_listener_can_be_probed() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"Host: [::1]:" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "::1", 0) as server:
        await asyncio.to_thread(probe, f"http://[::1]:{server.sockets[0].getsockname()[1]}/readyz", SECONDS)


# Its arguments


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://127.0.0.1:9102/readyz", ("127.0.0.1", 9102, "/readyz")),
        ("HTTP://ops", ("ops", 80, "/")),
        ("http://[::1]:1/a?b=c", ("::1", 1, "/a?b=c")),
        ("http://[::1]", ("::1", 80, "/")),
        ("https://127.0.0.1/", None),
        ("127.0.0.1:9102", None),
        ("http://", None),
        ("http://a:b@c/", None),
        ("http://a:0/", None),
        ("http://a:65536/", None),
        ("http://a:99999999999999999999/", None),
        ("http://[::1/", None),
        ("http://[::1]x/", None),
        ("http://a/b c", None),
        ("http://a/b\r\nX: y", None),
        ("http://a/ü", None),
        ("http://a/#b", None),
    ],
)
def test_a_url_is_read_or_refused(url: str, parts: tuple[str, int, str] | None) -> None:
    assert split(url) == parts
    if parts is None:
        with pytest.raises(
            ProbeError, match=r"is not a URL that can be probed; allowed: http://host\[:port\]\[/path\]"
        ):
            probe(url)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1s", 1.0), ("250ms", 0.25), ("0.5s", 0.5), ("60s", 60.0)]
    + [(text, None) for text in ("", "s", "1", "0s", "61s", "1m", "-1s", "1.2.3s", "nans", "²s", "1e1s", ".s")],
)
def test_a_timeout_is_read_or_refused(text: str, value: float | None) -> None:
    assert seconds(text) == value


async def test_a_mistake_in_the_arguments_is_the_command_lines_to_explain(nobody: str) -> None:
    code, _, said = await ran("--timeout", "1")
    assert code == 2
    assert "'1'; allowed is a duration from 1ms to 60s, with its unit (ms, s)." in said
    code, _, said = await ran("--no-such-option")
    assert code == 2
    assert "No such option" in said
    code, _, said = await ran("--url", "https://127.0.0.1")
    assert (code, said.count("\n")) == (1, 1)
    code, said, _ = await ran("--help")
    assert code == 0
    assert "Usage: prompt-sidecar probe" in said
    assert "Connection refused" in (await ran("--url", nobody, "--timeout", "5s"))[2]


async def test_the_short_way_and_the_command_line_say_the_same(nobody: str) -> None:
    code, _, said = await ran("--url", nobody)
    long_way = await asyncio.to_thread(CliRunner().invoke, main, ["probe", "--url", nobody])
    assert (code, said) == (long_way.exit_code, long_way.stderr)
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n") as url:
        done = await asyncio.to_thread(CliRunner().invoke, main, ["probe", "--url", url, "--timeout", "5s"])
        assert (done.exit_code, done.output) == (0, "")


# Its cost


def test_it_imports_a_socket_and_nothing_more_of_ours_or_of_others() -> None:
    """Asked of Python itself: a time would depend on the machine, and imports are what takes it."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sidecar", "probe", "--url", "http://127.0.0.1:1/"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("COV")},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert {"socket", "sidecar.probe"} <= imported
    assert {name for name in imported if name.partition(".")[0] == "sidecar"} == {"sidecar", "sidecar.probe"}
    assert not imported & {"asyncio", "click", "argparse", "http.client", "email", "ssl", "urllib.request", "json"}


@pytest.fixture
async def nobody() -> AsyncIterator[str]:
    """Give the URL of a port that refuses, and that nobody else will take."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/readyz"
