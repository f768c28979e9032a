"""What the reference config service was told to be, and what it knows.

For the demo and the tests, never for production.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.meta
import yaml
from aiohttp import web

from sidecar.demo.reference.database import Database, Vocabulary
from sidecar.demo.reference.faults import TEMPLATES, Fault, FaultSwitch, Mode

NOTE = "a fixture for demo and tests, never for production"
PACKAGED = Path(__file__).parent.parent  # the demo's own data, also when installed as a wheel
KEY_SUFFIX = "_system_prompt"  # contract §2: how prompts.yaml names the template of a node
SCRIPT_CACHE = 256  # compiled templates: many times what a demo has, and a bound


class Generation(StrEnum):
    """The newest API that exists; each generation also offers those before it (contract §2)."""

    PASSTHROUGH = "passthrough"
    PLACEHOLDERS = "placeholders"
    PROMPT_DATA = "prompt-data"


class RefusalError(Exception):
    """A request is refused: `status`, and the `detail` of its body, text or a list of problems."""

    def __init__(self, status: int, detail: object) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class DatabaseDownError(Exception):
    """The users cannot be read."""


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """How prompts are rendered, as `render` of prompt-data says it."""

    autoescape: bool = True
    trim_blocks: bool = True
    lstrip_blocks: bool = True
    undefined: Literal["strict", "empty"] = "strict"


TODAY = RenderOptions(undefined="empty")  # what runs in production (contract §2, `placeholders`)


def usual_render(generation: Generation) -> RenderOptions:
    """Return how the service of this generation renders."""
    return RenderOptions() if generation is Generation.PROMPT_DATA else TODAY


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceOptions:
    """What to serve. Templates by `N_system_prompt` or `N`; `database` is a file, or in memory."""

    templates: Mapping[str, str] | Path = PACKAGED / "prompts.yaml"
    vocabulary: Path = PACKAGED / "settings.yaml"
    database: str = ":memory:"
    generation: Generation = Generation.PROMPT_DATA
    batch: bool = True
    render: RenderOptions = field(default_factory=RenderOptions)
    cache_ttl: float = 300  # seconds
    etag: bool = True
    announce_render: bool = True
    announce_version: bool = True
    fault: Fault = field(default_factory=Fault)  # to begin with
    keepalive_seconds: float = 5.0  # as today's service, which closes idle connections after 5 s


@dataclass(frozen=True, slots=True)
class Template:
    """A template and its version."""

    text: str
    version: str = "1"


@lru_cache(maxsize=SCRIPT_CACHE)
def _compiled(text: str, render: RenderOptions) -> jinja2.Template:
    return jinja2.Environment(
        autoescape=render.autoescape,  # noqa: S701 - off is one of the options that a config service may state
        trim_blocks=render.trim_blocks,
        lstrip_blocks=render.lstrip_blocks,
        undefined=jinja2.StrictUndefined if render.undefined == "strict" else jinja2.Undefined,
    ).from_string(text)


@lru_cache(maxsize=SCRIPT_CACHE)
def names_in(text: str) -> frozenset[str]:
    """Return the names that a template needs; nothing where it does not parse."""
    try:
        return frozenset(jinja2.meta.find_undeclared_variables(jinja2.Environment(autoescape=True).parse(text)))
    except jinja2.TemplateSyntaxError:
        return frozenset()


def templates_in(path: Path) -> Mapping[str, str]:
    """Read a file of templates; a ValueError says what is wrong with it."""
    try:
        loaded = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a YAML file that can be read.") from error
    if not isinstance(loaded, dict) or not all(isinstance(each, str) for pair in loaded.items() for each in pair):
        raise ValueError(f"{path} is not a mapping of names to texts.")
    return loaded


class State:
    """The running service; tests read `calls` and set `fault`, `generation`, `cache_ttl` and the like."""

    def __init__(self, options: ReferenceOptions) -> None:
        self.generation = options.generation
        self.batch = options.batch
        self.render = options.render
        self.cache_ttl = options.cache_ttl
        self.etag = options.etag
        self.announce_render = options.announce_render
        self.announce_version = options.announce_version
        loaded = templates_in(options.templates) if isinstance(options.templates, Path) else options.templates
        self.templates = {key.removesuffix(KEY_SUFFIX): Template(text) for key, text in loaded.items()}
        self.vocabulary = Vocabulary.load(options.vocabulary)
        self.database = Database(options.database, self.vocabulary.defaults())
        self.faults = FaultSwitch()
        self.faults.fault = options.fault
        self.calls: Counter[str] = Counter()  # by endpoint, on arrival
        self.answers: Counter[str] = Counter()  # by endpoint and status, as in "prompt-data 304"
        self.in_flight = 0
        self.peak_in_flight = 0

    @property
    def fault(self) -> Fault:
        """The current fault."""
        return self.faults.fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self.faults.fault = fault

    def set_template(self, node: str, text: str, version: str | None = None) -> None:
        """Change a template; its version counts up unless one is given."""
        old = self.templates.get(node)
        self.templates[node] = Template(
            text, version or (str(int(old.version) + 1) if old and old.version.isdigit() else "1")
        )

    def settings(self, user_id: int, mode: Mode = Mode.NONE) -> dict[str, str]:
        """Return a user's settings; raises `DatabaseDownError`."""
        if mode is Mode.DATABASE_DOWN:
            raise DatabaseDownError("connection refused")
        try:
            return self.database.settings(user_id)
        except OverflowError as error:
            raise DatabaseDownError("value out of int64 range") from error

    def template(self, node: str, refusal: int, mode: Mode = Mode.NONE) -> Template:
        """Find a node's template; an unknown node is refused with that status."""
        try:
            good = self.templates[node]
        except KeyError:
            raise RefusalError(refusal, f"Template not found for node: {node}") from None
        return Template(TEMPLATES[mode], f"{good.version}-{mode}") if mode in TEMPLATES else good

    def document(self, user_id: int, node: str, mode: Mode = Mode.NONE) -> dict[str, Any]:
        """Make the prompt-data of a node and a user."""
        template = self.template(node, 404, mode)
        settings = self.settings(user_id, mode)
        wanted = names_in(self.templates[node].text) if self.render.undefined == "strict" else frozenset()
        document: dict[str, Any] = {
            "template": template.text,
            "user_placeholders": settings,
            "required_dynamic_placeholders": sorted(wanted - settings.keys()),
            "cache_ttl": self.cache_ttl,
        }
        if self.announce_version:
            document["template_version"] = template.version
        if self.announce_render:
            document["render"] = asdict(self.render)
        return document

    def prompt(self, user_id: int, node: str, context: dict[str, Any], mode: Mode = Mode.NONE) -> dict[str, Any]:
        """Render a prompt as the first generation does: settings, the context over them, `""` for what is missing."""
        template = self.template(node, 400, mode)
        if mode in {Mode.BAD_TEMPLATE, Mode.HUGE_TEMPLATE}:
            raise RefusalError(500, f"Template of node {node} cannot be rendered")
        wanted = names_in(template.text) - context.keys()
        try:
            settings = self.settings(user_id, mode) if wanted else {}
        except DatabaseDownError:
            settings = {}  # what today's service does: a prompt without settings, as if nothing had happened
        used = {name: text for name, text in settings.items() if name in wanted} | context
        missing = sorted(wanted - used.keys())
        if missing and self.render.undefined == "strict":
            raise RefusalError(422, f"Placeholders without a value in node {node}: {', '.join(missing)}")
        used |= dict.fromkeys(missing, "")
        try:
            return {"prompt": _compiled(template.text, self.render).render(used), "used_placeholders": used}
        except jinja2.TemplateError as error:
            raise RefusalError(500, f"Template of node {node} cannot be rendered: {error}") from error

    def as_json(self) -> dict[str, Any]:
        """Show everything that `/_reference` can change or count."""
        return {
            "note": NOTE,
            "generation": self.generation,
            "batch": self.batch,
            "cache_ttl": self.cache_ttl,
            "nodes": {node: template.version for node, template in self.templates.items()},
            "fault": {name: getattr(self.fault, name) for name in Fault.__struct_fields__} | {"left": self.faults.left},
            "calls": self.calls,
            "answers": self.answers,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
        }


STATE = web.AppKey("STATE", State)


def entity_tag(document: Mapping[str, Any]) -> str:
    """Return a strong ETag over the whole document."""
    return f'"{hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]}"'
