"""Records: what is read back is what was written, or nothing at all."""

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.cache.records import (
    LARGEST,
    MAGIC,
    VERSION,
    Records,
    Stored,
    node_tag,
    note_place,
    owner_tag,
    store_key,
)
from sidecar.cache.seals import SUM_BYTES, RecordError, Summed
from sidecar.core.model import Document, PromptKey, RouteKey, SettingsKey, StaticAnswer, UserSettings
from tests.fakes import compile_as_is, document

KEY = store_key("http://upstream", PromptKey(1, "explain"))
RECORDS = Records(compile_as_is)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SETTINGS = st.dictionaries(TEXT, TEXT, max_size=4)
FLOATS = st.floats(0, 1e10)


def stored(kept: Document | UserSettings | StaticAnswer) -> Stored:
    return Stored(kept, 1.7e9, 0.25, b"boot1234", 7)


GOOD = stored(document("Explain {{ topic }} in {{ style }}.", required=("topic",), etag='"v1"'))


@given(values=SETTINGS, fetched_at=FLOATS, spread=st.floats(-1, 1), epoch=st.integers(0, 2**40))
def test_settings_come_back_as_they_were(values: dict[str, str], fetched_at: float, spread: float, epoch: int) -> None:
    written = Stored(UserSettings(values), fetched_at, spread, b"b", epoch)
    read = RECORDS.decode(KEY, RECORDS.encode(KEY, written))
    assert isinstance(read.kept, UserSettings)
    assert dict(read.kept.values) == values
    assert read[1:] == written[1:]


@given(values=SETTINGS, ttl=st.none() | FLOATS, etag=st.none() | TEXT)
def test_a_document_comes_back_and_renders_the_same(
    values: dict[str, str], ttl: float | None, etag: str | None
) -> None:
    written = document("Explain {{ topic }} in {{ style }}.", {"style": "verse", **values}, ttl=ttl, etag=etag)
    read = RECORDS.decode(KEY, RECORDS.encode(KEY, stored(written))).kept
    assert isinstance(read, Document)
    assert (read.settings, read.required, read.stated_ttl, read.etag) == (
        written.settings,
        written.required,
        written.stated_ttl,
        written.etag,
    )
    assert read.template.digest == written.template.digest
    context = {"topic": "tides"}
    assert read.template.render(read.static, context) == written.template.render(written.static, context)


def test_an_answer_comes_back_byte_for_byte() -> None:
    answer = StaticAnswer(307, (("Location", "http://x/"), ("X", "1"), ("X", "2")), b"\x00\xff")
    read = RECORDS.decode(KEY, RECORDS.encode(KEY, stored(answer))).kept
    assert isinstance(read, StaticAnswer)
    assert (read.status, read.headers, read.body) == (answer.status, answer.headers, answer.body)


def test_each_flipped_byte_and_each_cut_is_an_error() -> None:
    data = RECORDS.encode(KEY, GOOD)
    for place in range(len(data)):
        flipped = data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :]
        for broken in (flipped, data[:place]):
            with pytest.raises(RecordError) as caught:
                RECORDS.decode(KEY, broken)
            assert caught.value.reason == "checksum"


@given(data=st.binary(max_size=200))
@settings(max_examples=200)
def test_what_is_no_record_is_an_error_and_nothing_worse(data: bytes) -> None:
    for each in (data, MAGIC + bytes([VERSION]) + data, sealed(data)):
        with pytest.raises(RecordError):
            RECORDS.decode(KEY, each)


def sealed(data: bytes) -> bytes:
    """Return what has the right head and checksum, whatever it holds."""
    return Summed().close(KEY, MAGIC + bytes([VERSION]) + data)


def test_a_record_under_anothers_key_is_an_error() -> None:
    data = RECORDS.encode(KEY, GOOD)
    with pytest.raises(RecordError, match="checksum"):
        RECORDS.decode(store_key("http://upstream", PromptKey(12, "explain")), data)


def test_an_older_or_newer_schema_is_told_apart() -> None:
    data = RECORDS.encode(KEY, GOOD)
    for version in (0, 2, 255):
        with pytest.raises(RecordError, match="version"):
            RECORDS.decode(KEY, Summed().close(KEY, data[:3] + bytes([version]) + data[4:-SUM_BYTES]))


def test_a_bomb_is_no_record() -> None:
    with pytest.raises(RecordError, match="shape"):
        RECORDS.decode(KEY, sealed(zlib.compress(b"\0" * (LARGEST + 1))))


def test_a_template_that_is_not_admitted_any_more_is_an_error() -> None:
    data = RECORDS.encode(KEY, GOOD)
    strict = Records(lambda _source, options: compile_as_is("{{ x.__class__ }}", options))
    with pytest.raises(RecordError, match="template"):
        strict.decode(KEY, data)


KEYS = [
    store_key("a", PromptKey(1, "2")),
    store_key("a", PromptKey(12, "")),
    store_key("a", PromptKey(1, "")),
    store_key("a", PromptKey(1, "2", "3")),
    store_key("a", PromptKey(1, "23")),
    store_key("a", PromptKey(1, "3", "2")),
    store_key("a", SettingsKey(1)),
    store_key("a", SettingsKey(1, "2")),
    store_key("a", SettingsKey(12)),
    store_key("b", SettingsKey(1)),
    store_key("a", RouteKey("1", "2")),
    store_key("a", RouteKey("12", "")),
    owner_tag("a", 1),
    owner_tag("a", 12),
    owner_tag("a", None),
    owner_tag("b", 1),
    node_tag("a", "1"),
    note_place("a", "1").key,
]


def test_no_two_keys_are_alike_and_none_shows_whose_it_is() -> None:
    assert len(set(KEYS)) == len(KEYS)
    assert all(len(key) == 32 for key in KEYS)
    assert b"7123456789" not in store_key("a", SettingsKey(7123456789))


def test_what_has_no_place_in_a_store_is_a_mistake_of_ours() -> None:
    class Other(tuple[int]):
        owner = None

        __slots__ = ()

    with pytest.raises(TypeError):
        store_key("a", Other((1,)))
