"""The template file of today's service: read whole, swapped whole, or left as it was (contract §2, `placeholders`)."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from sidecar.core.errors import FailureKind, UpstreamFailure
from sidecar.core.events import TemplatesLoaded
from sidecar.core.prompt import CompiledTemplate, RenderOptions, TemplateRejected, Undefined
from sidecar.service.ports import Observer
from sidecar.upstream.templates import Templates
from sidecar.watch import Identity, identity

SUFFIX = "_system_prompt"
"""What today's service appends to a node's name to find its template."""
TODAY = RenderOptions(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=Undefined.EMPTY)
"""How today's service renders (recorded)."""
LARGEST_FILE = 16 * 1024 * 1024
"""Bytes; the real one has 23 KB."""
_TEXT = "tag:yaml.org,2002:str"


class TemplateFileError(Exception):
    """The file cannot be used; says the key and the line, never a template's text."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    templates: Mapping[str, CompiledTemplate]
    refused: Mapping[str, "_Refused"]


@dataclass(frozen=True, slots=True)
class _Refused:
    source: str
    detail: str
    """Names key and line."""


class TemplateFile:
    """The templates by node; a file that cannot be used leaves the old ones in force."""

    def __init__(self, path: Path, templates: Templates, options: RenderOptions, observer: Observer) -> None:
        self._path = path
        self._templates = templates
        self._options = options
        self._observe = observer
        self._loaded = _Loaded({}, {})
        self.read_as: Identity | None = None
        """What the file was when it was read for the first time."""
        self.error: str | None = None
        """What is wrong with the file as it is now; None: nothing."""

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._path

    @property
    def nodes(self) -> list[str]:
        """The nodes whose templates are rendered here."""
        return sorted(self._loaded.templates)

    @property
    def refused(self) -> Mapping[str, str]:
        """The nodes whose templates are not admitted, with key, line and reason."""
        return {node: each.detail for node, each in self._loaded.refused.items()}

    def find(self, node_name: str) -> CompiledTemplate | None:
        """Return a node's template, None where there is none; raises `UpstreamFailure` (not_admitted)."""
        template = self._loaded.templates.get(node_name)
        if template is None and (refused := self._loaded.refused.get(node_name)):
            raise UpstreamFailure(FailureKind.NOT_ADMITTED, refused.detail)
        return template

    def open(self) -> None:
        """Read the file for the first time; raises `TemplateFileError`.

        A template that is not admitted is left to the service: there is no older one that could stay.
        """
        self.read_as = identity(self._path)
        self._loaded = self._read()
        self._observe(TemplatesLoaded(len(self._loaded.templates), None))

    async def reload(self) -> None:
        """Read the file again; where it cannot be used, or refuses a template anew, the old one stays in force."""
        try:
            loaded = await asyncio.to_thread(self._read)
            for node, refused in loaded.refused.items():
                if refused.source != self._source_of(node):
                    raise TemplateFileError(refused.detail)
        except TemplateFileError as error:
            self.error = str(error)
        else:
            self._loaded = loaded
            self.error = None
        self._observe(TemplatesLoaded(len(self._loaded.templates), self.error))

    def _source_of(self, node: str) -> str | None:
        refused = self._loaded.refused.get(node)
        return refused.source if refused else None

    def _read(self) -> _Loaded:
        templates: dict[str, CompiledTemplate] = {}
        refused: dict[str, _Refused] = {}
        for key, line, source in _entries(self._path):
            if not key.endswith(SUFFIX):
                continue
            node = key.removesuffix(SUFFIX)
            if not source.strip():
                refused[node] = _Refused(source, f"{self._path}, line {line}, key {key!r}: is empty")
                continue
            try:
                templates[node] = self._templates.get(source, self._options)
            except TemplateRejected as error:
                detail = f"{self._path}, line {line}, key {key!r}: {error}"
                if error.is_broken:
                    raise TemplateFileError(detail) from None
                refused[node] = _Refused(source, detail)
        if not templates and not refused:
            raise TemplateFileError(f"{self._path}: there is no template (a key that ends with {SUFFIX}) in it")
        return _Loaded(templates, refused)


def _entries(path: Path) -> Iterator[tuple[str, int, str]]:
    """Yield key, line and text of each entry; raises `TemplateFileError`."""
    root = _composed(path)
    if not isinstance(root, yaml.MappingNode):
        raise TemplateFileError(f"{path}: is not a mapping of keys to templates")
    seen: dict[str, int] = {}
    for key, value in root.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag != _TEXT:
            raise TemplateFileError(f"{path}, line {line}: a key is not a text")
        if key.value in seen:
            where = f"{path}, line {line}, key {key.value!r}"
            raise TemplateFileError(f"{where}: is there twice, see line {seen[key.value]}")
        seen[key.value] = line
        if not isinstance(value, yaml.ScalarNode) or value.tag != _TEXT:
            raise TemplateFileError(f"{path}, line {line}, key {key.value!r}: is not a text")
        yield key.value, line, value.value


def _composed(path: Path) -> yaml.Node | None:
    if path.is_fifo():  # it would be waited for until somebody writes to it
        raise TemplateFileError(f"{path}: is a named pipe, and no file")
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise TemplateFileError(f"{path}: is larger than {LARGEST_FILE} bytes")
        return yaml.compose(data.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise TemplateFileError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TemplateFileError(f"{path}, line {line}: is not UTF-8") from error
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise TemplateFileError(f"{path}{where}: is not YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = data.decode("utf-8-sig").count("\n", 0, error.position) + 1
        raise TemplateFileError(f"{path}, line {line}: is not YAML: it holds a control character") from error
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # PyYAML lets the last two through
        raise TemplateFileError(f"{path}: is not YAML") from error
