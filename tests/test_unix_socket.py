"""LearnFlow's listener at a Unix socket: who may ask, what is replaced, what is left."""

import socket
import stat
from pathlib import Path

import aiohttp
import pytest

from sidecar.app import running
from sidecar.stores import StartError
from sidecar.unix_socket import unix_socket
from tests.harness import JSON, PATH, reference, settings_for

QUESTION = b'{"user_id": 1, "node_name": "explain", "context": {"topic": "tides"}}'


async def test_prompts_come_by_the_socket_as_by_the_port_and_it_goes_with_the_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "learnflow.sock"
    async with reference() as upstream, running(settings_for(upstream.url, listen_unix=path)) as sidecar:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        for connector, url in (
            (aiohttp.UnixConnector(str(path)), "http://localhost"),
            (aiohttp.TCPConnector(), f"http://{sidecar.listen}"),
        ):
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.post(f"{url}{PATH}", data=QUESTION, headers=JSON) as response,
            ):
                assert response.status == 200
                assert "prompt" in await response.json()
    assert not path.exists()


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    with unix_socket(path) as bound:
        assert bound is not None
        assert bound.getsockname() == str(path)


def test_a_socket_at_which_somebody_listens_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "taken.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with (
            pytest.raises(StartError, match=r"listen_unix: another process listens at .*taken\.sock"),
            unix_socket(path),
        ):
            pass
        assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("precious")
    with pytest.raises(StartError, match="is no socket"), unix_socket(path):
        pass
    assert path.read_text() == "precious"


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "no" / "such.sock"
    with (
        pytest.raises(StartError, match=r"listen_unix: cannot listen at .*: No such file or directory"),
        unix_socket(path),
    ):
        pass


def test_the_socket_of_who_came_after_us_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "learnflow.sock"
    with unix_socket(path):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            path.with_name("next").touch()  # so that the next one has another inode
            other.bind(str(path))
    assert path.exists()
