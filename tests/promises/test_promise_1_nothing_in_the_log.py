"""Promise 1, the log: at debug level, whatever fails, no content, setting, token, password or user id is in a line."""

import json
import signal
from collections.abc import Iterator
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import ClientError

from sidecar.settings import LogFormat, LogLevel, LogSettings
from sidecar.telemetry.log_setup import Logs
from tests.harness import (
    Client,
    Exchange,
    Process,
    eventually,
    prompt_data,
    quick_settings,
    raw_upstream,
    sidecar_process,
    sidecar_with,
)
from tests.redis_servers import server

CONTENT = "kanarienvogel-5f1d"
SETTING = "geheimer-wert-77ab"
LITERAL = "wortlaut-der-vorlage-31cc"
TOKEN = "sehr-geheim-9a2e"
ADMIN = "nur-fuer-admins-04bd"
PASSWORD = "passwort-fuer-redis-6e17"
USER = 739_184_650_273
SECRETS = (CONTENT, SETTING, LITERAL, TOKEN, ADMIN, PASSWORD, str(USER), str(USER - 1))
CREDENTIALS = {"Authorization": f"Bearer {TOKEN}", "Cookie": f"session={TOKEN}", "X-Api-Key": TOKEN}

DOCUMENTS: dict[str, Any] = {  # what the config service answers for a node; each with a secret where it could be quoted
    "good": prompt_data(f"{LITERAL} {{{{ topic }}}} {{{{ style }}}}", {"style": SETTING}),
    "stale": prompt_data(f"{LITERAL} {{{{ topic }}}}", {"style": SETTING}, cache_ttl=0),
    "syntax in a string": prompt_data(f"{LITERAL} {{{{ '{LITERAL}' + }}}}", {"style": SETTING}),
    "syntax after text": prompt_data(f"{LITERAL} {{% endif %}} {LITERAL}", {"style": SETTING}),
    "a string not closed": prompt_data(f"{{{{ '{LITERAL} }}}}", {"style": SETTING}),
    "no such filter": prompt_data(f"{{{{ '{LITERAL}'|nothing }}}}", {"style": SETTING}),
    "refused": prompt_data(f"{{{{ '{LITERAL}' * 100000000 }}}}", {"style": SETTING}),
    "undefined": prompt_data(f"{LITERAL} {{{{ nobody }}}}", {"style": SETTING}),
    "required": prompt_data(f"{LITERAL} {{{{ topic }}}}", {"style": SETTING}, required=("nobody",)),
    "a setting that is no text": prompt_data(f"{LITERAL}", {"style": {"deep": SETTING}}),  # type: ignore[dict-item]
    "settings that are a text": prompt_data(LITERAL) | {"user_placeholders": SETTING},
    "a template that is no text": prompt_data() | {"template": [LITERAL], "user_placeholders": {SETTING: SETTING}},
    "a lifetime that is a text": prompt_data(LITERAL, {"style": SETTING}) | {"cache_ttl": SETTING},
    "an option that is none": prompt_data(LITERAL, {"style": SETTING}, render={"undefined": f"it's {SETTING}"}),
    "of another user": prompt_data(LITERAL, {"style": SETTING}, user_id=USER + 1),
    "half": prompt_data(LITERAL, {"style": SETTING}),
    "not json": f'{{"template": "{LITERAL}", {SETTING}'.encode(),
    "not utf-8": b'{"template": "\xff' + LITERAL.encode(),
}
ELSEWHERE = ("ok", "failed", "reset", "half", "head", "redirect")
"""What the service does with what is passed on, by the last part of the path."""


