"""Promise 3: a template and the settings it is rendered with are those that the upstream served together."""

import asyncio
import random
import re
from collections import Counter

import pytest

from sidecar.core.policy import Policy, Strategy
from sidecar.demo.reference.faults import Mode
from tests.harness import (
    Answered,
    Exchange,
    Reference,
    Sidecar,
    prompt_data,
    raw_upstream,
    reference,
    settings_for,
    sidecar_with,
)

ROUNDS = 10
AT_ONCE = 12
NODES = ("explain", "question")


def version_of(answered: Answered) -> int:
    """Return the prompt's version; of the template and of each setting it is the same one."""
    versions = set(re.findall(r"v(\d+)", answered.prompt))
    assert len(versions) == 1, answered.prompt
    assert answered.document["used_placeholders"] == {
        "a": f"v{min(versions)}",
        "b": f"v{min(versions)}",
        "topic": "tides",
    }
    return int(min(versions))


def flip(upstream: Reference, version: int) -> None:
    """Change both templates and the user's settings in one step: no answer of the upstream mixes them."""
    for node in NODES:
        upstream.state.set_template(node, f"v{version} {{{{ topic }}}} {{{{ a }}}} {{{{ b }}}}", str(version))
    upstream.state.database.replace(1, {"a": f"v{version}", "b": f"v{version}"})


async def ask_while_it_changes(
    upstream: Reference, sidecar: Sidecar, headers: dict[str, str] | None = None
) -> list[int]:
    """Ask from many clients at once, while the upstream's version counts up."""
    version = 1
    flip(upstream, version)

    async def one(client: int) -> list[int]:
        nonlocal version
        seen = []
        for round_ in range(ROUNDS):
            if client == round_ % AT_ONCE:
                version += 1
                flip(upstream, version)
            seen.append(version_of(await sidecar.ask(1, NODES[client % 2], headers=headers)))
        return seen

    return [version for seen in await asyncio.gather(*map(one, range(AT_ONCE))) for version in seen]


@pytest.mark.parametrize(
    ("policy", "headers"),
    [
        pytest.param(Policy(strategy=Strategy.NETWORK_FIRST), {}, id="network-first"),
        pytest.param(Policy(strategy=Strategy.NETWORK_ONLY), {}, id="network-only"),
        pytest.param(Policy(ttl=0, stale_while_revalidate=30), {}, id="revalidated behind each answer"),
        pytest.param(Policy(ttl=0.005, stale_while_revalidate=0.005), {}, id="each state within milliseconds"),
        pytest.param(Policy(ttl=100), {"Cache-Control": "no-cache"}, id="no-cache"),
    ],
)
@pytest.mark.parametrize("etag", [True, False], ids=["with ETag", "without ETag"])
async def test_no_prompt_mixes_versions_while_the_upstream_changes(
    policy: Policy, headers: dict[str, str], *, etag: bool
) -> None:
    async with reference(etag=etag) as upstream, sidecar_with(settings_for(upstream.url, policy=policy)) as sidecar:
        seen = await ask_while_it_changes(upstream, sidecar, headers)
    assert len(set(seen)) > 5


@pytest.mark.parametrize("mode", [Mode.RESET, Mode.HALF, Mode.ERROR, Mode.EMPTY])
async def test_no_prompt_mixes_versions_while_the_upstream_changes_and_fails(mode: Mode) -> None:
    policy = Policy(ttl=0, stale_while_revalidate=0)
    async with reference() as upstream, sidecar_with(settings_for(upstream.url, policy=policy)) as sidecar:
        flip(upstream, 1)
        for node in NODES:
            assert version_of(await sidecar.ask(1, node)) == 1
        upstream.fails(mode, count=ROUNDS)
        await ask_while_it_changes(upstream, sidecar)


async def test_answers_that_arrive_out_of_order_are_whole_each() -> None:
    served = Counter[str]()
    chance = random.Random(3)

    async def plays(exchange: Exchange) -> None:
        served["version"] += 1
        version = f"v{served['version']}"
        await asyncio.sleep(chance.uniform(0, 0.005))
        await exchange.answer(
            prompt_data(f"{version} {{{{ topic }}}} {{{{ a }}}} {{{{ b }}}}", {"a": version, "b": version})
        )

    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        answers = await asyncio.gather(*(sidecar.ask(headers={"Cache-Control": "no-cache"}) for _ in range(100)))
        newest = max(map(version_of, answers))
        assert newest > 1
        assert version_of(await sidecar.ask()) == newest


async def test_a_confirmation_keeps_the_settings_of_the_template_that_it_confirms() -> None:
    async with (
        reference(cache_ttl=0) as upstream,
        sidecar_with(settings_for(upstream.url, policy=Policy(strategy=Strategy.NETWORK_FIRST))) as sidecar,
    ):
        flip(upstream, 1)
        assert [version_of(await sidecar.ask()) for _ in range(3)] == [1, 1, 1]
        assert upstream.state.answers["prompt-data 304"] == 2
        upstream.state.database.replace(1, {"a": "v2", "b": "v2"})
        upstream.state.set_template("explain", "v2 {{ topic }} {{ a }} {{ b }}")
        assert version_of(await sidecar.ask()) == 2
