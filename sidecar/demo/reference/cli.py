"""Options of `prompt-sidecar upstream` → the reference service."""

from pathlib import Path

from sidecar.core.units import ListenAddress
from sidecar.demo.reference.faults import Fault, Mode
from sidecar.demo.reference.run import serve
from sidecar.demo.reference.state import ReferenceOptions


async def serve_from_options(
    *, listen: str, templates: Path | None, database: str, cache_ttl: float, fault: str
) -> None:
    """Serve until told to stop."""
    address = ListenAddress().parse(listen)
    given = {"templates": templates} if templates else {}
    options = ReferenceOptions(database=database, cache_ttl=cache_ttl, fault=Fault(mode=Mode(fault)), **given)
    await serve(options, address.host, address.port)
