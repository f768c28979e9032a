"""The sidecar's own token: on which calls it goes out, how it changes, and that nobody hears of it."""

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sidecar.settings import ProxySettings, Settings, UpstreamApi
from sidecar.stores import FileMistakeError
from sidecar.upstream import rotating
from sidecar.watch import watch_all
from sidecar.wiring import open_core
from tests.harness import (
    KEPT,
    Exchange,
    Sidecar,
    eventually,
    prompt_data,
    raw_upstream,
    settings_for,
    sidecar_process,
    sidecar_with,
)

TOKEN, NEXT, OWN = "canary-7f3a.token", "canary-8b4c.token", "Bearer of-learnflow"
SETTINGS = {"placeholders": {"style": {"value": "plain words"}}, "active_profile_id": None}


class Locked:
    """A config service of every generation that answers nobody without the right token."""

    def __init__(self, *tokens: str) -> None:
        self.takes = {f"Bearer {token}" for token in tokens}
        self.seen: list[tuple[str, str | None]] = []
        self.refused = 0

    async def __call__(self, exchange: Exchange) -> None:
        line, *fields = exchange.head.decode().split("\r\n")
        given = [each.partition(": ")[2] for each in fields if each.lower().startswith("authorization:")]
        assert len(given) <= 1
        method, path, _ = line.split()
        self.seen.append((f"{method} {path}", given[0] if given else None))
        if not self.takes.intersection(given):
            self.refused += 1
            await exchange.answer({"detail": "Who are you?"}, status=401)
        elif (method, path) == ("GET", "/api/v1/prompt-data"):
            await exchange.answer({"detail": "Method Not Allowed"}, status=405)
        elif path == "/api/v1/prompt-data":
            await exchange.answer(prompt_data())
        elif path == "/api/v1/prompt-data/batch":
            asked = exchange.asked["requests"]
            await exchange.answer({"results": [{**each, "status": 200, "data": prompt_data()} for each in asked]})
        elif path.endswith("/placeholders"):
            await exchange.answer(SETTINGS)
        elif path == "/api/v1/generate-prompt":
            await exchange.answer({"prompt": "Rendered by the service.", "used_placeholders": {}})
        else:
            await exchange.answer({})

    @property
    def calls(self) -> Counter[str]:
        """Calls by method and path."""
        return Counter(call for call, _ in self.seen)


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


def looks(monkeypatch: pytest.MonkeyPatch, *, every: float) -> None:
    monkeypatch.setattr(rotating, "watch_all", partial(watch_all, poll_seconds=every))


def with_token(url: str, token: Path, upstream: dict[str, Any] | None = None, **sections: Any) -> Settings:
    return settings_for(url, upstream={"token_file": token, **(upstream or {})}, **sections)


