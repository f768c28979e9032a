"""Every recorded call of LearnFlow's config service, replayed against a sidecar in front of what was recorded.

For `generate-prompt` the sidecar answers itself, from the recorded settings and LearnFlow's own template file; all else
is the service's, and comes through as it was.
"""

import os
from collections.abc import Iterable

import pytest

from sidecar.settings import RetrySettings, Settings, UpstreamApi
from tests.harness import settings_for, sidecar_with
from tests.replay import (
    FOR_ONE_HOP,
    LEARNFLOW,
    TEMPLATES,
    Leg,
    Recording,
    Replay,
    Request,
    Response,
    load,
    replaying,
    send,
)

RECORDINGS = load()
ALL = 153
PROMPTS = [each for each in RECORDINGS if each.got_a_prompt]
REFUSALS = [each for each in RECORDINGS if each.asks_for_a_prompt and not each.got_a_prompt]
THROUGH = [each for each in RECORDINGS if not each.asks_for_a_prompt]
AT_ONCE = RetrySettings(backoff=0.001, max_backoff=0.001)
ADDED_TO_STATIC_READS = ("cache-status", "age", "x-request-id")
ADDED_FOR_THE_WAY = FOR_ONE_HOP | {"x-forwarded-for", "x-request-id"}
LOOPBACK = "127.0.0.1"


