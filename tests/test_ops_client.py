"""The command line's calls to a running sidecar: bounded, for the sidecar alone, and no word of the token."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sidecar import ops_client
from sidecar.ops_client import OpsError, call
from tests.harness import Exchange, Play, RawUpstream, forever, raw_upstream

OK = b"HTTP/1.1 200 OK\r\n"
TOKEN = "canary-7f3a"
QUICK = 0.3
"""Seconds; the time of one call in these tests."""


async def asked(other: RawUpstream, **how: Any) -> Any:
    async with asyncio.timeout(30):
        return await asyncio.to_thread(partial(call, "POST", f"{other.url}/admin/invalidate", {}, **how))


@asynccontextmanager
async def saying(*pieces: bytes) -> AsyncIterator[RawUpstream]:
    """Run what answers with these bytes and ends the connection."""

    async def plays(exchange: Exchange) -> None:
        await exchange.write(*pieces)
        exchange.writer.close()

    async with raw_upstream(plays) as other:
        yield other


@pytest.mark.parametrize(
    "answer",
    [
        b"hello\r\n\r\n",
        OK + b"Content-Length: 9\r\n\r\n{",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"A: b\r\n" * 300 + b"\r\n{}",
        OK + b"A: " + b"b" * 70_000 + b"\r\n\r\n{}",
        OK + b"\r\n" + b"[" * 100_000,
        b"",
    ],
    ids=["no http", "cut", "no chunk", "headers", "long header", "deep", "nothing"],
)
async def test_garbage_is_a_sentence(answer: bytes) -> None:
    async with saying(answer) as other:
        with pytest.raises(OpsError, match=r"cannot be asked: .*Is it running"):
            await asked(other)


async def test_an_answer_that_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_client, "LARGEST", 1024)
    async with saying(OK, b"\r\n", b" " * 2048, b"{}") as other:
        with pytest.raises(OpsError, match="the answer is larger than 1024 bytes"):
            await asked(other)


async def drips_a_head(exchange: Exchange) -> None:
    await exchange.write(OK)
    while True:
        await exchange.write(b"A")
        await asyncio.sleep(QUICK / 10)


async def drips_a_body(exchange: Exchange) -> None:
    await exchange.write(OK, b"\r\n{}")
    while True:
        await exchange.write(b" ")
        await asyncio.sleep(QUICK / 10)


async def hangs(_: Exchange) -> None:
    await forever()


@pytest.mark.parametrize("plays", [hangs, drips_a_head, drips_a_body])
async def test_what_hangs_or_drips_is_given_up_in_time(plays: Play) -> None:
    async with raw_upstream(plays) as other:
        with pytest.raises(OpsError, match=r"there was no whole answer within 0\.3 s"):
            await asked(other, timeout=QUICK)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_the_token_stays_here(status: int, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(f"{TOKEN}\n")
    async with raw_upstream(lambda exchange: exchange.answer({})) as elsewhere:
        away = {"Location": f"{elsewhere.url}/"}
        async with raw_upstream(lambda exchange: exchange.answer({}, status=status, headers=away)) as other:
            with pytest.raises(OpsError, match=rf"refuses \({status}\)"):
                await asked(other, token_file=token_file)
        assert f"Authorization: Bearer {TOKEN}".encode() in other.requests[0]
    assert elsewhere.requests == []


@pytest.mark.parametrize("content", [f"{TOKEN}\n{TOKEN}\n", f"{TOKEN}\r{TOKEN}", f"{TOKEN}ß", f"{TOKEN}\0", " \n"])
async def test_a_token_that_no_header_can_hold_is_refused_without_a_word_of_it(content: str, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(content, encoding="utf-8", newline="")
    async with raw_upstream(lambda exchange: exchange.answer({})) as other:
        with pytest.raises(OpsError, match="The token file cannot be used: ") as refused:
            await asked(other, token_file=token_file)
    assert other.requests == []
    assert str(token_file) in str(refused.value)
    assert TOKEN not in str(refused.value)