class Upstream:
    """Quotes back what it is sent, in bodies and in headers, wherever it can."""

    def __init__(self) -> None:
        self.down = False

    async def __call__(self, exchange: Exchange) -> None:
        if self.down:
            exchange.reset()
        elif b" /api/v1/prompt-data " in exchange.head:
            await self._document(exchange)
        else:
            await self._elsewhere(exchange)

    async def _document(self, exchange: Exchange) -> None:
        document = DOCUMENTS.get(exchange.node)
        if document is None:
            await exchange.answer({"detail": f"{SETTING} {USER} {CONTENT}"}, status=404)
        elif exchange.node == "half":
            await exchange.answer(document, headers={"Content-Length": "100000"})
            exchange.writer.close()
        else:
            await exchange.answer(document, headers={"ETag": f'"{SETTING}"', "X-Secret": TOKEN})

    async def _elsewhere(self, exchange: Exchange) -> None:
        said = {"Set-Cookie": f"session={TOKEN}", "X-Secret": SETTING}
        match exchange.head.split(b" ")[1].partition(b"?")[0].rpartition(b"/")[2]:
            case b"failed":
                await exchange.answer({"detail": SETTING}, status=500, headers=said)
            case b"reset":
                exchange.reset()
            case b"half":
                await exchange.answer({"value": SETTING}, headers={**said, "Content-Length": "9999"})
                exchange.writer.close()
            case b"head":
                await exchange.write(f"HTTP/1.1 two hundred {SETTING}\r\n{TOKEN}\r\n\r\n".encode())
                exchange.writer.close()
            case b"redirect":
                await exchange.answer(status=307, headers={**said, "Location": f"/api/v1/users/{USER}/{TOKEN}"})
            case _:
                await exchange.answer({"placeholders": {"style": {"value": SETTING}}, "user": USER}, headers=said)


async def ask_for_prompts(client: Client) -> None:
    for path in ("/api/v1/generate-prompt", "/api/v1/prompt-data"):
        for node in (*DOCUMENTS, CONTENT):
            body = {"user_id": USER, "node_name": node, "context": {"topic": CONTENT, CONTENT: [CONTENT]}}
            await client.send(json.dumps(body).encode(), CREDENTIALS, path=path)


async def write_as_the_bot(client: Client) -> None:
    for method in ("PUT", "POST", "GET", "DELETE"):
        for last in ELSEWHERE:
            path = f"{client.base}/api/v1/users/{USER}/placeholders/{last}?token={TOKEN}"
            with suppress(ClientError, TimeoutError):
                async with client.session.request(
                    method, path, json={"value": SETTING}, headers=CREDENTIALS, allow_redirects=False
                ) as answer:
                    await answer.read()
    async with client.session.get(f"{client.base}/api/v1/users/{USER}/placeholders") as answer:
        await answer.read()


async def administer(client: Client) -> None:
    bodies: list[Any] = [
        *({"user": USER}, {"node": CONTENT}, {"user": CONTENT}, {CONTENT: SETTING}, {"reset": CONTENT}, [CONTENT]),
        {"pairs": [[USER, "good"], [USER, "syntax in a string"], [USER, CONTENT]]},
        {"users": [USER], "nodes": ["good", CONTENT], "rate": CONTENT},
    ]
    for call in ("invalidate", "parity", "warm", TOKEN):
        for token in (ADMIN, f"{ADMIN}-wrong", f"{ADMIN}\u00e9"):
            for body in bodies:
                async with client.session.post(
                    f"{client.ops}/admin/{call}", json=body, headers={"Authorization": f"Bearer {token}"}
                ) as answer:
                    await answer.read()
    for path in (f"/{TOKEN}?{CONTENT}", f"/admin/warm?job={TOKEN}"):
        async with client.session.get(client.ops + path, headers={"Authorization": f"Bearer {ADMIN}"}) as answer:
            await answer.read()


def found_in(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text or secret.upper() in text]


def lines_with_secrets(log: bytes | bytearray) -> list[str]:
    return [line for line in log.decode().splitlines() if found_in(line)]


QUICK = {
    "LOG__LEVEL": "debug",
    "DEADLINE": "600ms",
    "RETRY__PER_TRY_TIMEOUT": "150ms",
    "RETRY__BACKOFF": "10ms",
    "POLICY__DEFAULT__NETWORK_TIMEOUT": "150ms",
    "POLICY__DEFAULT__STALE_WHILE_REVALIDATE": "0s",
    "BREAKER__FAIL_MAX": "1000",
    "PROXY__RESPONSE_TIMEOUT": "500ms",
}


async def drive(sidecar: Process, plays: Upstream) -> None:
    await ask_for_prompts(sidecar)
    await write_as_the_bot(sidecar)
    await administer(sidecar)
    assert (await sidecar.ask(USER - 1, "stale")).status == 200  # a user whom no write made void
    plays.down = True
    assert "stale-if-error" in (await sidecar.ask(USER - 1, "stale")).how
    await ask_for_prompts(sidecar)
    await write_as_the_bot(sidecar)


