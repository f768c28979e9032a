"""Options of `prompt-sidecar upstream` → the reference service."""

import sqlite3
from pathlib import Path

import click
import yaml

from sidecar.core.units import Address
from sidecar.demo.reference.database import Database
from sidecar.demo.reference.faults import Fault, Mode
from sidecar.demo.reference.run import serve
from sidecar.demo.reference.state import TODAY, Generation, ReferenceOptions, RenderOptions


async def serve_from_options(
    *, listen: Address, templates: Path | None, database: str, generation: str, cache_ttl: float, fault: str
) -> None:
    """Serve until told to stop; raises `click.BadParameter` for what cannot be served."""
    if templates is not None:
        _check_templates(templates)
    _check_database(database)
    newest = Generation(generation)
    options = ReferenceOptions(
        generation=newest,
        render=RenderOptions() if newest is Generation.PROMPT_DATA else TODAY,
        templates=templates or ReferenceOptions().templates,
        database=database,
        cache_ttl=cache_ttl,
        fault=Fault(mode=Mode(fault)),
    )
    await serve(options, listen.host, listen.port)


def _check_templates(path: Path) -> None:
    try:
        loaded = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise click.BadParameter(f"{path} is not a YAML file that can be read.", param_hint="--templates") from error
    if not isinstance(loaded, dict) or not all(isinstance(each, str) for pair in loaded.items() for each in pair):
        raise click.BadParameter(f"{path} is not a mapping of names to texts.", param_hint="--templates")


def _check_database(database: str) -> None:
    try:
        Database(database, {}).close()
    except sqlite3.Error as error:
        raise click.BadParameter(f"{database} cannot be opened: {error}.", param_hint="--database") from error
