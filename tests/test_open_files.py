"""The limit on open files is raised as far as the settings need it, and a lower one is warned of."""

import resource
from dataclasses import replace

import pytest

from sidecar.open_files import allow, wanted
from sidecar.settings import LimitSettings, OpsSettings, Settings

UNLIMITED = resource.RLIM_INFINITY


def test_every_socket_that_the_settings_allow_is_counted() -> None:
    assert wanted(Settings()) == 2 * (1024 + 64) + 64 + 64 + 128
    more = replace(Settings(), limits=LimitSettings(max_connections=5000), ops=OpsSettings(max_connections=10))
    assert wanted(more) == 2 * 5010 + 64 + 64 + 128


@pytest.mark.parametrize(
    ("soft", "hard", "set_to", "warned"),
    [
        (256, 524_288, (2000, 524_288), False),
        (256, UNLIMITED, (2000, UNLIMITED), False),
        (256, 1024, (1024, 1024), True),
        (1024, 1024, (1024, 1024), True),
        (2000, 4000, None, False),
        (UNLIMITED, UNLIMITED, None, False),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_the_hard_one_lets_it(
    soft: int,
    hard: int,
    set_to: tuple[int, int] | None,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: given.append(limits))
    allow(2000)
    assert given == ([] if set_to is None else [set_to])
    assert ("few_open_files_allowed" in capsys.readouterr().out) is warned
