"""The units that settings are written in: a text and its value, in both directions.

A `Kind` says what one setting may be. Every source of settings (file, environment, flag) hands over text, so a value
is read by one rule wherever it stands, and YAML's own guesses (`on`, `1:30`, `null`) never take part.
"""

import ipaddress
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
N = TypeVar("N", int, float)
E = TypeVar("E", bound=StrEnum)

LONGEST_TEXT = 1000  # characters; no setting is longer, and arithmetic on a longer number takes its time
LONGEST_NAME = 253  # characters of a host name, RFC 1035 §2.3.4


class Kind(ABC, Generic[T]):
    """What a setting may be."""

    @property
    @abstractmethod
    def allowed(self) -> str:
        """Say what is allowed, as it follows "allowed:"."""

    @abstractmethod
    def parse(self, text: str) -> T:
        """Return the value; a ValueError says what is allowed."""

    @abstractmethod
    def format(self, value: T) -> str:
        """Return the text that `parse` reads as this value."""


def setting(default: T, kind: Kind[T], reason: str) -> T:
    """Declare a dataclass field that is a setting, with its kind and the reason for its default beside it."""
    made: T = field(default=default, metadata={"kind": kind, "reason": reason})
    return made


_DURATIONS = {name: Decimal(size) for name, size in (("ms", "0.001"), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400))}
_SIZES = {name: Decimal(2**bits) for name, bits in (("B", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30))}
_SIZES |= {name: Decimal(10**zeros) for name, zeros in (("KB", 3), ("MB", 6), ("GB", 9))}
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z%]*)")


@dataclass(frozen=True)
class Quantity(Kind[N]):
    """A number with its unit, within bounds."""

    noun: str
    number: type[N]
    units: Mapping[str, Decimal]
    base: str  # the unit for what is whole in no other one
    minimum: Decimal
    maximum: Decimal
    bare: bool = False  # whether a whole number stands for so many of the base; 0.5 might mean a half of all

    @property
    def allowed(self) -> str:
        """Name the bounds and the units."""
        bounds = f"from {self._text(self.minimum)} to {self._text(self.maximum)}"
        bare = " or as a whole number" if self.bare else ""
        return f"{self.noun} {bounds}, with its unit ({', '.join(self.units)}){bare}"

    def parse(self, text: str) -> N:
        """Read a number and a unit; a bare 0 needs none."""
        found = _NUMBER.fullmatch(text) if len(text) <= LONGEST_TEXT else None
        if found is None:
            raise ValueError(self.allowed)
        number, unit = Decimal(found[1]), found[2]
        if not unit and number and not (self.bare and text.isdigit()):
            meant = " or ".join(f"{text}{unit}" for unit in list(self.units)[:2])
            raise ValueError(f"{self.allowed}; write a unit: {meant}")
        scale = self.units.get(unit or self.base)
        if scale is None or not self.minimum <= number * scale <= self.maximum:
            raise ValueError(self.allowed)
        exact = number * scale
        if self.number is int and exact != exact.to_integral_value():
            raise ValueError(self.allowed)
        return self.number(exact)

    def format(self, value: N) -> str:
        """Write the value in the largest unit in which it is whole."""
        return self._text(Decimal(repr(value)))

    def _text(self, exact: Decimal) -> str:
        whole = [unit for unit, scale in self.units.items() if exact >= scale and exact % scale == 0]
        unit = max(whole, key=self.units.__getitem__, default=self.base)
        return f"{_plain(exact / self.units[unit])}{unit}"


