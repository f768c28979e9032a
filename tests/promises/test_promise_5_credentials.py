"""Promise 5: what was fetched with one credential never reaches another's prompt."""

import asyncio
import json
import re
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from sidecar.cache import records
from sidecar.core.credential import NOBODY, Credentials
from sidecar.core.policy import Policy
from sidecar.settings import Settings, StoreSettings, UpstreamApi
from tests.harness import (
    KEPT,
    Answered,
    Exchange,
    Sidecar,
    eventually,
    prompt_data,
    quick_settings,
    raw_upstream,
    settings_for,
    sidecar_with,
)
from tests.redis_servers import server
from tests.scenarios.test_redis_shared import store_at, written

ANN, BOB, EVE = "Bearer canary-ann", "Bearer canary-bob", "Basic Y2FuYXJ5OmV2ZQ=="
OWN = "Bearer canary-own"
EVERYBODY = (ANN, BOB, None)
LONG = Policy(ttl=60, max_ttl=60, stale_while_revalidate=0, stale_if_error=600, network_timeout=0.3)
KEY = b64encode(bytes(range(32)))
GIVEN = re.compile(rb"(?im)^authorization: *(.*?)\r$")


def credential_of(exchange: Exchange) -> str | None:
    found = GIVEN.findall(exchange.head)
    assert len(found) <= 1
    return found[0].decode() if found else None


class Marking:
    """A config service that puts the credential that it saw in what it serves, and refuses some."""

    def __init__(self) -> None:
        self.seen: Counter[str | None] = Counter()
        self.refuses: dict[str | None, int] = {}
        self.held: asyncio.Event | None = None

    async def __call__(self, exchange: Exchange) -> None:
        credential = credential_of(exchange)
        self.seen[credential] += 1
        if self.held is not None:
            await self.held.wait()
        line = exchange.head.partition(b"\r\n")[0].decode()
        mark = f"{credential} {self.seen[credential]}"
        if credential in self.refuses:
            await exchange.answer({"detail": f"not {credential}"}, status=self.refuses[credential])
        elif "generate-prompt" in line:
            await exchange.answer({"prompt": f"rendered for {mark}", "used_placeholders": {}})
        elif line.startswith("GET"):
            await exchange.answer({"placeholders": {"who": {"value": mark}}})
        elif line.startswith("PUT"):
            await exchange.answer({})
        else:
            await exchange.answer(prompt_data("for {{ who }}", {"who": mark}))

    @property
    def calls(self) -> int:
        """How many calls there were."""
        return self.seen.total()


def by(credential: str | None) -> dict[str, str]:
    return {} if credential is None else {"Authorization": credential}


def apart(url: str, *, quick: bool = False, upstream: dict[str, Any] | None = None, **given: Any) -> Settings:
    """Return settings that keep credentials apart."""
    make = quick_settings if quick else settings_for
    return make(url, upstream={"forward_authorization": True, **(upstream or {})}, **{"policy": LONG, **given})


async def ask(sidecar: Sidecar, credential: str | None, user: int = 1, node: str = "explain") -> Answered:
    return await sidecar.ask(user, node, {}, by(credential))


async def assert_own(sidecar: Sidecar, credential: str | None, user: int = 1, node: str = "explain") -> Answered:
    answered = await ask(sidecar, credential, user, node)
    assert answered.prompt.startswith(f"for {credential} ")
    return answered


# In memory


async def test_each_credential_has_entries_of_its_own() -> None:
    plays = Marking()
    async with raw_upstream(plays) as upstream, sidecar_with(apart(upstream.url)) as sidecar:
        keys = [*product(EVERYBODY, (1, 12), ("explain", "quiz"))]
        for round_number in (1, 2):
            for key in keys:
                answered = await assert_own(sidecar, *key)
                assert ("hit" in answered.how) == (round_number == 2)
        assert plays.calls == len(keys)
        assert len(sidecar.core.cache) == len(keys)


async def test_credentials_that_look_alike_are_others() -> None:
    plays = Marking()
    alike = ["Bearer a", "bearer a", "Bearer A", "Bearer  a", "Bearer a,", "Bearer", "x", None]
    async with raw_upstream(plays) as upstream, sidecar_with(apart(upstream.url)) as sidecar:
        for _ in range(2):
            for each in alike:
                await assert_own(sidecar, each)
        assert plays.calls == len(alike)


