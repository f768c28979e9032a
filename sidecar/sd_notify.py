"""Tell systemd how we are: sd_notify(3), a datagram on the socket that NOTIFY_SOCKET names.

Without one (in a container, at a prompt) nothing is said to anybody.
"""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

_MICROSECONDS = 1_000_000


class Notifier:
    """What tells the service manager; deaf ears are no trouble of ours, so nothing here fails."""

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address
        self.watchdog_seconds = watchdog_seconds

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Notifier":
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID; a watchdog that is meant for another process is none."""
        address, micros = environ.get("NOTIFY_SOCKET"), environ.get("WATCHDOG_USEC", "")
        if not address or not address.startswith(("/", "@")):
            return cls(None)
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watched = ours and micros.isascii() and micros.isdigit() and int(micros) > 0
        return cls(address, int(micros) / _MICROSECONDS if watched else None)

    def ready(self, status: str) -> None:
        """Say that requests are answered; `status` is what `systemctl status` shows."""
        self._tell("READY=1", f"STATUS={status}")

    def stopping(self) -> None:
        """Say that the drain has begun."""
        self._tell("STOPPING=1", "STATUS=Draining.")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._tell("WATCHDOG=1")

    def reloading(self, reload: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Return the reload that says when it begins and when it is over, as Type=notify-reload asks for."""

        async def told() -> None:
            # systemd compares it with the instant of its own SIGHUP, on the same clock.
            self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
            try:
                await reload()
            finally:
                self._tell("READY=1")

        return told

    async def feed(self) -> None:
        """Feed the watchdog at half its time, for ever; a loop that hangs does not, and the process is replaced."""
        while self.watchdog_seconds is not None:
            self.alive()
            await asyncio.sleep(self.watchdog_seconds / 2)

    def _tell(self, *lines: str) -> None:
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.settimeout(0)  # a manager that does not read must not hold up a request
            to.sendto("\n".join(lines).encode(), self._address)
