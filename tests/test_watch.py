"""Watching a file: each change is told of once, when it is whole, whoever made it and however."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

import sidecar.watch
import sidecar.wiring
from sidecar.settings import UpstreamApi
from sidecar.watch import identity, watch
from sidecar.wiring import open_core
from tests.harness import settings_for
from tests.wire import PATIENCE, until

POLL = 0.002
"""Seconds between two looks."""
A, B, C, D = [(1, inode, 1, 1) for inode in range(4)]
"""What a file looks like, at different times."""


class EndError(Exception):
    """The last look of a script was made."""


async def told_of(monkeypatch: pytest.MonkeyPatch, looks: Iterable[object]) -> int:
    """Return how many changes are told of by a file that looks so, one look after another."""
    script = iter(looks)
    changes = 0

    def look(_: Path) -> object:
        try:
            return next(script)
        except StopIteration:
            raise EndError from None

    async def changed() -> None:
        nonlocal changes
        changes += 1

    monkeypatch.setattr(sidecar.watch, "identity", look)
    with suppress(EndError):
        await watch(Path("any"), changed, poll_seconds=0)
    return changes


@pytest.mark.parametrize(
    ("looks", "changes"),
    [
        pytest.param([A, A, A, A], 0, id="nothing happens"),
        pytest.param([None, None, None], 0, id="there never is a file"),
        pytest.param([A, B, B], 1, id="a change"),
        pytest.param([A, B, B, B, B], 1, id="a change is told of once"),
        pytest.param([A, B, B, C, C], 2, id="two changes"),
        pytest.param([A, B, C, D], 0, id="still being written"),
        pytest.param([A, B, C, D, D], 1, id="written in pieces, and then whole"),
        pytest.param([A, B, A, A], 0, id="back as it was"),
        pytest.param([A, None, A, A], 0, id="away for a moment"),
        pytest.param([A, None, B, B], 1, id="replaced by way of nothing"),
        pytest.param([A, None, None], 1, id="deleted"),
        pytest.param([A, None, None, None, B, B], 2, id="deleted, and another is there"),
        pytest.param([A, None, None, A, A], 2, id="deleted, and back"),
        pytest.param([None, A, A], 1, id="there at last"),
    ],
)
async def test_a_change_is_told_of_when_the_file_has_looked_the_same_twice(
    looks: list[object], changes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await told_of(monkeypatch, looks) == changes


async def test_an_error_of_whoever_is_told_is_handed_on_and_the_next_change_is_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = iter([A, B, B, C, C])
    told: list[str] = []
    failures: list[Exception] = []

    def look(_: Path) -> object:
        try:
            return next(looks)
        except StopIteration:
            raise EndError from None

    async def changed() -> None:
        told.append("change")
        raise ZeroDivisionError

    monkeypatch.setattr(sidecar.watch, "identity", look)
    with suppress(EndError):
        await watch(Path("any"), changed, poll_seconds=0, failed=failures.append)
    assert told == ["change", "change"]
    assert [type(each) for each in failures] == [ZeroDivisionError] * 2


async def test_what_changes_while_a_change_is_taken_in_is_told_of_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([A])
    now: object = B
    taken: list[object] = []

    def look(_: Path) -> object:
        return next(looks, now)

    async def changed() -> None:
        nonlocal now
        taken.append(now)
        now = C
        if len(taken) == 2:
            raise EndError

    monkeypatch.setattr(sidecar.watch, "identity", look)
    with pytest.raises(EndError):
        await asyncio.wait_for(watch(Path("any"), changed, poll_seconds=0), PATIENCE)
    assert taken == [B, C]


# Real files


class Watched:
    """A file that is watched, and what it held at each change that was told of; None: there was none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.looks = 0
        self.held: list[str | None] = []

    async def changed(self) -> None:
        self.held.append(self.path.read_text("utf-8") if self.path.exists() else None)

    async def looked(self, times: int = 1) -> None:
        """Wait until the file was looked at so many times more."""
        wanted = self.looks + times
        await until(lambda: self.looks >= wanted)

    async def holds(self, *held: str | None) -> None:
        """Wait until just these changes were told of, and see that no more come."""
        await until(lambda: len(self.held) >= len(held))
        await self.looked(4)
        assert self.held == [*held]