def each_of(recordings: Iterable[Recording]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("recording", [pytest.param(each, id=each.id) for each in recordings])


CALLERS = frozenset({"proxy.internal", "example.test"})
"""By what name one of the recorded requests asks, and whose page made another."""


def from_placeholders(url: str) -> Settings:
    upstream = {"api": UpstreamApi("placeholders"), "templates_file": TEMPLATES}
    return settings_for(url, upstream=upstream, retry=AT_ONCE, allowed_hosts=CALLERS)


def passing_through(url: str) -> Settings:
    return settings_for(url, upstream={"api": UpstreamApi("passthrough")}, retry=AT_ONCE, allowed_hosts=CALLERS)


def assert_same_prompt(answered: Response, recording: Recording) -> None:
    recorded = recording.response.document
    assert answered.status == 200, answered.body
    assert answered.document["prompt"].encode() == recorded["prompt"].encode()
    assert answered.document["used_placeholders"] == recorded["used_placeholders"]
    assert set(answered.document) == set(recorded)
    assert answered.value("Content-Type") == recording.response.value("Content-Type")
    assert answered.value("Cache-Status") is not None


def assert_settings_were_read_where_needed(replay: Replay) -> None:
    recording = replay.recording
    assert replay.settings_read == ([] if recording.user_settings is None else [recording.asked[0]])
    assert replay.unexpected == []


def assert_same_refusal(answered: Response, recording: Recording) -> None:
    """Compare what a client can use; the words only where the service had words."""
    detail = answered.document["detail"]
    if recording.response.status >= 500:  # the service broke; what is asked of the sidecar is to say what was wrong
        assert 400 <= answered.status < 600
        assert isinstance(detail, str)
        assert detail
        return
    assert answered.status == recording.response.status, answered.body
    recorded = recording.response.document["detail"]
    if isinstance(recorded, str):
        assert detail == recorded
    else:
        assert isinstance(detail, str)
        assert detail


def assert_came_through(answered: Response, leg: Leg) -> None:
    assert answered.status == leg.response.status, answered.body
    assert answered.passed_on(but=ADDED_TO_STATIC_READS) == leg.response.passed_on()
    assert answered.body == (b"" if leg.request.method == "HEAD" else leg.response.body)


def assert_arrived(arrived: Request, sent: Request, *, as_it_was: bool) -> None:
    """Compare what the service got with what the client sent; `as_it_was`: with all its headers."""
    assert (arrived.method, arrived.target, arrived.body) == (sent.method, sent.target, sent.body)
    assert arrived.value("Host") == sent.value("Host")
    if not as_it_was:
        return
    for name, value in sent.fields:
        if name.lower() not in ADDED_FOR_THE_WAY:
            assert arrived.value(name) == value, name
    before = sent.value("X-Forwarded-For")
    assert arrived.value("X-Forwarded-For") == (LOOPBACK if before is None else f"{before}, {LOOPBACK}")


def test_all_recordings_are_replayed() -> None:
    if not RECORDINGS:
        reason = f"no recordings in {LEARNFLOW}; LEARNFLOW_DATA names their folder"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    assert len(RECORDINGS) == len({each.id for each in RECORDINGS}) == ALL
    assert {each.id.partition("/")[0] for each in PROMPTS + REFUSALS} == {"generate", "transport"}
    assert len(PROMPTS) >= 45
    assert len(REFUSALS) >= 30
    assert len(THROUGH) >= 60


@each_of(THROUGH)
async def test_the_replaying_service_answers_as_recorded(recording: Recording) -> None:
    async with replaying(recording) as replay:
        for leg in recording.legs:
            assert_came_through(await send(replay.port, leg.request), leg)
    assert replay.passed == [leg.request for leg in recording.legs]
    assert replay.unexpected == []


@each_of(PROMPTS)
async def test_the_prompt_is_the_recorded_one(recording: Recording) -> None:
    async with replaying(recording) as replay, sidecar_with(from_placeholders(replay.url)) as sidecar:
        answered = await send(sidecar.address[1], recording.request)
    assert_same_prompt(answered, recording)
    assert_settings_were_read_where_needed(replay)


@each_of(PROMPTS)
async def test_the_prompt_is_the_recorded_one_in_an_outage_too(recording: Recording) -> None:
    async with replaying(recording) as replay, sidecar_with(from_placeholders(replay.url)) as sidecar:
        await send(sidecar.address[1], recording.request)
        await replay.end()
        answered = await send(sidecar.address[1], recording.request)
    assert_same_prompt(answered, recording)
    assert_settings_were_read_where_needed(replay)
    how = answered.value("Cache-Status") or ""
    assert recording.user_settings is None or how.endswith("detail=stale-if-error")


@each_of(REFUSALS)
async def test_the_refusal_has_the_recorded_status_and_says_why(recording: Recording) -> None:
    async with replaying(recording) as replay, sidecar_with(from_placeholders(replay.url)) as sidecar:
        answered = await send(sidecar.address[1], recording.request)
    assert_same_refusal(answered, recording)
    assert replay.unexpected == []


@each_of(THROUGH)
async def test_anything_else_comes_through_as_recorded(recording: Recording) -> None:
    async with replaying(recording) as replay, sidecar_with(from_placeholders(replay.url)) as sidecar:
        for leg in recording.legs:
            replay.passed.clear()
            answered = await send(sidecar.address[1], leg.request)
            assert_came_through(answered, leg)
            is_static_read = answered.value("Cache-Status") is not None
            assert leg.request.method == "GET" or not is_static_read
            for arrived in replay.passed:
                assert_arrived(arrived, leg.request, as_it_was=not is_static_read)
            assert replay.passed if is_static_read else len(replay.passed) == 1
    assert replay.unexpected == []


@each_of(PROMPTS)
async def test_a_prompt_that_the_service_rendered_is_passed_on_and_not_kept(recording: Recording) -> None:
    async with replaying(recording, renders=True) as replay, sidecar_with(passing_through(replay.url)) as sidecar:
        for _ in range(2):
            answered = await send(sidecar.address[1], recording.request)
            assert_same_prompt(answered, recording)
            how = answered.value("Cache-Status") or ""
            assert "hit" not in how
            assert "stored" not in how
    assert len(replay.prompts_asked) == 2
    assert all(recording.is_asked_by(body) for body in replay.prompts_asked)
    assert replay.settings_read == []
    assert replay.unexpected == []


@each_of(REFUSALS)
async def test_a_refusal_of_the_service_is_passed_on(recording: Recording) -> None:
    async with replaying(recording, renders=True) as replay, sidecar_with(passing_through(replay.url)) as sidecar:
        answered = await send(sidecar.address[1], recording.request)
    assert_same_refusal(answered, recording)
    assert all(recording.is_asked_by(body) for body in replay.prompts_asked)
    if replay.prompts_asked and recording.response.status < 500:
        assert answered.body == recording.response.body
        assert len(replay.prompts_asked) == 1
    assert replay.settings_read == []
    assert replay.unexpected == []