def _plain(number: Decimal) -> str:
    """Write a number without an exponent and without zeros after its last decimal."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(at_least: str, at_most: str) -> Kind[float]:
    """Return the kind of seconds, written like `250ms`, `4s`, `15m`."""
    return _quantity("a duration", float, _DURATIONS, "s", (at_least, at_most))


def size(at_least: str, at_most: str) -> Kind[int]:
    """Return the kind of bytes, written like `64MiB`, `1KiB`, `10MB`."""
    return _quantity("a size", int, _SIZES, "B", (at_least, at_most))


def percent(at_least: str = "0%", at_most: str = "100%", *, bare: bool = False) -> Kind[float]:
    """Return the kind of a fraction, written like `20%`; where `bare`, also like `20`."""
    return _quantity("a percentage", float, {"%": Decimal("0.01")}, "%", (at_least, at_most), bare=bare)


def _quantity(
    noun: str,
    number: type[N],
    units: Mapping[str, Decimal],
    base: str,
    bounds: tuple[str, str],
    *,
    bare: bool = False,
) -> Quantity[N]:
    free = Quantity(noun, number, units, base, Decimal(0), Decimal("Infinity"))
    low, high = (Decimal(repr(free.parse(bound))) for bound in bounds)
    return Quantity(noun, number, units, base, low, high, bare)


@dataclass(frozen=True)
class Whole(Kind[int]):
    """A whole number."""

    minimum: int
    maximum: int

    @property
    def allowed(self) -> str:
        """Name the bounds."""
        return f"a whole number from {self.minimum} to {self.maximum}"

    def parse(self, text: str) -> int:
        """Read plain digits."""
        if not re.fullmatch(f"[0-9]{{1,{LONGEST_TEXT}}}", text) or not self.minimum <= int(text) <= self.maximum:
            raise ValueError(self.allowed)
        return int(text)

    def format(self, value: int) -> str:
        """Write plain digits."""
        return str(value)


@dataclass(frozen=True)
class Choice(Kind[E]):
    """One of the members of an enum."""

    members: type[E]

    @property
    def allowed(self) -> str:
        """Name the members."""
        return " | ".join(self.members)

    def parse(self, text: str) -> E:
        """Read a member's text."""
        try:
            return self.members(text)
        except ValueError:
            raise ValueError(self.allowed) from None

    def format(self, value: E) -> str:
        """Write the member's text."""
        return value.value


class Switch(Kind[bool]):
    """True or false."""

    allowed = "true | false"

    def parse(self, text: str) -> bool:
        """Read `true` or `false`, in any case."""
        if text.lower() not in {"true", "false"}:
            raise ValueError(self.allowed)
        return text.lower() == "true"

    def format(self, value: bool) -> str:  # noqa: FBT001 # the one argument of every format()
        """Write `true` or `false`."""
        return str(value).lower()


@dataclass(frozen=True)
class Either(Kind[T | None], Generic[T]):
    """A word that stands for None, or a value."""

    word: str
    kind: Kind[T]

    @property
    def allowed(self) -> str:
        """Name the word and what else there is."""
        return f"{self.word} | {self.kind.allowed}"

    def parse(self, text: str) -> T | None:
        """Read the word as None, anything else as the value."""
        if text == self.word:
            return None
        try:
            return self.kind.parse(text)
        except ValueError as error:
            raise ValueError(f"{self.word} | {error}") from None

    def format(self, value: T | None) -> str:
        """Write None as the word."""
        return self.word if value is None else self.kind.format(value)


_PLAIN_NAME = re.compile(r"\w[\w.-]*")
_NEXT_NAME = re.compile(r"""(?:\s*(?P<quoted>"(?:[^"\\]|\\.)*")\s*|(?P<plain>[^",\[\]]*))(?P<end>,|\Z)""")


class Names(Kind[frozenset[str]]):
    """A set of names."""

    allowed = "a list of names such as [a, b]"

    def parse(self, text: str) -> frozenset[str]:
        """Read `[a, b]`, or `a, b` as one writes it in a variable; what is no plain name stands in double quotes."""
        text = text.strip()
        if text.startswith("[") and text.endswith("]"):
            text = text[1:-1].strip()
            if not text:
                return frozenset()
        names = frozenset(self._read(text))
        if not all(name and name.isprintable() for name in names):
            raise ValueError(self.allowed)
        if any("*" in name for name in names):
            raise ValueError(f"{self.allowed}; each is a whole name, * stands for none")
        return names

    def format(self, value: frozenset[str]) -> str:
        """Write the names in the order of the alphabet."""
        return listed(sorted(value))

    def _read(self, text: str) -> Iterator[str]:
        found = _NEXT_NAME.match(text)
        while found is not None:
            yield _unquoted(found["quoted"]) if found["quoted"] else found["plain"].strip()
            if not found["end"]:
                return
            found = _NEXT_NAME.match(text, found.end())
        raise ValueError(self.allowed)


def listed(names: Iterable[str]) -> str:
    """Write names as one text that `Names` reads, and YAML too: `[a, "b, c"]`."""
    quoted = (name if _PLAIN_NAME.fullmatch(name) else json.dumps(name, ensure_ascii=False) for name in names)
    return f"[{', '.join(quoted)}]"


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return ""  # which is no name


