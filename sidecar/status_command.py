"""`prompt-sidecar status`: what a running sidecar says of itself, once or again and again."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from enum import IntEnum
from io import TextIOWrapper
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import msgspec
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from sidecar.core.status import State, Status
from sidecar.ops_client import OpsError, call
from sidecar.status_tables import printable, rendered

PLAIN_WIDTH = 200
"""Columns where nobody looks at a terminal: lines stay whole for grep."""


class Exit(IntEnum):
    """Exit codes; the last one also where the state could not be told, as degraded must mean degraded."""

    HEALTHY = 0
    DEGRADED = 1
    UNREACHABLE = 2


class Wanted(NamedTuple):
    """What the command line asks for."""

    ops_url: str
    as_json: bool
    watch: float | None
    """Seconds between two looks; None: one look."""


class _Output(Console):
    """Where tables go; rich itself would end the process with exit code 1 when its reader has gone."""

    def on_broken_pipe(self) -> NoReturn:
        """Leave it to the caller."""
        raise BrokenPipeError


def show(wanted: Wanted, *, sleep: Callable[[float], None] = time.sleep) -> Exit:
    """Show the status, and return the exit code; where it is watched, that of the last look before an interruption.

    Characters that the output's encoding lacks are spelt out; output that takes nothing more tells nobody the state.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _show(wanted, sleep)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes nowhere, without a word
        if not isinstance(error, BrokenPipeError):  # a reader that has seen enough, such as `head`
            print(f"The status cannot be written: {error.strerror}.", file=sys.stderr)  # noqa: T201 — its output
        return Exit.UNREACHABLE
    return code


def _show(wanted: Wanted, sleep: Callable[[float], None]) -> Exit:
    console = _Output(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    if wanted.watch is None:
        return _once(wanted, console)
    code = Exit.UNREACHABLE
    # SIGINT, too: a shell has it ignored in what it starts in the background.
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if wanted.as_json or not console.is_terminal:
            while True:
                code = _once(wanted, console)
                if not wanted.as_json:
                    console.print()
                sleep(wanted.watch)
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while True:
                code, seen, _ = _look(wanted.ops_url)
                live.update(seen, refresh=True)
                sleep(wanted.watch)
    except KeyboardInterrupt:
        return code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _once(wanted: Wanted, console: Console) -> Exit:
    code, seen, answer = _look(wanted.ops_url)
    if code is Exit.UNREACHABLE:
        print(seen, file=sys.stderr)  # noqa: T201 — its output
    elif wanted.as_json:
        print(json.dumps(answer, indent=None if wanted.watch else 2), flush=True)  # noqa: T201
    else:
        console.print(seen)
    return code


def _look(ops_url: str) -> tuple[Exit, RenderableType, Any]:
    """Ask once: the exit code, what to show, and the answer as it came."""
    try:
        answer = call("GET", f"{ops_url}/status")
        status = msgspec.convert(answer, Status)
    except OpsError as error:
        return Exit.UNREACHABLE, Text(printable(str(error))), None
    except msgspec.ValidationError as error:
        sentence = f"What {ops_url} answers is no status of this version: {error}."
        return Exit.UNREACHABLE, Text(printable(sentence)), None
    return (Exit.HEALTHY if status.state is State.HEALTHY else Exit.DEGRADED), rendered(status), answer