@pytest.mark.parametrize(
    ("upstream", "calls"),
    [
        ({"api": UpstreamApi.PROMPT_DATA}, {"POST /api/v1/prompt-data"}),
        ({"api": UpstreamApi.PASSTHROUGH}, {"POST /api/v1/generate-prompt"}),
        ({"api": UpstreamApi.PLACEHOLDERS}, {"GET /api/v1/users/1/placeholders"}),
        ({"api": UpstreamApi.AUTO}, {"GET /api/v1/prompt-data", "POST /api/v1/prompt-data"}),
    ],
)
async def test_every_generation_is_asked_with_the_token(
    upstream: dict[str, Any], calls: set[str], token: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.yaml").write_text("explain_system_prompt: Explain {{ topic }} in {{ style }}.\n")
    if upstream["api"] is UpstreamApi.PLACEHOLDERS:
        upstream = {**upstream, "templates_file": tmp_path / "prompts.yaml"}
    plays = Locked(TOKEN)
    async with (
        raw_upstream(plays) as service,
        sidecar_with(with_token(service.url, token, upstream)) as sidecar,
    ):
        assert (await sidecar.ask()).status == 200
        assert plays.calls.keys() == calls
        assert plays.refused == 0


async def test_warm_up_and_static_reads_go_with_it_too(token: Path) -> None:
    plays = Locked(TOKEN)
    async with raw_upstream(plays) as service, sidecar_with(with_token(service.url, token)) as sidecar:
        asked = {"users": [1, 2], "nodes": ["explain"]}
        async with sidecar.session.post(f"{sidecar.ops}/admin/warm", json=asked) as response:
            assert response.status < 300, await response.text()
        async with sidecar.session.get(f"{sidecar.base}/api/v1/profiles") as response:
            assert response.status == 200
        await eventually(partial(has_asked, plays, "POST /api/v1/prompt-data/batch"))
        assert plays.refused == 0


async def has_asked(plays: Locked, call: str) -> bool:
    await asyncio.sleep(0)
    return call in plays.calls


# What is passed on


async def pass_on(sidecar: Sidecar, headers: dict[str, str] | None = None) -> int:
    async with sidecar.session.put(f"{sidecar.base}/api/v1/users/1/x", data=b"{}", headers=headers) as response:
        return response.status


@pytest.mark.parametrize(
    ("adds", "brought", "arrives"),
    [
        (False, None, None),
        (False, OWN, OWN),
        (True, None, f"Bearer {TOKEN}"),
        (True, OWN, OWN),
        (True, "", ""),
    ],
)
async def test_a_request_that_is_passed_on_keeps_its_own_and_gets_ours_only_where_the_settings_say(
    brought: str | None, arrives: str | None, token: Path, *, adds: bool
) -> None:
    plays = Locked(TOKEN)
    async with raw_upstream(plays) as service:
        settings = with_token(service.url, token, proxy=ProxySettings(add_token=adds))
        async with sidecar_with(settings) as sidecar:
            status = await pass_on(sidecar, None if brought is None else {"Authorization": brought})
            assert plays.seen == [("PUT /api/v1/users/1/x", arrives)]
            assert status == (200 if arrives == f"Bearer {TOKEN}" else 401)


async def test_our_token_is_not_lent_to_a_request_whose_answer_would_repeat_it(token: Path) -> None:
    plays = Locked(TOKEN)
    async with raw_upstream(plays) as service:
        settings = with_token(service.url, token, proxy=ProxySettings(add_token=True))
        async with sidecar_with(settings) as sidecar, sidecar.session.request("TRACE", f"{sidecar.base}/x"):
            assert plays.seen == [("TRACE /x", None)]


# How it changes


async def test_a_new_token_is_sent_without_a_restart(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks(monkeypatch, every=0.01)
    plays = Locked(TOKEN, NEXT)
    async with raw_upstream(plays) as service, sidecar_with(with_token(service.url, token, policy=KEPT)) as sidecar:
        await sidecar.ask()
        token.write_text(NEXT)

        async def is_sent() -> bool:
            await sidecar.ask()
            return plays.seen[-1][1] == f"Bearer {NEXT}"

        await eventually(is_sent)
        assert plays.refused == 0


async def test_a_401_is_passed_on_once_evicts_nothing_and_has_the_file_read_at_once(
    token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks(monkeypatch, every=3600)
    plays = Locked(TOKEN)
    async with raw_upstream(plays) as service, sidecar_with(with_token(service.url, token, policy=KEPT)) as sidecar:
        good = await sidecar.ask()
        plays.takes = {f"Bearer {NEXT}"}
        token.write_text(NEXT)
        refused = await sidecar.ask()
        assert (refused.status, refused.document) == (401, {"detail": "Who are you?"})
        assert len(plays.seen) == 2

        async def is_let_in() -> bool:
            return (await sidecar.ask()).status == 200

        await eventually(is_let_in)
        await service.close()
        assert (await sidecar.ask()).prompt == good.prompt


@pytest.mark.parametrize("spoilt", [b"", b"\xff\xfe", b"two\nlines\n", b"has a blank\n", None])
async def test_a_broken_token_leaves_the_old_one_in_force(
    spoilt: bytes | None, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks(monkeypatch, every=0.01)
    plays = Locked(TOKEN)
    async with raw_upstream(plays) as service, sidecar_with(with_token(service.url, token, policy=KEPT)) as sidecar:
        if spoilt is None:
            token.unlink()
        else:
            token.write_bytes(spoilt)

        async def is_told() -> bool:
            return 'upstream_files_ok{what="token"} 0.0' in await sidecar.metrics()

        await eventually(is_told)
        assert (await sidecar.ask()).status == 200
        async with sidecar.session.get(f"{sidecar.ops}/status") as response:
            error = (await response.json())["upstream"]["token"]["error"]
        assert error.startswith(f"upstream.token_file: {token} ")


# Bad input


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (f"{TOKEN}\n{TOKEN}".encode(), "has more than one line"),
        (f"{TOKEN} {TOKEN}".encode(), "holds no bearer token; allowed: printable ASCII without blanks"),
        (f"{TOKEN}\0".encode(), "holds no bearer token; allowed: printable ASCII without blanks"),
        ("tökén".encode(), "holds no bearer token; allowed: printable ASCII without blanks"),
    ],
)
async def test_a_token_that_cannot_be_used_stops_the_start_with_a_sentence(
    content: bytes | None, why: str, token: Path
) -> None:
    token.unlink() if content is None else token.write_bytes(content)
    with pytest.raises(FileMistakeError) as refused:
        async with open_core(with_token("http://127.0.0.1:1", token)):
            pass
    assert str(refused.value) == f"upstream.token_file: {token} {why}."
    assert refused.value.exit_code == 2


# Who hears of it


async def test_no_secret_is_in_the_status_the_metrics_the_log_an_answer_or_the_process_list(
    token: Path, tmp_path: Path
) -> None:
    plays = Locked(TOKEN)
    other = Locked()
    async with raw_upstream(plays) as service:
        async with sidecar_process(
            service.url, tmp_path, UPSTREAM__TOKEN_FILE=str(token), PROXY__ADD_TOKEN="true", LOG__LEVEL="debug"
        ) as sidecar:
            said = [(await sidecar.ask(headers={"Authorization": OWN})).body]
            await pass_on_to(sidecar, said)
            service.plays = other
            said += [(await sidecar.ask(user)).body for user in (2, 3)]
            await service.close()
            said.append((await sidecar.ask(4)).body)
            for path in ("/status", "/metrics"):
                async with sidecar.session.get(sidecar.ops + path) as response:
                    said.append(await response.read())
            said += [Path(f"/proc/{sidecar.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
        said.append(bytes(sidecar.log))
    assert plays.refused == 0
    assert other.refused == 2
    for each in said:
        assert each
        for secret in (TOKEN, "of-learnflow"):
            assert secret.encode() not in each


async def pass_on_to(sidecar: Any, said: list[bytes]) -> None:
    async with sidecar.session.put(f"{sidecar.base}/api/v1/users/1/x", data=b"{}") as response:
        said.append(await response.read())
        assert response.status == 200
