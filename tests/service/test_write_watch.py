"""WriteWatch: whose settings a request that passes through may have changed, and how it ended; in faked time."""

import asyncio

import pytest

from sidecar.core.events import Event, Written
from sidecar.service.forwarding import Write, WriteEnd
from sidecar.service.write_watch import WriteWatch
from sidecar.service.writes import Writes
from tests.fakes import loop_time

pytestmark = pytest.mark.looptime

SETTLE = 25.0


class Watched:
    """A watch, and what it says."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.settle = SETTLE
        self.writes = Writes(loop_time)
        self.watch = WriteWatch(self.writes, settle_seconds=lambda: self.settle, observer=self.events.append)

    def began(self, method: str, target: str) -> Write:
        write = self.watch.began(method, target)
        assert write is not None
        return write

    def hears(self, method: str, target: str, end: WriteEnd) -> None:
        self.began(method, target)(end)

    def void(self) -> set[int | None]:
        """Return who lost what was asked for at the beginning."""
        return {owner for owner in (None, *range(130)) if self.writes.is_void(owner, 0)}


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("PUT", "/api/v1/users/7/placeholders/3f0e"),
        ("POST", "/api/v1/users/7/apply-profile/3f0e"),
        ("POST", "/api/v1/users/7/reset"),
        ("PATCH", "/api/v1/users/7"),
        ("DELETE", "/api/v1/users/7/"),
        ("LINK", "/api/v1/users/7/anything/later"),
        ("PUT", "/api/v1/users/7/placeholders/3f0e?user=12"),
        ("PUT", "/api/v1/users/+7/placeholders/3f0e"),
        ("PUT", "/api/v1/users/007/placeholders/3f0e"),
        ("PUT", "/api/v1/users/%37/placeholders/3f0e"),
        ("PUT", "/api/v1//users/7/placeholders/3f0e"),
        ("PUT", "/api/v1/./users/12/../7/placeholders/3f0e"),
        ("PUT", "http://config/api/v1/users/7/placeholders/3f0e"),
        ("PUT", "/config/api/v2/users/7.0"),
    ],
)
@pytest.mark.parametrize("end", [WriteEnd.ANSWERED, WriteEnd.LOST])
async def test_a_write_of_a_user_makes_void_what_is_kept_of_that_user(method: str, target: str, end: WriteEnd) -> None:
    watched = Watched()
    watched.hears(method, target, end)
    assert watched.void() == {7}
    assert watched.events == [Written(end.value)]


@pytest.mark.parametrize("target", ["/api/v1/users/1/reset", "/api/v1/users/12/reset", "/api/v1/users/120/reset"])
async def test_user_1_is_neither_12_nor_120(target: str) -> None:
    watched = Watched()
    watched.hears("POST", target, WriteEnd.ANSWERED)
    assert watched.void() == {int(target.split("/")[4])}


@pytest.mark.parametrize(
    "target", ["/api/v1/profiles/", "/api/v1/users", "/api/v1/users/me/reset", "/", "*", "/users/"]
)
@pytest.mark.parametrize("end", [WriteEnd.ANSWERED, WriteEnd.LOST])
async def test_what_is_of_no_user_makes_void_what_is_of_no_user_and_is_not_told(target: str, end: WriteEnd) -> None:
    watched = Watched()
    watched.hears("POST", target, end)
    assert watched.void() == {None}
    assert watched.events == []


async def test_a_write_that_was_never_sent_changes_nothing() -> None:
    watched = Watched()
    watched.hears("PUT", "/api/v1/users/7/reset", WriteEnd.NOT_SENT)
    watched.hears("PUT", "/api/v1/profiles/", WriteEnd.NOT_SENT)
    assert watched.void() == set()
    assert watched.events == []
    assert watched.writes.ticket(7) is not None


async def test_a_write_that_is_under_way_changes_nothing_yet() -> None:
    watched = Watched()
    ended = watched.began("PUT", "/api/v1/users/7/reset")
    assert watched.void() == set()
    during = watched.writes.ticket(7)
    assert during is not None
    ended(WriteEnd.ANSWERED)
    assert watched.writes.is_void(7, during), "it may have been read before the write took effect"


async def test_after_an_answer_the_next_may_be_kept() -> None:
    watched = Watched()
    watched.hears("PUT", "/api/v1/users/7/reset", WriteEnd.ANSWERED)
    assert watched.writes.ticket(7) is not None


async def test_after_a_lost_answer_nothing_is_kept_as_long_as_the_write_may_take_effect() -> None:
    watched = Watched()
    watched.hears("PUT", "/api/v1/users/7/reset", WriteEnd.LOST)
    await asyncio.sleep(SETTLE - 0.1)
    assert watched.writes.ticket(7) is None
    await asyncio.sleep(0.1)
    assert watched.writes.ticket(7) is not None


async def test_how_long_that_is_counts_when_the_write_ends() -> None:
    watched = Watched()
    ended = watched.began("PUT", "/api/v1/users/7/reset")
    watched.settle = 3
    await asyncio.sleep(10)
    ended(WriteEnd.LOST)
    await asyncio.sleep(2.9)
    assert watched.writes.ticket(7) is None
    await asyncio.sleep(0.1)
    assert watched.writes.ticket(7) is not None


async def test_two_writes_at_once_end_each_for_itself() -> None:
    watched = Watched()
    first = watched.began("PUT", "/api/v1/users/1/reset")
    second = watched.began("PUT", "/api/v1/users/2/reset")
    second(WriteEnd.ANSWERED)
    assert watched.void() == {2}
    first(WriteEnd.NOT_SENT)
    assert watched.void() == {2}
    assert watched.events == [Written("answered")]


@pytest.mark.parametrize("target", ["/api/v1/prompt-data/batch", "/api/v1/generate-prompt?debug=1"])
async def test_a_question_that_comes_as_a_post_is_no_write(target: str) -> None:
    watched = Watched()
    assert watched.watch.began("POST", target) is None
    watched.hears("PUT", target, WriteEnd.LOST)
    assert watched.writes.ticket(None) is None