async def test_a_fetch_is_shared_by_those_of_one_credential_only() -> None:
    plays = Marking()
    plays.held = asyncio.Event()
    async with raw_upstream(plays) as upstream, sidecar_with(apart(upstream.url)) as sidecar:
        asking = {each: [asyncio.ensure_future(ask(sidecar, each)) for _ in range(10)] for each in EVERYBODY}
        while "prompt_sidecar_coalesced_requests_total 27.0" not in await sidecar.metrics():
            pass
        plays.held.set()
        for credential, tasks in asking.items():
            for answered in await asyncio.gather(*tasks):
                assert answered.prompt == f"for {credential} 1"
        assert plays.seen == dict.fromkeys(EVERYBODY, 1)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_credential_gets_the_refusal_and_nothing_of_anothers(status: int) -> None:
    plays = Marking()
    async with raw_upstream(plays) as upstream, sidecar_with(apart(upstream.url, policy=KEPT)) as sidecar:
        for each in (ANN, None):
            await assert_own(sidecar, each)
        plays.refuses = {BOB: status, ANN: status}
        for each in (BOB, ANN):
            refused = await ask(sidecar, each)
            assert (refused.status, refused.document) == (status, {"detail": f"not {each}"})
        plays.refuses = {}
        await upstream.close()
        assert (await ask(sidecar, ANN)).prompt == f"for {ANN} 1"  # a secret may be rotating: nothing was evicted
        assert (await ask(sidecar, BOB)).status == 503


async def test_a_404_evicts_what_was_fetched_with_the_same_credential_and_no_more() -> None:
    plays = Marking()
    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(apart(upstream.url, policy=replace(KEPT, ttl=None))) as sidecar,
    ):
        for each in (ANN, BOB):
            await assert_own(sidecar, each)
        plays.refuses = {BOB: 404}
        again = {**by(BOB), "Cache-Control": "no-cache"}
        assert (await sidecar.ask(1, context={}, headers=again)).status == 404
        assert (await ask(sidecar, BOB)).status == 404
        assert "hit" in (await assert_own(sidecar, ANN)).how


async def test_in_an_outage_nobody_is_covered_by_what_is_anothers() -> None:
    plays = Marking()
    async with raw_upstream(plays) as upstream, sidecar_with(apart(upstream.url, quick=True, policy=KEPT)) as sidecar:
        await assert_own(sidecar, ANN)
        await upstream.close()
        assert "stale-if-error" in (await assert_own(sidecar, ANN)).how
        for each in (BOB, None, "Bearer canary-an", "Bearer canary-ann2"):
            assert (await ask(sidecar, each)).status == 503


async def test_what_is_revalidated_behind_an_answer_is_so_in_the_name_of_who_asked() -> None:
    plays = Marking()
    policy = Policy(ttl=0.001, max_ttl=60, stale_while_revalidate=60, stale_if_error=60)
    async with raw_upstream(plays) as upstream, sidecar_with(apart(upstream.url, policy=policy)) as sidecar:
        for each in EVERYBODY:
            await assert_own(sidecar, each)
        plays.seen.clear()

        async def is_revalidated() -> bool:
            assert "hit" in (await assert_own(sidecar, ANN)).how
            return plays.seen[ANN] > 0

        await eventually(is_revalidated)
        await sidecar.settle()
        assert set(plays.seen) == {ANN}


async def test_the_parts_are_kept_apart_too() -> None:
    plays = Marking()
    async with raw_upstream(plays) as upstream, sidecar_with(apart(upstream.url)) as sidecar:
        for _ in range(2):
            for each in EVERYBODY:
                body = json.dumps({"user_id": 1, "node_name": "explain"}).encode()
                parts = await sidecar.send(body, by(each), path="/api/v1/prompt-data")
                assert parts.document["user_placeholders"] == {"who": f"{each} 1"}
                assert (await ask(sidecar, each)).prompt == f"for {each} 1"
        assert plays.calls == len(EVERYBODY)