@pytest.mark.parametrize("style", ["json", "console"])
async def test_nothing_secret_is_in_the_log_whatever_is_asked_and_however_it_fails(tmp_path: Path, style: str) -> None:
    plays, token = Upstream(), tmp_path / "token"
    token.write_text(ADMIN)
    settings = {"OPS__ADMIN_TOKEN_FILE": str(token), "LOG__FORMAT": style, "STORE__KIND": "file", **QUICK}
    async with raw_upstream(plays) as upstream, sidecar_process(upstream.url, tmp_path, **settings) as sidecar:
        await drive(sidecar, plays)
    assert lines_with_secrets(sidecar.log) == []
    log = sidecar.log.decode()
    for event in (
        *("prompt_served", "prompt_refused", "stale_prompt_served", "prompt_not_rendered", "template_not_admitted"),
        *("fetch_failed", "settings_written", "request_passed_on", "passing_on_failed", "invalidated", "warm_up_ended"),
    ):
        assert event in log, event
    assert "Traceback" not in log


async def test_no_password_is_in_the_log_when_redis_refuses_it_or_goes(tmp_path: Path) -> None:
    plays, password = Upstream(), tmp_path / "password"
    async with server("valkey", "--requirepass", PASSWORD, password=PASSWORD) as redis:
        password.write_text(f"{PASSWORD}-wrong")
        store = {
            "STORE__KIND": "redis",
            "STORE__REDIS__URL": redis.url,
            "STORE__REDIS__PASSWORD_FILE": str(password),
            "STORE__REDIS__TIMEOUT": "200ms",
        }
        async with (
            raw_upstream(plays) as upstream,
            sidecar_process(upstream.url, tmp_path, **store, **QUICK) as sidecar,
        ):
            await ask_for_prompts(sidecar)
            assert b'"error": "auth"' in sidecar.log
            password.write_text(PASSWORD)

            async def has_recovered() -> bool:
                await sidecar.ask(USER, "stale")
                return b"store_recovered" in sidecar.log

            await eventually(has_recovered)
            await write_as_the_bot(sidecar)
            redis.send(signal.SIGSTOP)
            await ask_for_prompts(sidecar)
            await redis.kill()
            await ask_for_prompts(sidecar)
    assert lines_with_secrets(sidecar.log) == []


class Unprintable(Exception):
    """Quotes what it was about, as library errors do."""


def raises(*_: Any, **__: Any) -> Any:
    local = {"content": CONTENT, "settings": SETTING}
    try:
        raise KeyError(str(local))
    except KeyError as error:
        raise Unprintable(f"cannot render {local} for redis://user:{PASSWORD}@host and {TOKEN}") from error


async def raises_later() -> None:
    raises()


@pytest.fixture
def log() -> Iterator[StringIO]:
    stream = StringIO()
    Logs(LogSettings(level=LogLevel.DEBUG, format=LogFormat.JSON), stream, environ={})
    yield stream
    structlog.reset_defaults()


async def plays_well(exchange: Exchange) -> None:
    await exchange.answer(prompt_data(LITERAL, {"style": SETTING}, cache_ttl=0))


@pytest.mark.parametrize("place", ["manager.get_rendered_prompt", "cache._miss", "reads.obtain", "writes.began"])
async def test_an_error_that_nobody_foresaw_is_told_by_its_kind_and_place_and_nothing_else(
    log: StringIO, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    async with raw_upstream(plays_well) as upstream, sidecar_with(quick_settings(upstream.url)) as sidecar:
        part, name = place.split(".")
        monkeypatch.setattr(type(getattr(sidecar.core, part)), name, raises)
        await sidecar.ask(USER, "explain", {"topic": CONTENT}, CREDENTIALS)
        await write_as_the_bot(sidecar)
        sidecar.core.background.spawn(raises_later(), name="behind")
        await sidecar.settle()
    assert lines_with_secrets(log.getvalue().encode()) == []
    assert "Traceback" not in log.getvalue()
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    crashed = [line for line in lines if line["event"] == "crashed"]
    assert {line["what"] for line in crashed} == {"request", "behind"}
    assert {line["error"] for line in crashed} == {"Unprintable"}
    assert all(line["where"][-1].endswith(" raises") for line in crashed)
