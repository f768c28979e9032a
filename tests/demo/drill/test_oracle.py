"""What the service would have answered, and since when it would not any more."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.demo.drill.oracle import Oracle
from sidecar.demo.drill.plan import PlanError
from sidecar.demo.reference.state import State
from sidecar.settings import Settings, UpstreamSettings
from tests.demo.drill.plans import plan_of

USER, NODE = 101, "answer_question"


@pytest.fixture
def oracle(tmp_path: Path) -> Iterator[Oracle]:
    made = Oracle(plan_of(Settings()), str(tmp_path / "users.db"))
    yield made
    made.close()


@pytest.fixture
def service(oracle: Oracle) -> Iterator[State]:
    """Return a service on the same database."""
    state = State(oracle.plan.reference(oracle.database))
    yield state
    state.database.close()


def said(service: State, oracle: Oracle, number: int, user: int = USER, node: str = NODE) -> str:
    prompt: str = service.prompt(user, node, oracle.context(node, number))["prompt"]
    return prompt


def test_what_the_service_says_is_known_with_any_requests_content(oracle: Oracle, service: State) -> None:
    for user, node in oracle.plan.pairs:
        assert oracle.revision_of(user, node, 7, said(service, oracle, 7, user, node)) == 0
    assert oracle.outdated_since(0) is None


def test_a_prompt_of_another_user_node_or_request_or_with_a_letter_changed_is_not_known(
    oracle: Oracle, service: State
) -> None:
    prompt = said(service, oracle, 7)
    assert oracle.revision_of(USER + 1, NODE, 7, prompt) is None
    assert oracle.revision_of(USER, "generating_content", 7, prompt) is None
    assert oracle.revision_of(USER, NODE, 8, prompt) is None
    assert oracle.revision_of(USER, NODE, 7, prompt.replace("e", "E", 1)) is None


def test_after_a_change_the_old_prompt_is_known_and_dated(oracle: Oracle, service: State) -> None:
    old = said(service, oracle, 7)
    before = time.monotonic()
    oracle.revise()
    new = said(service, oracle, 7)
    assert new != old
    assert oracle.revision_of(USER, NODE, 7, new) == oracle.revision == 1
    assert oracle.revision_of(USER, NODE, 7, old) == 0
    assert oracle.outdated_since(1) is None
    since = oracle.outdated_since(0)
    assert since is not None
    assert before <= since <= time.monotonic()


def test_a_template_that_shows_no_setting_is_never_outdated(tmp_path: Path) -> None:
    plan = plan_of(Settings(), nodes=("security_guard_detection",))
    oracle = Oracle(plan, str(tmp_path / "users.db"))
    oracle.revise()
    state = State(plan.reference(oracle.database))
    prompt = said(state, oracle, 1, node="security_guard_detection")
    assert oracle.revision_of(USER, "security_guard_detection", 1, prompt) == 1
    state.database.close()
    oracle.close()


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ x.y.z }}", r"Template of node bad cannot be rendered: 'str object' has no attribute 'y'"),
        ("{{ 1 / 0 }}", r"the template of bad cannot be rendered with texts: division by zero"),
    ],
)
def test_a_template_that_the_service_cannot_render_is_a_sentence(tmp_path: Path, template: str, says: str) -> None:
    own = tmp_path / "prompts.yaml"
    own.write_text(f"bad_system_prompt: '{template}'\n")
    settings = Settings(upstream=UpstreamSettings(templates_file=own))
    with pytest.raises(PlanError, match=f"^--nodes: {says}"):
        Oracle(plan_of(settings, nodes=("bad",)), ":memory:")
