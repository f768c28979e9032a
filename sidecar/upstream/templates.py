"""Compiled templates by content: the same source is compiled once and shared by all users."""

from hashlib import sha256
from weakref import WeakValueDictionary

from sidecar.core.prompt import CompiledTemplate, Profile, RenderLimits, RenderOptions, compile_template
from sidecar.service.ports import Clock


class Templates:
    """Compile on arrival; a compiled template lives as long as any entry uses it."""

    def __init__(self, *, profile: Profile, limits: RenderLimits, clock: Clock) -> None:
        self._profile = profile
        self._limits = limits
        self._clock = clock
        self._compiled: WeakValueDictionary[tuple[bytes, RenderOptions], CompiledTemplate] = WeakValueDictionary()

    def get(self, source: str, options: RenderOptions) -> CompiledTemplate:
        """Return the compiled template; raises `TemplateRejected`."""
        key = (sha256(source.encode("utf-8", "surrogatepass")).digest(), options)
        template = self._compiled.get(key)
        if template is None:
            template = compile_template(source, options, profile=self._profile, limits=self._limits, clock=self._clock)
            self._compiled[key] = template
        return template
