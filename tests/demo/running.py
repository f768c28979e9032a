"""A command that plays with processes of its own, as a person starts it."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).parents[2]
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
ON_A_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


class Running(NamedTuple):
    """A running command."""

    process: asyncio.subprocess.Process

    async def says(self, what: str) -> str:
        """Read on until it has said this."""
        assert self.process.stdout is not None
        said = b""
        async with asyncio.timeout(20):
            while what.encode() not in said:
                line = await self.process.stdout.readline()
                assert line, said
                said += line
        return said.decode()

    async def ends(self) -> tuple[int, str, str]:
        """Wait for its end; returns the exit code and what else it said."""
        async with asyncio.timeout(40):
            output, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, output.decode(), errors.decode()

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def files_under(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*")]


@asynccontextmanager
async def command(home: Path, *arguments: str, through: tuple[str, ...] = ()) -> AsyncIterator[Running]:
    temporary = home / "tmp"
    temporary.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if name not in {"FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"}
    }
    ours = {"HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "COLUMNS": "80", "TERM": "xterm"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *through, *([sys.executable] if through else []), "-m", "sidecar", *arguments,
        cwd=home, env={**environment, **ours, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "error"},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Running(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
