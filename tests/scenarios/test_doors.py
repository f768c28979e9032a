"""Who gets in: a whole sidecar under the names it is asked for by, before pages of strangers, beyond loopback."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from sidecar.app import StartError, running
from sidecar.settings import Address, OpsSettings, UpstreamSettings
from tests.harness import (
    PATH,
    Client,
    Exchange,
    Sidecar,
    quick_settings,
    raw_upstream,
    reference,
    settings_for,
    sidecar_with,
)
from tests.wire import Answer, get, post, wire

NOWHERE = "http://prompt-config-service:9"
PROMPT = json.dumps({"user_id": 1, "node_name": "explain", "context": {"topic": "tides"}}).encode()
FOREIGN = ("Content-Type: text/plain", "Origin: https://evil.example", "Sec-Fetch-Site: cross-site")
"""What a browser says of a form, or of a fetch() that needs no preflight."""


async def told(port: int, data: bytes, host: str) -> Answer:
    """Return the answer to a request under another name."""
    for theirs in (b"Host: localhost:8002", b"Host: localhost:9102"):
        data = data.replace(theirs, host.encode())
    async with wire(port) as client:
        return await client.ask(data)


def ports(client: Client) -> tuple[int, int]:
    return client.address[1], int(client.ops.rpartition(":")[2])


async def metric(client: Client, name: str) -> float:
    lines = [line for line in (await client.metrics()).splitlines() if line.startswith(f"prompt_sidecar_{name} ")]
    return float(lines[0].rpartition(" ")[2])


async def test_learnflow_a_kubelet_and_prometheus_get_in_and_a_rebound_name_does_not() -> None:
    async with reference() as service, sidecar_with(quick_settings(service.url)) as sidecar:
        learnflow, ops = ports(sidecar)
        prompt = post(PROMPT, "Content-Type: application/json")
        for host in ("localhost:8002", "127.0.0.1:8002", "[::1]:8002"):
            assert (await told(learnflow, prompt, f"Host: {host}")).status == 200
        for path in ("/livez", "/readyz", "/metrics", "/status"):
            assert (await told(ops, get(path), "Host: 10.244.0.17:9102")).status == 200
            assert (await told(ops, get(path), "Host: rebound.example:9102")).status == 421
        for data in (prompt, get("/api/v1/profiles"), post(b"{}", path="/api/v1/users/1/reset")):
            assert (await told(learnflow, data, "Host: rebound.example:8002")).status == 421
        assert await metric(sidecar, 'requests_refused_total{reason="host"}') == 7


async def test_the_upstreams_own_name_and_the_allowed_ones_are_ours() -> None:
    settings = replace(settings_for(NOWHERE), allowed_hosts=frozenset({"prompts.example"}))
    async with sidecar_with(settings) as sidecar:
        learnflow, ops = ports(sidecar)
        nothing = post(b"", "Content-Type: application/json")
        for host, status in (("prompt-config-service", 422), ("prompts.example", 422), ("config-service", 421)):
            assert (await told(learnflow, nothing, f"Host: {host}:8002")).status == status
        assert (await told(ops, get("/livez"), "Host: prompts.example")).status == 200
        assert (await told(ops, get("/livez"), "Host: prompt-config-service")).status == 421


async def test_a_page_in_a_developers_browser_changes_nothing() -> None:
    async with reference() as service, sidecar_with(quick_settings(service.url)) as sidecar:
        learnflow, ops = ports(sidecar)
        for port, path, body in (
            (ops, "/admin/invalidate", b'{"all": true}'),
            (ops, "/admin/parity", b'{"reset": null}'),
            (ops, "/admin/warm", b'{"pairs": [[1, "explain"]]}'),
            (learnflow, PATH, PROMPT),
            (learnflow, "/api/v1/users/1/apply-profile/1", b""),
            (learnflow, "/api/v1/users/1/reset", b""),
        ):
            answer = await told(port, post(body, *FOREIGN, path=path), f"Host: localhost:{port}")
            assert (answer.status, answer.header("Content-Type")) == (403, "application/problem+json"), path
        assert not any(service.state.calls.values())
        assert await metric(sidecar, 'requests_refused_total{reason="cross_site"}') == 6


async def test_a_page_in_a_developers_browser_reads_nothing_even_where_the_service_lets_every_site() -> None:
    async def plays(exchange: Exchange) -> None:
        await exchange.answer({}, headers={"Access-Control-Allow-Origin": "*"})

    async with raw_upstream(plays) as service, sidecar_with(quick_settings(service.url)) as sidecar:
        learnflow, ops = ports(sidecar)
        for port, path in ((learnflow, "/api/v1/users/1/placeholders"), (learnflow, "/any"), (ops, "/status")):
            answer = await told(port, get(path, *FOREIGN[1:]), f"Host: localhost:{port}")
            assert (answer.status, answer.header("Access-Control-Allow-Origin")) == (403, None), path
        assert not any(b"/users" in request or b"/any" in request for request in service.requests)


# Beyond loopback


async def status(sidecar: Sidecar) -> Mapping[str, Any]:
    async with sidecar.session.get(f"{sidecar.ops}/status") as response:
        found: Mapping[str, Any] = await response.json()
        return found


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
async def test_a_listener_that_others_can_reach_is_warned_of(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = replace(settings_for(NOWHERE), listen=Address(host, 0), listen_beyond_loopback=True)
    async with sidecar_with(settings) as sidecar:
        warnings = (await status(sidecar))["warnings"]
    said = capsys.readouterr().out
    beyond = host == "0.0.0.0"
    assert ["others can reach 0.0.0.0:0" in each for each in warnings] == [True] * beyond
    assert ("listening_beyond_loopback" in said) is beyond


async def test_a_name_that_resolves_to_more_than_loopback_does_not_get_round_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Address, "is_loopback", property(lambda address: address.host == "localhost"))
    settings = replace(settings_for(NOWHERE), listen=Address("localhost", 0), ops=OpsSettings(listen=Address("::1", 0)))
    with pytest.raises(StartError, match=r"^listen: localhost:0 is .*, which others can reach; write an address\.$"):
        async with running(settings):
            pytest.fail("it started")


async def test_a_host_with_ipv6_only_is_served() -> None:
    at = Address("::1", 0)
    settings = replace(
        settings_for(NOWHERE), listen=at, ops=OpsSettings(listen=at), upstream=UpstreamSettings(url="http://[::1]:9")
    )
    async with sidecar_with(settings) as sidecar:
        assert sidecar.base.startswith("http://[::1]:")
        assert (await sidecar.send(b"")).status == 422
        assert (await status(sidecar))["ready"] is True
