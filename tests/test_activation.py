"""Listening sockets that are handed over: which is which, and which are refused."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

import sidecar.activation
from sidecar.activation import NAMES, ActivationError, inherited
from sidecar.app import StartError, running
from sidecar.settings import Address, OpsSettings
from tests.harness import client_of, settings_for
from tests.wire import reference, refuses

NOWHERE = "http://127.0.0.1:9"


FIRST = 500
"""Stands for descriptor 3, which is taken in this process."""


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Hand two listening sockets over to this process; their ports."""
    monkeypatch.setattr(sidecar.activation, "FIRST_FD", FIRST)
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in NAMES]
    for place, each in enumerate(listening):
        os.dup2(each.fileno(), FIRST + place)
    yield [each.getsockname()[1] for each in listening]
    for place, each in enumerate(listening):
        each.close()
        with suppress(OSError):
            os.close(FIRST + place)


def environ(count: str | int = 2, names: str | None = None, pid: int | None = None) -> dict[str, str]:
    given = {"LISTEN_PID": str(os.getpid() if pid is None else pid), "LISTEN_FDS": str(count)}
    return given if names is None else given | {"LISTEN_FDNAMES": names}


def ports(taken: dict[str, socket.socket]) -> dict[str, int]:
    found = {}
    for name, each in taken.items():
        with each:
            found[name] = each.getsockname()[1]
    return found


# Which is which


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (None, ("learnflow", "ops")),
        ("", ("learnflow", "ops")),
        ("prompt-sidecar.socket:prompt-sidecar.socket", ("learnflow", "ops")),
        ("learnflow:ops", ("learnflow", "ops")),
        ("ops:learnflow", ("ops", "learnflow")),
    ],
)
def test_sockets_go_by_their_names_and_without_ours_by_their_order(
    names: str | None, order: tuple[str, ...], handed_over: list[int]
) -> None:
    assert ports(inherited(environ(names=names))) == dict(zip(order, handed_over, strict=True))


@pytest.mark.parametrize(("names", "which"), [(None, "learnflow"), ("learnflow", "learnflow"), ("ops", "ops")])
def test_one_socket_is_learnflows_unless_it_is_named_ops(names: str | None, which: str, handed_over: list[int]) -> None:
    assert ports(inherited(environ(1, names))) == {which: handed_over[0]}


def test_no_child_inherits_the_sockets_or_their_variables(handed_over: list[int]) -> None:
    given = environ(names="learnflow:ops") | {"OTHER": "stays"}
    taken = inherited(given)
    assert given == {"OTHER": "stays"}
    assert not any(os.get_inheritable(each.fileno()) for each in taken.values())
    assert len(ports(taken)) == len(handed_over)


# Which are not ours, or none


@pytest.mark.parametrize("given", [{}, {"LISTEN_FDS": "1"}, environ(pid=1), {"LISTEN_PID": "", "LISTEN_FDS": "2"}])
def test_what_is_meant_for_another_process_is_left_alone(given: dict[str, str], handed_over: list[int]) -> None:
    assert inherited(given) == {}
    with socket.socket(fileno=os.dup(FIRST)) as untouched:
        assert untouched.getsockname()[1] == handed_over[0]


@pytest.mark.parametrize("count", ["", "0", "-1", "3", "many", "²"])
def test_too_many_or_none_is_a_sentence(count: str) -> None:
    with pytest.raises(
        ActivationError, match=rf"^LISTEN_FDS: '{count}' sockets .*; allowed: 1 or 2 \(learnflow and ops\)"
    ):
        inherited(environ(count))


@pytest.mark.parametrize("names", ["learnflow", "learnflow:metrics", "ops:ops", "learnflow:ops:ops"])
def test_names_that_do_not_fit_are_a_sentence(names: str) -> None:
    with pytest.raises(ActivationError, match=rf"^LISTEN_FDNAMES: '{names}' for 2 socket.*each once"):
        inherited(environ(names=names))


def test_a_descriptor_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar.activation, "FIRST_FD", FIRST)
    with pytest.raises(
        ActivationError, match=rf"^LISTEN_FDS: descriptor {FIRST} \(learnflow\) .*: Bad file descriptor\.$"
    ):
        inherited(environ(1))


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (socket.AF_INET, socket.SOCK_STREAM),
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_STREAM),
    ],
    ids=["not listening", "datagrams", "unix"],
)
def test_a_socket_that_cannot_be_listened_on_is_a_sentence(
    family: socket.AddressFamily, kind: socket.SocketKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecar.activation, "FIRST_FD", FIRST)
    with socket.socket(family, kind) as wrong:
        os.dup2(wrong.fileno(), FIRST)
    with pytest.raises(ActivationError, match=rf"descriptor {FIRST} \(learnflow\) is not a listening TCP socket\.$"):
        inherited(environ(1))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(FIRST)


# In a sidecar


async def test_a_sidecar_answers_on_what_it_inherits_and_says_so(handed_over: list[int]) -> None:
    taken = inherited(environ())
    async with (
        reference() as (url, _),
        running(settings_for(url), sockets=taken) as sidecar,
        client_of(f"http://{sidecar.listen}", f"http://{sidecar.ops}") as client,
    ):
        assert [sidecar.listen.port, sidecar.ops.port] == handed_over
        assert (
            await client.ask(node="answer_question", context={"study_material": "s", "input_content": "i"})
        ).status == 200
        assert "prompt_sidecar_build_info" in await client.metrics()
    assert not any([await refuses(port) for port in handed_over])  # others hold them still


async def test_an_inherited_socket_is_used_whatever_the_settings_say(handed_over: list[int]) -> None:
    taken = inherited(environ(1))
    with socket.create_server(("127.0.0.1", 0)) as busy:
        there = Address("127.0.0.1", busy.getsockname()[1])
        async with running(replace(settings_for(NOWHERE), listen=there), sockets=taken) as sidecar:
            assert sidecar.listen.port == handed_over[0]


@pytest.mark.parametrize(("name", "key"), [("learnflow", "listen"), ("ops", "ops.listen")])
async def test_a_socket_that_others_can_reach_does_not_get_round_a_loopback_setting(name: str, key: str) -> None:
    with socket.create_server(("0.0.0.0", 0)) as open_to_all:
        says = rf"^{key}: the inherited socket listens on 0\.0\.0\.0:\d+, which others can reach; allowed: loopback"
        with pytest.raises(StartError, match=says):
            async with running(settings_for(NOWHERE), sockets={name: open_to_all}):
                pytest.fail("it started")


async def test_an_ops_socket_that_others_can_reach_is_taken_where_the_setting_allows_it() -> None:
    open_ops = OpsSettings(listen=Address("0.0.0.0", 9102))
    with socket.create_server(("0.0.0.0", 0)) as open_to_all:
        async with running(replace(settings_for(NOWHERE), ops=open_ops), sockets={"ops": open_to_all}) as sidecar:
            assert sidecar.ops == Address("0.0.0.0", open_to_all.getsockname()[1])