LONGEST_SOCKET_PATH = 107
"""Bytes that `sockaddr_un` holds, without the closing zero (unix(7))."""


class FilePath(Kind[Path]):
    """The path of a file; whether there is one is for its reader to say."""

    allowed = "a file path"

    def parse(self, text: str) -> Path:
        """Read a path as it stands: `~` is expanded nowhere, and alone it is YAML's null and no file."""
        if not text.strip() or text == "~" or not text.isprintable():
            raise ValueError(self.allowed)
        return Path(text)

    def format(self, value: Path) -> str:
        """Write the path; with a slash, so that it is taken for no word and no option."""
        text = str(value)
        return text if "/" in text else f"./{text}"


class SocketPath(FilePath):
    """The path of a Unix socket."""

    allowed = "the path of a Unix socket, 107 bytes at most"

    def parse(self, text: str) -> Path:
        """Read a path that the kernel can take."""
        path = super().parse(text)
        if len(text.encode()) > LONGEST_SOCKET_PATH:
            raise ValueError(self.allowed)
        return path


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine (in a pod: only this pod) can reach it."""
        ip = _ip(self.host)
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return self.host == "localhost" if ip is None else ip.is_loopback

    def overlaps(self, other: "Address") -> bool:
        """Whether both cannot be listened on at once; port 0 is any free port and never taken."""
        hosts = {self.host, other.host}
        everywhere = {"0.0.0.0", "::", "localhost"}  # noqa: S104 # compared with, not bound to
        return self.port == other.port != 0 and (len(hosts) == 1 or not hosts.isdisjoint(everywhere))


_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:/[A-Za-z0-9._~!$&'()*+,;=:%-]*)*)"  # no @: what stands before one may be a password
)
_NAME = re.compile(r"(?:(?!-)[A-Za-z0-9_-]{1,63}(?<!-)\.)*(?!-)(?=[A-Za-z0-9_-]*[A-Za-z])[A-Za-z0-9_-]{1,63}(?<!-)\.?")
_HIGHEST_PORT = 65535


class ListenAddress(Kind[Address]):
    """A `host:port` to listen on."""

    allowed = "host:port such as 127.0.0.1:8002 or [::1]:8002 (quoted in YAML), port 0 to 65535 (0: any free one)"

    def parse(self, text: str) -> Address:
        """Read `host:port` or `[IPv6]:port`."""
        found = _HOST_PORT.fullmatch(text)
        host = found and _host(found["host"])
        if not found or not host or int(found["port"]) > _HIGHEST_PORT:
            raise ValueError(self.allowed)
        return Address(host, int(found["port"]))

    def format(self, value: Address) -> str:
        """Write it as it is read."""
        return str(value)


class HostName(Kind[str]):
    """The name or the IP address of a host."""

    allowed = "a host name or an IP address, without scheme and port"

    def parse(self, text: str) -> str:
        """Check the name; an IPv6 address stands without brackets."""
        host = text if _ip(text) is not None else _host(text)
        if not host or text.startswith("["):
            raise ValueError(self.allowed)
        return host

    def format(self, value: str) -> str:
        """Write it as it is."""
        return value


class BaseUrl(Kind[str]):
    """An http(s) URL that paths are appended to."""

    allowed = "http(s)://host[:port][/path], without user, password, query or fragment"

    def parse(self, text: str) -> str:
        """Check the URL and drop a slash at its end."""
        found = _URL.fullmatch(text)
        if "@" in text:  # an environment, a process list, a log: a URL is seen by many
            raise ValueError(f"{self.allowed}; a credential is a file's: upstream.token_file")
        if not found or not _host(found["host"]) or not 1 <= int(found["port"] or 1) <= _HIGHEST_PORT:
            raise ValueError(self.allowed)
        return text.rstrip("/")

    def format(self, value: str) -> str:
        """Write it as it is."""
        return value


def _host(text: str) -> str | None:
    """Return the host in its usual spelling, or None where it is neither a name nor an IP address."""
    if text.startswith("["):
        ip = _ip(text[1:-1])
        return str(ip) if isinstance(ip, ipaddress.IPv6Address) else None
    if _ip(text) is not None:
        return text
    return text.lower() if len(text) <= LONGEST_NAME and _NAME.fullmatch(text) else None


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
