"""Child processes of the demo: started, listened to, and never left behind."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

START_SECONDS = 20.0
"""How long a child may take to say where it listens."""
STOP_SECONDS = 8.0
"""How long it may take to end after SIGTERM: the sidecar drains for its deadline at most."""
PACKAGE_ROOT = Path(__file__).parents[2]


class ChildError(Exception):
    """A child did not start, or ended early."""


class Child:
    """One `prompt-sidecar` process."""

    def __init__(self, process: asyncio.subprocess.Process, first_line: str) -> None:
        self._process = process
        self.first_line = first_line
        self.pid = process.pid
        self._drain = asyncio.ensure_future(_discard(process.stderr))

    async def kill(self) -> None:
        """End it as a crash would: SIGKILL."""
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        """End it with SIGTERM (SIGKILL if it does not listen), and return its exit code."""
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        await self._drain
        assert self._process.returncode is not None
        return self._process.returncode


async def start(*arguments: str, settings: Mapping[str, str] | None = None) -> Child:
    """Start `prompt-sidecar ARGUMENTS` and wait for its first line on standard error; raises `ChildError`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    search = [str(PACKAGE_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sidecar",
        *arguments,
        env={**environment, "PYTHONPATH": os.pathsep.join(search), "PYTHONUNBUFFERED": "1", **(settings or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            line = (await process.stderr.readline()).decode().strip()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode is not None or not line or "http" not in line and "started" not in line:
        if process.returncode is None:
            process.kill()
        await process.wait()
        raise ChildError(f"prompt-sidecar {arguments[0]} did not start: {line or 'it said nothing'}")
    return Child(process, line)


@asynccontextmanager
async def child(*arguments: str, settings: Mapping[str, str] | None = None) -> AsyncIterator[Child]:
    """Start a child, and stop it whatever happens."""
    started = await start(*arguments, settings=settings)
    try:
        yield started
    finally:
        await started.stop()


async def _discard(stream: asyncio.StreamReader | None) -> None:
    assert stream is not None
    while await stream.read(65_536):
        pass
