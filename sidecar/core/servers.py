"""Kinds of settings that say where Redis is."""

import re
from dataclasses import dataclass

from sidecar.core.units import Kind, ListenAddress

_URL = re.compile(r"(?P<scheme>rediss?)://(?P<hosts>[^/@?#\s]+)(?:/(?P<database>\d{1,5})?)?", re.ASCII)
_PORT = re.compile(r":\d+\Z", re.ASCII)
DEFAULT_PORT = 6379


@dataclass(frozen=True, slots=True)
class RedisServers:
    """Where Redis is: one server, or those by which the others are found."""

    is_tls: bool
    hosts: tuple[tuple[str, int], ...]
    database: int = 0


class RedisUrl(Kind[RedisServers]):
    """One or several servers, with or without TLS; never a password: URLs end in logs."""

    allowed = "redis[s]://host[:port][,host[:port]…][/database], without user and password: see username, password_file"

    def parse(self, text: str) -> RedisServers:
        """Read the URL."""
        found = _URL.fullmatch(text)
        if not found:
            raise ValueError(self.allowed)
        try:
            hosts = [
                ListenAddress().parse(each if _PORT.search(each) else f"{each}:{DEFAULT_PORT}")
                for each in found["hosts"].split(",")
            ]
        except ValueError as error:
            raise ValueError(self.allowed) from error
        if any(host.port == 0 for host in hosts):
            raise ValueError(self.allowed)
        return RedisServers(
            found["scheme"] == "rediss",
            tuple((host.host, host.port) for host in hosts),
            int(found["database"] or 0),
        )

    def format(self, value: RedisServers) -> str:
        """Write the URL."""
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in value.hosts)
        return f"redis{'s' if value.is_tls else ''}://{hosts}" + (f"/{value.database}" if value.database else "")


class Word(Kind[str]):
    """A name without blanks."""

    allowed = "1 to 128 printable characters without blanks"

    def parse(self, text: str) -> str:
        """Check the name."""
        if not 1 <= len(text) <= 128 or not text.isprintable() or any(each.isspace() for each in text):
            raise ValueError(self.allowed)
        return text

    def format(self, value: str) -> str:
        """Write it as it is."""
        return value
