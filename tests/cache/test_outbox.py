"""The outbox of the group: the latest word on each matter, and what is said again."""

from sidecar.cache.outbox import MOST_REMEMBERED, MOST_WAITING, Outbox
from sidecar.core.changes import AllVoid, Change, NodeVoid, WriteBegan, WriteEnded
from tests.harness import ManualClock

REMEMBER = 60.0


def outbox(clock: ManualClock | None = None) -> Outbox:
    return Outbox(lambda owner: str(owner).encode(), REMEMBER, clock or ManualClock())


def waiting(box: Outbox) -> list[Change]:
    return [told.message.change for told in box.batch()]


def test_the_end_of_a_write_takes_the_place_of_its_beginning() -> None:
    box = outbox()
    box.add(WriteBegan(1, "a", 5.0))
    box.add(WriteBegan(1, "b", 5.0))
    box.add(WriteEnded(1, "a"))
    assert waiting(box) == [WriteBegan(1, "b", 5.0), WriteEnded(1, "a")]


def test_a_user_is_concerned_until_all_of_the_users_changes_are_told() -> None:
    box = outbox()
    box.add(WriteEnded(1, "a"))
    first = box.batch()
    box.add(WriteEnded(1, "b"))
    box.note_told(first)
    assert box.concerns(b"1")
    assert not box.concerns(b"12")
    box.note_told(box.batch())
    assert not box.concerns(b"1")
    assert len(box) == 0


def test_what_took_the_place_of_a_change_while_it_was_told_goes_on_waiting() -> None:
    box = outbox()
    box.add(WriteBegan(1, "a", 5.0))
    batch = box.batch()
    box.add(WriteEnded(1, "a"))
    box.note_told(batch)
    assert waiting(box) == [WriteEnded(1, "a")]


def test_what_was_told_lately_is_said_again_under_its_number() -> None:
    clock = ManualClock()
    box = outbox(clock)
    box.add(NodeVoid("quiz"), b"era")
    [told] = box.batch()
    box.note_told([told])
    clock.advance(REMEMBER - 1)
    assert box.say_again(REMEMBER) == [NodeVoid("quiz")]
    assert box.batch() == [told]
    assert list(box.eras()) == [(NodeVoid("quiz"), b"era")]


def test_what_was_told_long_ago_is_not_said_again() -> None:
    clock = ManualClock()
    box = outbox(clock)
    box.add(NodeVoid("quiz"), b"era")
    box.note_told(box.batch())
    clock.advance(11)
    assert box.say_again(10) == []
    clock.advance(REMEMBER)
    assert box.say_again(2 * REMEMBER) == []


def test_a_newer_word_on_the_matter_is_not_replaced_by_one_said_again() -> None:
    box = outbox()
    box.add(WriteBegan(1, "a", 5.0))
    box.note_told(box.batch())
    box.add(WriteEnded(1, "a"))
    assert box.say_again(REMEMBER) == []
    assert waiting(box) == [WriteEnded(1, "a")]


def test_it_is_full_beyond_what_shall_be_told_one_by_one() -> None:
    box = outbox()
    for user in range(MOST_WAITING):
        box.add(WriteEnded(user, "a"))
    before = box.is_full
    box.add(AllVoid(), b"era")
    assert (before, box.is_full) == (False, True)
    box.clear()
    assert len(box) == 0
    assert not box.concerns(b"1")


def test_no_more_is_remembered_than_its_bound() -> None:
    box = outbox()
    for user in range(MOST_REMEMBERED + 5):
        box.add(WriteEnded(user, "a"))
    box.note_told(box.batch())
    assert len(box.say_again(REMEMBER)) == MOST_REMEMBERED
