"""YAML file, environment and flags → Settings, or every mistake in all of them at once.

A source becomes a stream of `Given` and `Problem`; what is given is text, whatever YAML would have made of it.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from sidecar.core.units import Either, Kind, Names, listed
from sidecar.settings import ANY, KeyPath, Settings, contradictions, effective, keys

S = TypeVar("S")

DEFAULT_PATH = Path("config/sidecar.yaml")
PREFIX = "SIDECAR_"
PATH_VARIABLE = "SIDECAR_CONFIG"
LARGEST_FILE = 1024 * 1024  # bytes; a thousand nodes' policies take 100 KiB
LONGEST_SHOWN = 60  # characters of a value or a key in a message

KEYS = {key.path: key for key in keys()}
SECTIONS = {path[:depth]: dict[str, None]() for path in KEYS for depth in range(len(path))}
for _path in KEYS:
    for _depth, _name in enumerate(_path):
        SECTIONS[_path[:_depth]][_name] = None

# Kubernetes puts these into every pod beside a Service called `sidecar` or `sidecar-…`.
_SERVICE_LINK = re.compile(r"SIDECAR(_[A-Z0-9_]+)?_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_[0-9]+_\w+)?)")
_NULLS = frozenset({"null", "Null", "NULL", "~", ""})
_YAML_TEXT = "tag:yaml.org,2002:str"
_BARE_IPV6 = re.compile(r"(^|[\s,{:])\[[0-9A-Fa-f:.]*\]:[0-9]")


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: the key, its value (shortened, without passwords), what is allowed, and where it stands."""

    key: str
    value: str
    allowed: str
    source: str
    mistake: str = "is not allowed"

    def __str__(self) -> str:
        what = f"{self.value} {self.mistake}" if self.value else self.mistake
        return f"{self.key}: {what} ({self.source}); allowed: {self.allowed}"


class ConfigError(Exception):
    """The settings cannot be used."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class Given(NamedTuple):
    """A key's text in one source."""

    path: KeyPath
    text: str
    source: str


class Named(NamedTuple):
    """A section of free names, or a name in it, that a file mentions: it is there even with no key of its own."""

    path: KeyPath
    source: str


def default_path(environ: Mapping[str, str]) -> Path | None:
    """Return the file to read when no flag names one: SIDECAR_CONFIG, or config/sidecar.yaml where it exists."""
    named = environ.get(PATH_VARIABLE)
    if named:
        return Path(named)
    return DEFAULT_PATH if DEFAULT_PATH.exists() else None


def load(
    path: Path | None,
    *,
    environ: Mapping[str, str],
    flags: Mapping[str, str],
    may_be_empty: bool = True,
    may_be_pipe: bool = True,
) -> Settings:
    """Return the settings: flags over environment over file over defaults; ConfigError lists every problem.

    `may_be_empty`: whether a file of nothing at all means the defaults; else it was cut. `may_be_pipe`: whether a
    named pipe is waited for, until somebody has written to it.
    """
    if path is None:
        read: Iterable[Given | Named | Problem] = ()
    elif not may_be_pipe and path.is_fifo():
        read = [_unusable(str(path), "is a named pipe, and was none")]
    else:
        read = _from_file(path, may_be_empty=may_be_empty)
    found = [*read, *_from_environment(environ), *_from_flags(flags)]
    problems = [each for each in found if isinstance(each, Problem)]
    values: dict[KeyPath, Any] = {}
    sources: dict[KeyPath, str] = {}
    unsound: set[KeyPath] = set()
    for each in found:
        if isinstance(each, Given):
            try:
                values[each.path] = KEYS[_generic(each.path)].kind.parse(each.text)
                sources[each.path] = each.source
            except ValueError as error:
                problems.append(Problem(_dotted(each.path), shown(each.text), str(error), each.source))
                unsound.add(each.path)
    named = {each.path: each.source for each in found if isinstance(each, Named)}
    named |= {path[:depth]: source for path, source in sources.items() for depth in _free_names(path)}
    settings = _lay_over(Settings(), (), values, dict.fromkeys([*named, *values]))
    problems += _bad_names(named)
    problems += _contradictions(settings, sources, unsound)
    if problems:
        raise ConfigError(tuple(problems))
    return settings


