"""Child processes of the demo: started, listened to, and never left behind."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

START_SECONDS = 20.0
"""How long a child may take to say where it listens."""
STOP_SECONDS = 8.0
"""How long it may take to end after SIGTERM: the sidecar drains for its deadline at most."""
PACKAGE_ROOT = Path(__file__).parents[2]
READY = {"run": b'"event": "started"', "upstream": b"reference config service on http://"}
"""What a command says on standard error once it listens."""
MOST_SAID = 4096
"""Bytes of a child's own words that an error quotes: the last ones."""


class ChildError(Exception):
    """A child did not start; in its own words."""


class Child:
    """One `prompt-sidecar` process; `first_line`: what it said when it listened.

    `address`: where it answers; `ops`: the ops listener of a sidecar.
    """

    def __init__(self, process: asyncio.subprocess.Process, first_line: str) -> None:
        self._process = process
        self.first_line = first_line
        self.pid = process.pid
        self.address = _said(r'"listen": "([^"]+)"', first_line) or _said(r"http://([\d.]+:\d+)", first_line)
        self.ops = _said(r'"ops": "([^"]+)"', first_line)
        self._drain = asyncio.ensure_future(_discard(process.stderr))

    async def kill(self) -> None:
        """End it as a crash would: SIGKILL."""
        await _kill(self._process)
        await self._drain

    async def stop(self) -> int:
        """End it with SIGTERM (SIGKILL if it does not listen), and return its exit code."""
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
            except TimeoutError:
                await _kill(self._process)
        await self._drain
        assert self._process.returncode is not None
        return self._process.returncode


async def start(*arguments: str, settings: Mapping[str, str] | None = None, module: str = "sidecar") -> Child:
    """Start `prompt-sidecar ARGUMENTS` and wait until it listens; raises `ChildError`.

    `module`: what is run in its place, with the same arguments.
    """
    process = await _spawned(module, arguments, settings or {})
    said = bytearray()
    try:
        async with asyncio.timeout(START_SECONDS):
            line = await _until_ready(process, READY[arguments[0]], said)
            if line is None:
                await process.wait()
    except TimeoutError:
        await _kill(process)
        said += f"it did not listen within {START_SECONDS:g} s".encode()
        line = None
    except BaseException:
        await _kill(process)
        raise
    if line is None:
        words = said[-MOST_SAID:].decode(errors="replace").strip() or "it said nothing"
        raise ChildError(f"prompt-sidecar {arguments[0]} did not start (exit code {process.returncode}): {words}")
    return Child(process, line)


@asynccontextmanager
async def child(
    *arguments: str, settings: Mapping[str, str] | None = None, module: str = "sidecar"
) -> AsyncIterator[Child]:
    """Start a child, and stop it whatever happens."""
    started = await start(*arguments, settings=settings, module=module)
    try:
        yield started
    finally:
        await started.stop()


async def _spawned(module: str, arguments: tuple[str, ...], settings: Mapping[str, str]) -> asyncio.subprocess.Process:
    """Spawn a process; a caller that is cancelled meanwhile leaves none behind."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    search = [str(PACKAGE_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    ours = {"PYTHONPATH": os.pathsep.join(search), "PYTHONUNBUFFERED": "1", "SIDECAR_LOG__FORMAT": "json"}
    ours["SIDECAR_STORE__KIND"] = "none"  # a demo leaves nothing behind
    spawning = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *arguments,
            env={**environment, **ours, **settings},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    )
    try:
        return await asyncio.shield(spawning)
    except asyncio.CancelledError:
        await _kill(await spawning)
        raise


def _said(pattern: str, line: str) -> str:
    found = re.search(pattern, line)
    return found[1] if found else ""


async def _until_ready(process: asyncio.subprocess.Process, ready: bytes, said: bytearray) -> str | None:
    """Return the line that says it listens, or None where the process ends without it; collects what it says."""
    assert process.stderr is not None
    async for line in process.stderr:
        if ready in line:
            return line.decode().strip()
        said += line
    return None


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


async def _discard(stream: asyncio.StreamReader | None) -> None:
    assert stream is not None
    while await stream.read(65_536):
        pass
