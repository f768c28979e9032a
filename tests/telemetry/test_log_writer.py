"""Standard error by a thread: whoever reads it slowly, not at all, or not any more, holds nobody up."""

import fcntl
import os
import threading
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from sidecar.telemetry import log_writer
from sidecar.telemetry.log_writer import LogWriter

LINE = "x" * 1023 + "\n"
PATIENCE = 10.0


class Pipe:
    """A real pipe, the smallest there is."""

    def __init__(self) -> None:
        self.reads, writes = os.pipe()
        fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)
        self.writes = os.fdopen(writes, "w")

    def read_all(self) -> bytes:
        with os.fdopen(self.reads, "rb") as stream:
            return stream.read()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.writes.close()


def settled(writer: LogWriter) -> None:
    """Wait until the thread has dealt with all it was given."""
    writer._lines.put(None)
    writer._thread.join(PATIENCE)
    assert not writer._thread.is_alive()


def test_lines_come_out_whole_and_in_order(pipe: Pipe) -> None:
    writer = LogWriter(pipe.writes, max_lines=1000)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_all()))
    reader.start()
    for n in range(500):
        writer.write(f"line {n} ответ \ud800\n")
    settled(writer)
    pipe.writes.close()
    reader.join(PATIENCE)
    assert found[0].decode() == "".join(f"line {n} ответ \\ud800\n" for n in range(500))
    assert writer.dropped == {"blocked": 0, "failed": 0}


def test_a_pipe_that_nobody_reads_takes_no_time_and_what_does_not_fit_is_counted(pipe: Pipe) -> None:
    writer = LogWriter(pipe.writes, max_lines=10)
    for _ in range(1000):
        writer.write(LINE)  # would hang here for ever
    dropped = writer.dropped["blocked"]
    assert dropped > 900
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_all()))
    reader.start()
    settled(writer)
    pipe.writes.close()
    reader.join(PATIENCE)
    assert found[0].decode() == LINE * (1000 - dropped)


def test_the_end_of_the_process_waits_for_a_reader_that_has_stopped_but_not_for_long(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "CLOSE_SECONDS", 0.01)
    writer = LogWriter(pipe.writes, max_lines=100)
    for _ in range(50):
        writer.write(LINE)
    writer.close()
    assert writer._thread.is_alive()
    assert writer._thread.daemon
    pipe.read_all_later = threading.Thread(target=pipe.read_all)  # type: ignore[attr-defined]
    pipe.read_all_later.start()  # type: ignore[attr-defined]
    writer._thread.join(PATIENCE)
    pipe.writes.close()
    pipe.read_all_later.join(PATIENCE)  # type: ignore[attr-defined]


def test_a_pipe_without_a_reader_drops_lines_and_ends_nothing(pipe: Pipe) -> None:
    os.close(pipe.reads)
    writer = LogWriter(pipe.writes, max_lines=100)
    for _ in range(5):
        writer.write(LINE)
    settled(writer)
    assert writer.dropped == {"blocked": 0, "failed": 5}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_drops_lines_and_ends_nothing() -> None:
    with Path("/dev/full").open("w") as full:
        writer = LogWriter(full, max_lines=100)
        writer.write(LINE)
        settled(writer)
    assert writer.dropped == {"blocked": 0, "failed": 1}


def test_after_half_a_line_the_next_one_begins_a_new_one(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []

    def write(_: int, line: bytes) -> int:
        if len(written) == 1:  # the disk is full in the middle of the second line
            written.append(bytes(line[:3]))
            return 3
        if len(written) == 2 and line.tobytes() == b"ond\n":  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")
        written.append(bytes(line))
        return len(line)

    monkeypatch.setattr(os, "write", write)
    writer = LogWriter(pipe.writes, max_lines=100)
    for line in ("first\n", "second\n", "third\n", "fourth\n"):
        writer.write(line)
    settled(writer)
    assert b"".join(written) == b"first\nsec\nthird\nfourth\n"
    assert writer.dropped["failed"] == 1


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writes.fileno(), False)
    writer = LogWriter(pipe.writes, max_lines=100)
    found: list[bytes] = []
    for _ in range(50):
        writer.write(LINE)
    reader = threading.Thread(target=lambda: found.append(pipe.read_all()))
    reader.start()
    settled(writer)
    pipe.writes.close()
    reader.join(PATIENCE)
    assert len(found[0]) == 50 * len(LINE)
    assert writer.dropped["failed"] == 0


@pytest.mark.parametrize("stream", [None, StringIO()], ids=["closed", "no file"])
def test_where_there_is_no_standard_error_lines_are_dropped_and_no_other_file_is_written_to(
    stream: StringIO | None,
) -> None:
    writer = LogWriter(stream, max_lines=100)
    writer.write(LINE)
    settled(writer)
    assert (writer.dropped, writer.isatty()) == ({"blocked": 0, "failed": 1}, False)