@asynccontextmanager
async def watched(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    it = Watched(path)

    def look(path: Path) -> object:
        found = identity(path)
        it.looks += 1
        return found

    monkeypatch.setattr(sidecar.watch, "identity", look)
    watching = asyncio.ensure_future(watch(path, it.changed, poll_seconds=POLL))
    try:
        await it.looked()
        yield it
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


def rewrite(path: Path) -> None:
    path.write_text("new")


def replace(path: Path) -> None:
    """Write beside it, and rename: as editors and deployment tools do."""
    beside = path.with_name("beside")
    beside.write_text("new")
    beside.rename(path)


def replace_by_one_of_the_same_size_and_time(path: Path) -> None:
    was = path.stat()
    replace(path)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def delete_and_write(path: Path) -> None:
    path.unlink()
    path.write_text("new")


def put_a_link(path: Path) -> None:
    target = path.with_name("target")
    target.write_text("new")
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize(
    "change", [rewrite, replace, replace_by_one_of_the_same_size_and_time, delete_and_write, put_a_link]
)
async def test_a_change_is_seen_however_it_is_made(
    change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "watched"
    path.write_text("old")
    async with watched(path, monkeypatch) as file:
        change(path)
        await file.holds("new")


def config_map(folder: Path) -> Path:
    """Lay a file out as the kubelet does: a link to a file below `..data`, a link to a folder of one version."""
    version(folder, "..2024_01", "old")
    (folder / "..data").symlink_to("..2024_01")
    (folder / "prompts.yaml").symlink_to("..data/prompts.yaml")
    return folder / "prompts.yaml"


def version(folder: Path, name: str, content: str) -> Path:
    made = folder / name
    made.mkdir()
    (made / "prompts.yaml").write_text(content)
    return made


def swap(folder: Path, name: str) -> None:
    """Have `..data` lead to another version, at once."""
    (folder / "..data_tmp").symlink_to(name)
    (folder / "..data_tmp").rename(folder / "..data")


async def test_a_config_map_that_is_swapped_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = config_map(tmp_path)
    async with watched(path, monkeypatch) as file:
        version(tmp_path, "..2024_02", "new")
        swap(tmp_path, "..2024_02")
        await file.holds("new")
        version(tmp_path, "..2024_03", "newer")
        swap(tmp_path, "..2024_03")
        await file.holds("new", "newer")


async def test_a_new_version_beside_it_is_no_change_before_the_swap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_map(tmp_path)
    async with watched(path, monkeypatch) as file:
        version(tmp_path, "..2024_02", "new")
        await file.looked(4)
        assert file.held == []


async def test_a_file_that_goes_and_comes_back_is_told_of_both_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "watched"
    path.write_text("old")
    async with watched(path, monkeypatch) as file:
        path.unlink()
        await file.holds(None)
        path.write_text("new")
        await file.holds(None, "new")


async def test_a_file_that_is_not_there_yet_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "later" / "watched"
    async with watched(path, monkeypatch) as file:
        await file.looked(4)
        path.parent.mkdir()
        path.write_text("new")
        await file.holds("new")


async def test_a_file_that_is_touched_may_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "watched"
    path.write_text("old")
    async with watched(path, monkeypatch) as file:
        os.utime(path, ns=(0, 0))
        await file.holds("old")


async def test_what_does_not_change_the_content_is_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "watched"
    path.write_text("old")
    async with watched(path, monkeypatch) as file:
        path.read_text("utf-8")
        path.chmod(0o640)
        path.with_name("another").write_text("new")
        await file.looked(4)
        assert file.held == []


@pytest.mark.parametrize("make", [lambda path: path.symlink_to(path), lambda _: None], ids=["a loop", "nothing"])
def test_what_cannot_be_looked_at_is_no_file(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "watched")
    assert identity(tmp_path / "watched") is None


def test_a_folder_in_the_way_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert identity(tmp_path / "file" / "below") is None


# From its first reading on


async def test_a_change_between_the_first_reading_and_the_first_look_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text("a_system_prompt: old")
    monkeypatch.setattr(sidecar.wiring, "watch", partial(watch, poll_seconds=POLL))
    upstream = {"api": UpstreamApi.PLACEHOLDERS, "templates_file": path}
    async with open_core(settings_for("http://127.0.0.1:9", upstream=upstream)) as core:
        path.write_text("a_system_prompt: newer")  # before any task of the core has run
        templates = core.templates
        assert templates is not None

        def is_new() -> bool:
            found = templates.find("a")
            return found is not None and found.source == "newer"

        await until(is_new)