async def test_settings_that_come_apart_from_the_template_are_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "prompts.yaml").write_text("explain_system_prompt: 'for {{ who }}'\n")
    upstream_keys = {"api": UpstreamApi.PLACEHOLDERS, "templates_file": tmp_path / "prompts.yaml"}
    plays = Marking()
    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(apart(upstream.url, upstream=upstream_keys)) as sidecar,
    ):
        for _ in range(2):
            for each in EVERYBODY:
                assert (await ask(sidecar, each)).prompt == f"for {each} 1"
        assert plays.calls == len(EVERYBODY)


async def test_what_the_service_renders_it_renders_in_the_name_of_who_asked() -> None:
    plays = Marking()
    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(apart(upstream.url, upstream={"api": UpstreamApi.PASSTHROUGH})) as sidecar,
    ):
        for each in EVERYBODY:
            assert (await ask(sidecar, each)).prompt == f"rendered for {each} 1"


# Who writes, who invalidates, who warms up


@pytest.mark.parametrize("writer", EVERYBODY)
async def test_a_change_of_settings_reaches_the_entries_of_every_credential(writer: str | None, tmp_path: Path) -> None:
    plays = Marking()
    store = in_file(tmp_path)
    async with raw_upstream(plays) as upstream, sidecar_with(apart(upstream.url, store=store)) as sidecar:
        for user, each in product((1, 2), EVERYBODY):
            await ask(sidecar, each, user)
        url = f"{sidecar.base}/api/v1/users/1/placeholders/5"
        async with sidecar.session.put(url, json={}, headers=by(writer)) as response:
            assert response.status == 200
        for each in EVERYBODY:
            assert "fwd=miss" in (await ask(sidecar, each, 1)).how
            assert "hit" in (await ask(sidecar, each, 2)).how


async def test_an_invalidation_by_hand_reaches_the_entries_of_every_credential(tmp_path: Path) -> None:
    plays = Marking()
    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(apart(upstream.url, store=in_file(tmp_path))) as sidecar,
    ):
        for wanted in ({"user": 1}, {"node": "explain"}, {"all": True}):
            for each in EVERYBODY:
                await ask(sidecar, each)
            async with sidecar.session.post(f"{sidecar.ops}/admin/invalidate", json=wanted) as response:
                assert (await response.json())["memory"] == len(EVERYBODY)
            for each in EVERYBODY:
                assert "fwd=miss" in (await ask(sidecar, each)).how


async def test_a_warm_up_fills_only_what_is_nobodys(tmp_path: Path) -> None:
    plays = Marking()
    (tmp_path / "token").write_text(OWN.removeprefix("Bearer "))
    keys = {"token_file": tmp_path / "token"}
    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(apart(upstream.url, upstream=keys, store=in_file(tmp_path))) as sidecar,
    ):
        await ask(sidecar, ANN, 7)
        await ask(sidecar, None, 8)
        done = await warmed_up(sidecar, {"users": [1, 2], "nodes": ["explain"]})
        assert done["stored"] == 2
        asked = plays.calls
        assert plays.seen == {ANN: 1, OWN: asked - 1}
        await written(sidecar)
        done = await warmed_up(sidecar, {"from_store": True})
        assert (done["stored"], done["fresh"]) == (0, 3)  # Ann's is not asked for: nobody has her credential any more
        assert plays.calls == asked
        assert "hit" in (await ask(sidecar, None, 1)).how
        assert (await ask(sidecar, BOB, 1)).prompt == f"for {BOB} 1"


async def warmed_up(sidecar: Sidecar, wanted: dict[str, Any]) -> Any:
    async with sidecar.session.post(f"{sidecar.ops}/admin/warm", json=wanted) as response:
        job = (await response.json())["status"]
    told: Any = None

    async def is_done() -> bool:
        nonlocal told
        async with sidecar.session.get(sidecar.ops + job) as response:
            told = await response.json()
        return bool(told["state"] == "done")

    await eventually(is_done)
    return told


# Behind the memory


def in_file(folder: Path) -> StoreSettings:
    (folder / "key").write_bytes(KEY)
    return StoreSettings(path=folder / "cache.db", signing_key_file=folder / "key")


