"""Options of `prompt-sidecar upstream` → the reference service."""

from pathlib import Path

from sidecar.core.units import Address
from sidecar.demo.reference.faults import Fault, Mode
from sidecar.demo.reference.run import serve
from sidecar.demo.reference.state import ReferenceOptions


async def serve_from_options(
    *, listen: Address, templates: Path | None, database: str, cache_ttl: float, fault: str
) -> None:
    """Serve until told to stop."""
    given = {"templates": templates} if templates else {}
    options = ReferenceOptions(database=database, cache_ttl=cache_ttl, fault=Fault(mode=Mode(fault)), **given)
    await serve(options, listen.host, listen.port)