def shown(text: str) -> str:
    """Quote a value for a message: short, on one line, without what may be a password or a token."""
    text = re.sub(r"(?s)^(.*?//)?.*@", r"\1***@", text)
    if "://" in text:
        text = re.sub(r"(?s)([?#]).*", r"\1***", text)
    return repr(text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…")


def _free_names(path: KeyPath) -> list[int]:
    """Return how much of a key's path ends with a free name."""
    return [index + 1 for index, part in enumerate(_generic(path)) if part == ANY]


def _bad_names(named: Mapping[KeyPath, str]) -> Iterator[Problem]:
    """Hold free names to what their section takes for one."""
    for path, source in named.items():
        section = next((each for each in fields(Settings) if path[:-1] == (each.name,)), None)
        if section is not None and "names" in section.metadata:
            try:
                section.metadata["names"](path[-1])
            except ValueError as error:
                yield Problem(_dotted(path[:-1]), shown(path[-1]), str(error), source)


def _lay_over(base: S, at: KeyPath, values: Mapping[KeyPath, Any], named: Collection[KeyPath]) -> S:
    """Return `base`, a settings dataclass, with the given values in place of its own.

    `named`: all paths that are mentioned; a section of free names has its default's names where none is.
    """
    changes: dict[str, Any] = {}
    for each in fields(base):  # type: ignore[arg-type] # S is bound to no protocol that mypy takes for a dataclass
        here = (*at, each.name)
        if "kind" in each.metadata:
            if here in values:
                changes[each.name] = values[here]
        elif "each" in each.metadata:
            below = [path for path in named if path[: len(here)] == here]
            names = dict.fromkeys(path[len(here)] for path in below if len(path) > len(here))
            first, *rest = each.metadata["over"].split(".")
            over = reduce(getattr, rest, changes[first])  # a section, declared before
            changes[each.name] = {
                name: _lay_over(over, (*here, name), values, named)
                for name in (names if below else getattr(base, each.name))
            }
        else:
            changes[each.name] = _lay_over(getattr(base, each.name), here, values, named)
    return replace(base, **changes)  # type: ignore[type-var] # as above


def _contradictions(settings: Settings, sources: Mapping[KeyPath, str], unsound: set[KeyPath]) -> list[Problem]:
    written = effective(settings)
    problems: dict[tuple[KeyPath, KeyPath], Problem] = {}
    for path, other, allowed in contradictions(settings):
        first, second = (_origin(each, sources) for each in (path, other))
        if unsound.isdisjoint((first, second)):
            against = f"{_dotted(second)}, which is {_at(written, other)} ({sources.get(second, 'default')})"
            problems[first, second] = Problem(
                _dotted(first), shown(_at(written, path)), f"{allowed} {against}", sources.get(first, "default")
            )
    return list(problems.values())


def _origin(path: KeyPath, sources: Mapping[KeyPath, str]) -> KeyPath:
    """Return the key that a value comes from: a node's own, or the default policy's."""
    inherits = path[:2] == ("policy", "nodes") or path[:1] == ("routes",)
    return path if path in sources or not inherits else ("policy", "default", path[-1])


def _at(written: Any, path: KeyPath) -> str:
    for name in path:
        written = written[name]
    return str(written)


def _from_flags(flags: Mapping[str, str]) -> Iterator[Given | Problem]:
    for name, text in flags.items():
        source = f"flag --{re.sub('[._]', '-', name)}"
        path = _resolve(name, ".")
        yield Given(path, text, source) if path else _unknown(_lower(name.split(".")), source)


def _from_environment(environ: Mapping[str, str]) -> Iterator[Given | Problem]:
    seen: dict[KeyPath, str] = {}
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or name == PATH_VARIABLE:
            continue
        source = f"environment {name}"
        path = _resolve(name.removeprefix(PREFIX), "__")
        if path is None:
            if not _SERVICE_LINK.fullmatch(name):
                parts = _lower(name.removeprefix(PREFIX).split("__"))
                yield _unknown(parts, source, spell=variable)
        elif path in seen:
            yield Problem(_dotted(path), "", f"one variable for a key; see {seen[path]}", source, "is set twice")
        else:
            seen[path] = name
            yield Given(path, text, source)


def _from_file(path: Path, *, may_be_empty: bool) -> Iterator[Given | Named | Problem]:
    name = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if mistake := _mistaken_size(data, may_be_empty=may_be_empty):
            yield _unusable(name, mistake)
            return
        text = data.decode("utf-8-sig")
        root = yaml.compose(text, Loader=yaml.BaseLoader)  # leaves every scalar as its text
    except OSError as error:
        yield _unusable(name, f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        yield _unusable(name, "is not UTF-8 text", line=data.count(b"\n", 0, error.start))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        yield _unusable(name, "holds a control character", line)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        bare = _BARE_IPV6.search(text.splitlines()[line]) if line < len(text.splitlines()) else None
        hint = '; write an IPv6 address in quotes: "[::1]:8002"' if bare else ""
        what = " ".join(filter(None, (error.context, error.problem)))
        yield _unusable(name, f"is not YAML, {what}", line, hint)
    except (RecursionError, ValueError, OverflowError) as error:  # PyYAML lets them through
        yield _unusable(name, "is nested too deeply" if isinstance(error, RecursionError) else "is not YAML")
    else:
        if root is not None:
            yield from _from_node(root, (), name)


def _mistaken_size(data: bytes, *, may_be_empty: bool) -> str | None:
    if len(data) > LARGEST_FILE:
        return f"is larger than {LARGEST_FILE} bytes"
    return None if may_be_empty or data.strip() else "is empty, and was not ({} stands for the defaults)"


def _unusable(name: str, mistake: str, line: int | None = None, hint: str = "") -> Problem:
    source = "file" if line is None else f"{name} line {line + 1}"
    allowed = f"a YAML file of the keys in docs/settings.md, 1 MiB at most{hint}"
    return Problem("config", shown(name), allowed, source, mistake)


def _from_node(node: yaml.Node, path: KeyPath, name: str) -> Iterator[Given | Named | Problem]:
    source = _line(node, name)
    is_section = ANY in SECTIONS.get(path, ()) and isinstance(node, yaml.MappingNode)
    if is_section or (path and _generic(path)[-1] == ANY):
        yield Named(path, source)
    scalar = node.value if isinstance(node, yaml.ScalarNode) and node.tag == _YAML_TEXT else None
    key = KEYS.get(_generic(path))
    if key is not None and isinstance(key.kind, Either) and key.kind.word in _NULLS and _is_null(node):
        scalar = key.kind.word
    if key is not None and _takes_names(key.kind):
        scalar = None if _is_null(node) else scalar if scalar is not None else _list_text(node)
    if key is not None and scalar is not None:
        yield Given(path, scalar, source)
    elif key is not None:
        yield Problem(_dotted(path), _shape(node), key.kind.allowed, source)
    elif isinstance(node, yaml.MappingNode):
        yield from _from_mapping(node, path, name)
    elif scalar not in {"", "~", "null"}:  # a section with nothing in it, or with all of it commented out
        value = _shape(node) if scalar is None else shown(scalar)
        yield Problem(_dotted(path) or "config", value, f"a mapping of {_children(path)}", source)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULLS


def _takes_names(kind: Kind[Any]) -> bool:
    return isinstance(kind.kind if isinstance(kind, Either) else kind, Names)


def _list_text(node: yaml.Node) -> str | None:
    """Return a list of names as one text, None for what is no such list."""
    if not isinstance(node, yaml.SequenceNode):
        return None
    if not all(isinstance(name, yaml.ScalarNode) and name.tag == _YAML_TEXT for name in node.value):
        return None
    return listed(name.value for name in node.value)


def _from_mapping(node: yaml.MappingNode, path: KeyPath, name: str) -> Iterator[Given | Named | Problem]:
    seen: dict[str, str] = {}
    for key, value in node.value:
        source = _line(key, name)
        if not isinstance(key, yaml.ScalarNode) or (key.style is None and key.value in {"", "~"}):
            yield Problem(_dotted(path) or "config", _shape(key), _children(path), source, "is not a key")
        elif key.value in seen:
            again = f"each key once; see {seen[key.value]}"
            yield Problem(_dotted((*path, key.value)), "", again, source, "is set twice")
        else:
            seen[key.value] = source
            below = (*path, key.value)
            known = _generic(below) in KEYS or _generic(below) in SECTIONS
            yield from _from_node(value, below, name) if known else [_unknown(below, source, sections=True)]


def _line(node: yaml.Node, name: str) -> str:
    return f"{name} line {node.start_mark.line + 1}"


def _shape(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if _is_null(node):
        return "nothing"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "nothing" if node.tag == _YAML_TEXT else f"a value with the tag {shown(node.tag)}"


def _generic(path: KeyPath) -> KeyPath:
    """Return the path as it stands in KEYS and SECTIONS: with "*" for a name that is free."""
    for depth in range(len(path)):
        if ANY in SECTIONS.get(path[:depth], ()):
            return (*path[:depth], ANY, *path[depth + 1 :])
    return path


def _lower(parts: Sequence[str]) -> KeyPath:
    """Return the parts in lower case, but for a free name."""
    lower = tuple(part.lower() for part in parts)
    pairs = zip(lower, parts, _generic(lower), strict=True)
    return tuple(part if generic == ANY else low for low, part, generic in pairs)


def _resolve(name: str, separator: str) -> KeyPath | None:
    """Return the key that a variable or flag names; a free name keeps its case and may hold the separator."""
    parts = name.split(separator)
    lower = tuple(part.lower() for part in parts)
    for path in KEYS:
        if ANY in path:
            start, end = path.index(ANY), len(parts) - len(path) + path.index(ANY) + 1
            free = separator.join(parts[start:end])
            if free and (*lower[:start], ANY, *lower[end:]) == path:
                return (*path[:start], free, *path[start + 1 :])
        elif lower == path:
            return path
    return None


def _unknown(
    parts: KeyPath, source: str, *, spell: Callable[[KeyPath], str] = ".".join, sections: bool = False
) -> Problem:
    """Report an unknown key, without its value: it may be a password under a misspelt name."""
    near = _nearest(parts, sections=sections)
    hint = f"; did you mean {spell(near)}?" if near else ""
    section = next(parts[:depth] for depth in range(len(parts), -1, -1) if _generic(parts[:depth]) in SECTIONS)
    return Problem(_dotted(parts), "", f"{_children(section)}{hint}", source, "is no known key")


def _nearest(parts: KeyPath, *, sections: bool) -> KeyPath | None:
    """Return the known key that is spelt most like this one, or that has its name in another section."""
    generic = _generic(parts)
    depth = generic.index(ANY) if ANY in generic else None
    known = {
        ".".join(path): path
        for path in [*KEYS, *(SECTIONS if sections else ())]
        if ANY not in path or (depth is not None and path[: depth + 1] == generic[: depth + 1])
    }
    close = difflib.get_close_matches(".".join(generic), known, n=1, cutoff=0.7)
    same = [path for path in known.values() if path and path[-1] == parts[-1]]
    nearest = known[close[0]] if close else next(iter(same), None)
    if nearest is None or depth is None or ANY not in nearest:
        return nearest
    return (*nearest[:depth], parts[depth], *nearest[depth + 1 :])


def variable(path: KeyPath) -> str:
    """Return the environment variable of a key."""
    upper = (part if generic == ANY else part.upper() for part, generic in zip(path, _generic(path), strict=True))
    return PREFIX + "__".join(upper)


def _children(path: KeyPath) -> str:
    names = SECTIONS[_generic(path)]
    return {"nodes": "node names", "routes": "paths"}[path[-1]] if ANY in names else ", ".join(names)


def _dotted(path: KeyPath) -> str:
    text = ".".join(path)
    return text if text.isprintable() and len(text) <= LONGEST_SHOWN else shown(text)
