"""What is rehearsed of somebody's settings, and what is not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.config_file import load
from sidecar.demo.drill.plan import Plan, PlanError, checked, generation_of, not_rehearsed, rehearsed
from sidecar.demo.reference.state import Generation
from sidecar.settings import Settings
from tests.demo.drill.plans import plan_of


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Return how settings are read from a text."""

    def read(text: str) -> Settings:
        (tmp_path / "s.yaml").write_text(text)
        return load(tmp_path / "s.yaml", environ={}, flags={})

    return read


FAR = """
listen: 127.0.0.1:8002
listen_unix: /far/sidecar.sock
ops: {listen: 0.0.0.0:9102, admin_token_file: /far/token}
upstream:
  url: https://config.example
  token_file: /far/token
  tls: {ca_file: /far/ca, cert_file: /far/cert, key_file: /far/key, min_version: "1.3"}
proxy: {add_token: true}
deadline: 3s
breaker: {fail_max: 7}
policy: {default: {stale_if_error: 24h}, nodes: {guard: {strategy: network-only}}}
store: {kind: redis, encryption_key_file: /far/keys}
warmup: {file: /far/list.csv, from_store: true}
tracing: {endpoint: "http://collector:4318"}
drain: {delay: 5s}
log: {level: error, format: console}
"""


def test_nothing_leads_out_of_the_drill_and_the_rest_is_as_it_was(written: Any, tmp_path: Path) -> None:
    settings = written(FAR)
    used = written(yaml.safe_dump(rehearsed(plan_of(settings), "127.0.0.1:7", tmp_path)))
    for kept in ("deadline", "retry", "breaker", "policy", "render", "rollout", "shadow", "routes", "cache", "limits"):
        assert getattr(used, kept) == getattr(settings, kept)
    assert (str(used.listen), used.listen_unix, str(used.ops.listen)) == ("127.0.0.1:0", None, "127.0.0.1:0")
    assert used.upstream.url == "http://127.0.0.1:7"
    assert used.store.path.parent == tmp_path
    text = yaml.safe_dump(rehearsed(plan_of(settings), "127.0.0.1:7", tmp_path))
    for outside in ("/far/", "collector", "config.example", "kind: redis", "9102", "8002"):
        assert outside not in text


def test_the_store_is_left_out_where_it_was_and_where_credentials_would_need_a_key(
    written: Any, tmp_path: Path
) -> None:
    for text, kind in (
        ("", "file"),
        ("store: {kind: none}", "none"),
        ("store: {signing_key_file: /keys}\nupstream: {forward_authorization: true}", "none"),
    ):
        used = rehearsed(plan_of(written(text)), "127.0.0.1:7", tmp_path)
        assert used["store"]["kind"] == kind
        written(yaml.safe_dump(used))  # and it can be used


def test_what_was_left_out_is_said(written: Any) -> None:
    assert not_rehearsed(plan_of(Settings())) == []
    said = not_rehearsed(plan_of(written(FAR)))
    assert [each.split()[1] for each in said] == ["store", "service", "was", "with"]
    assert said[-1].endswith(": guard.")


@pytest.mark.parametrize(
    ("text", "generation"),
    [
        ("", Generation.PROMPT_DATA),
        ("upstream: {templates_file: prompts.yaml}", Generation.PLACEHOLDERS),
        ("upstream: {templates_file: prompts.yaml, api: prompt-data}", Generation.PROMPT_DATA),
        ("upstream: {api: passthrough}", Generation.PASSTHROUGH),
    ],
)
def test_the_generation_is_that_of_the_settings(written: Any, text: str, generation: Generation) -> None:
    assert generation_of(written(text)) is generation


@pytest.mark.parametrize(
    ("policy", "generation", "limit"),
    [
        ("", Generation.PROMPT_DATA, 902.0),
        ("ttl: 1m", Generation.PROMPT_DATA, 960.0),
        ("max_ttl: 1s, stale_if_error: 0s", Generation.PROMPT_DATA, 1.0),
        ("", Generation.PLACEHOLDERS, 900.0),
        ("strategy: network-only", Generation.PROMPT_DATA, 0.0),
    ],
)
def test_the_oldest_that_is_allowed_follows_from_the_policy(
    written: Any, policy: str, generation: Generation, limit: float
) -> None:
    plan = plan_of(written(f"policy: {{default: {{{policy}}}}}"), generation=generation)
    assert plan.limit("answer_question") == limit


def test_a_recovery_has_time_for_the_ttl_the_circuit_and_an_answer() -> None:
    assert plan_of(Settings()).recovers_within == pytest.approx(2.2 + 10 + 4 + 2 * 15 / 20)


def asked_for(settings: Settings, **changes: Any) -> Plan:
    return checked(replace(plan_of(settings, nodes=()), **changes))


def test_asked_for_are_the_usual_nodes_and_those_with_a_policy_of_their_own(written: Any) -> None:
    settings = written("policy: {nodes: {security_guard_detection: {ttl: 1s}, unheard_of: {ttl: 1s}}}")
    plan = asked_for(settings)
    assert plan.nodes == (
        "generating_content", "answer_question", "generating_questions", "security_guard_detection",
    )  # fmt: skip
    assert not_rehearsed(plan) == ["Nodes with a policy of their own that were not asked for: unheard_of."]


def test_of_other_templates_the_first_are_asked_for(written: Any, tmp_path: Path) -> None:
    own = tmp_path / "prompts.yaml"
    own.write_text("".join(f"{name}_system_prompt: hello\n" for name in "abcd"))
    assert asked_for(written(f"upstream: {{templates_file: {own}}}")).nodes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"nodes": ("answer_question", "nobody")},
            "--nodes: no template is called nobody; there are generating_content,",
        ),
        ({"nodes": ("",)}, "--nodes: no template is called ''; there are"),
        ({"users": 1000}, "--duration: 10 s is too short to ask for 3000 prompts (1000 users, 3 nodes) at 20 a second"),
    ],
)
def test_what_cannot_be_rehearsed_is_said_with_what_can(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError) as refused:
        asked_for(Settings(), **changes)
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize("text", [None, "[]", "a: [", "- 1", "a: 1", "\udc80", ""])
def test_a_template_file_that_cannot_be_used_is_named(written: Any, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "prompts.yaml"
    if text is not None:
        path.write_text(text, errors="surrogateescape")
    with pytest.raises(PlanError, match=rf"^upstream\.templates_file: {path} "):
        asked_for(written(f"upstream: {{templates_file: {path}}}"))