@asynccontextmanager
async def stored(kind: str, folder: Path) -> AsyncIterator[StoreSettings]:
    if kind == "file":
        yield in_file(folder)
    else:
        async with server() as redis:
            yield replace(store_at(redis.url), signing_key_file=in_file(folder).signing_key_file)


@pytest.mark.parametrize("kind", ["file", "redis"])
async def test_each_credential_finds_its_own_after_a_restart_and_nobody_anothers(kind: str, tmp_path: Path) -> None:
    plays = Marking()
    async with raw_upstream(plays) as upstream, stored(kind, tmp_path) as store:
        settings = apart(upstream.url, quick=True, store=store)
        async with sidecar_with(settings) as sidecar:
            for each in EVERYBODY:
                await assert_own(sidecar, each)
            await written(sidecar)
        await upstream.close()
        async with sidecar_with(settings) as sidecar:
            for each in EVERYBODY:
                assert (await ask(sidecar, each)).prompt == f"for {each} 1"
            for stranger in (EVE, "Bearer canary-an"):
                assert (await ask(sidecar, stranger)).status == 503
        assert plays.calls == len(EVERYBODY)


async def test_another_key_finds_nothing_of_anybodys_credential(tmp_path: Path) -> None:
    plays = Marking()
    async with raw_upstream(plays) as upstream:
        settings = apart(upstream.url, quick=True, store=in_file(tmp_path))
        async with sidecar_with(settings) as sidecar:
            await assert_own(sidecar, ANN)
        (tmp_path / "key").write_bytes(b64encode(b"x" * 32) + b"\n" + KEY)  # rotated: the old one is still known
        async with sidecar_with(settings) as sidecar:
            assert "fwd=miss" in (await assert_own(sidecar, ANN)).how


async def test_no_credential_is_written_down_or_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "LEVEL", 0)  # so that what is in a record can be seen
    plays = Marking()
    said: list[bytes] = []
    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(apart(upstream.url, quick=True, store=in_file(tmp_path))) as sidecar,
    ):
        plays.refuses = {EVE: 401}
        for each in (*EVERYBODY, EVE):
            await ask(sidecar, each)
        await upstream.close()
        said.append((await ask(sidecar, "Bearer canary-late")).body)
        for path in ("/status", "/metrics"):
            async with sidecar.session.get(sidecar.ops + path) as response:
                said.append(await response.read())
        assert "canary" not in repr([*sidecar.core.cache])
    said += [each.read_bytes() for each in tmp_path.iterdir()]
    said += [each.encode() for each in capsys.readouterr()]
    served = re.compile(rb"Bearer canary-(ann|bob) 1")  # the service's own words
    assert any(map(served.search, said))
    for text in said:
        assert b"canary" not in served.sub(b"", text)


# What a request may say


@pytest.mark.parametrize(
    "headers",
    [
        b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n",
        b"Authorization: Bearer a\r\nauthorization: Bearer a\r\n",
        b"Authorization: Bearer \xc3\xa4\r\n",
        b"Authorization: Bearer \xff\r\n",
    ],
)
async def test_a_credential_that_is_not_clear_is_refused(headers: bytes) -> None:
    plays = Marking()
    async with raw_upstream(plays) as upstream, sidecar_with(apart(upstream.url)) as sidecar:
        body = b'{"user_id": 1, "node_name": "explain", "context": {}}'
        for path in (b"generate-prompt", b"prompt-data"):
            answer = await sidecar.raw(
                b"POST /api/v1/" + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + headers,
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body),
            )
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert b"one Authorization at most" in answer
        assert plays.calls == 0


async def test_without_the_setting_nobody_reads_the_header() -> None:
    plays = Marking()
    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url, policy=LONG)) as sidecar:
        for each in EVERYBODY:
            assert (await ask(sidecar, each)).prompt == "for None 1"
        assert plays.seen == {None: 1}


# The tag


def test_a_tag_says_nothing_without_the_key() -> None:
    one, other = Credentials(b"1" * 32), Credentials(b"2" * 32)
    assert one.of(ANN) == one.of(ANN)
    assert one.of(ANN).tag != other.of(ANN).tag
    assert one.of(ANN).tag != one.of(BOB).tag
    assert one.of(None) is NOBODY
    assert one.of("").tag != NOBODY.tag
    assert "canary" not in repr(one.of(ANN))
