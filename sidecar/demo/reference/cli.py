"""Options of `prompt-sidecar upstream` → the reference service."""

import sqlite3
from pathlib import Path

import click

from sidecar.core.units import Address
from sidecar.demo.reference.database import Database
from sidecar.demo.reference.faults import Fault, Mode
from sidecar.demo.reference.run import serve
from sidecar.demo.reference.state import Generation, ReferenceOptions, templates_in, usual_render


async def serve_from_options(
    *, listen: Address, templates: Path | None, database: str, generation: str, cache_ttl: float, fault: str
) -> None:
    """Serve until told to stop; raises `click.BadParameter` for what cannot be served."""
    try:
        given = ReferenceOptions().templates if templates is None else templates_in(templates)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--templates") from error
    _check_database(database)
    newest = Generation(generation)
    options = ReferenceOptions(
        generation=newest,
        render=usual_render(newest),
        templates=given,
        database=database,
        cache_ttl=cache_ttl,
        fault=Fault(mode=Mode(fault)),
    )
    await serve(options, listen.host, listen.port)


def _check_database(database: str) -> None:
    try:
        Database(database, {}).close()
    except sqlite3.Error as error:
        raise click.BadParameter(f"{database} cannot be opened: {error}.", param_hint="--database") from error
