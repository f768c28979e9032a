"""Write the documents that follow from the code: `python -m sidecar.docgen`; `--check` only compares them."""

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NamedTuple

import click

from sidecar.config_file import variable
from sidecar.doctables import filled
from sidecar.reload import is_live
from sidecar.settings import KeyPath, Settings
from sidecar.statusdoc import status_reference, status_schema

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 110  # columns of a generated YAML file
COMMAND = "python -m sidecar.docgen"


def config_file() -> str:
    """Return config/sidecar.yaml: every key with its default, and what it means."""
    head = _comment(
        "The settings of prompt-sidecar: every key, with its default as its value. Each can be overridden by the "
        "environment variable that stands beside it, before what is allowed, and the main ones by flags. "
        f"The same as tables: docs/settings.md. Written by `{COMMAND}`.",
        "",
    )
    return "\n".join([*head, *_yaml(Settings(), ())]) + "\n"


def settings_reference() -> str:
    """Return docs/settings.md: a table of the keys of each section."""
    head = """\
        # Settings

        A setting comes from a flag, else from the environment, else from the file, else it has its default.

        - The file is YAML: `--config FILE`, else the one that `SIDECAR_CONFIG` names, else `config/sidecar.yaml` where
          it exists. [config/sidecar.yaml](../config/sidecar.yaml) holds every key with its default.
        - The environment variable of a key is `SIDECAR_` and the key's parts, joined by two underscores. Case counts in
          the name of a node only. A variable of that prefix that is no key is a mistake.
        - A duration is a number with `ms`, `s`, `m`, `h` or `d`; a size has `B`, `KiB`, `MiB`, `GiB` (powers of two),
          `KB`, `MB` or `GB` (powers of ten). A bare number means nothing, except 0 and where it is said to be allowed.
        - All mistakes, of every source, are reported at once, one line each; the command then ends with exit code 2.
          `prompt-sidecar check-config` does only that, and `--show` prints the settings in force.
        - A change of the file is read within two seconds, or at once on SIGHUP: all of it, or nothing where there is a
          mistake. A key marked `reload` is then in force for the requests that begin after it; one marked `restart`
          waits for a restart, and the log and `/status` name it. `prompt-sidecar check-config --running OLD --config
          NEW` names such changes beforehand. What `policy.nodes` and `routes` hold needs no restart.
    """
    foot = f"---\n\nWritten by `{COMMAND}` from `sidecar/settings.py`."
    return "\n\n".join([textwrap.dedent(head).strip(), *_markdown(Settings(), ()), foot]) + "\n"


class Target(NamedTuple):
    """A generated document."""

    path: str  # from the root of the repository
    text: Callable[[], str]


def _filled(path: str) -> Target:
    """Return a document with its tables as the code has them."""
    return Target(path, lambda: filled((ROOT / path).read_text(encoding="utf-8")))


TARGETS = [
    Target("config/sidecar.yaml", config_file),
    Target("docs/settings.md", settings_reference),
    _filled("docs/architecture.md"),
    _filled("docs/events.md"),
    Target("docs/status.md", status_reference),
    Target("docs/status.schema.json", status_schema),
]


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a document is not as it would be written.")
def main(*, check: bool) -> None:
    """Write the documents that follow from the code."""
    stale = [target for target in TARGETS if not _is_current(target)]
    for target in stale:
        if check:
            click.echo(f"{target.path} is not what the code says; run `{COMMAND}`.", err=True)
        else:
            path = ROOT / target.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(target.text(), encoding="utf-8")
            click.echo(f"{target.path} written.")
    sys.exit(1 if check and stale else 0)


def _is_current(target: Target) -> bool:
    path = ROOT / target.path
    return path.exists() and path.read_text(encoding="utf-8") == target.text()


def _yaml(of: Any, at: KeyPath) -> Iterator[str]:
    margin = "  " * len(at)
    for each in fields(of):
        here, about = (*at, each.name), each.metadata
        yield ""
        if "kind" in about:
            kind, value = about["kind"], about["kind"].format(getattr(of, each.name))
            yield from _comment(_sentence(about["reason"]), margin)
            yield from _comment(f"{variable(here)}: {kind.allowed}; default {value}", margin)
            yield f"{margin}{each.name}: {_scalar(value)}"
        elif "each" in about:
            yield from _comment(f"{_sentence(about['reason'])} For example:", margin)
            yield f"{margin}# {each.name}:"
            yield f"{margin}#   {about['example']}"
            names = getattr(of, each.name)
            yield f"{margin}{each.name}:{'' if names else ' {}'}"
            yield from (f"{margin}  {_scalar(name)}: {{}}" for name in names)
        else:
            below = getattr(of, each.name)
            yield from _comment(_about(below), margin)
            yield f"{margin}{each.name}:"
            yield from list(_yaml(below, here))[1:]


def _comment(text: str, margin: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"{margin}# ", subsequent_indent=f"{margin}# ", break_on_hyphens=False
    )


def _scalar(text: str) -> str:
    """Write a value as YAML, in quotes only where YAML would take it for something else."""
    plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:/%+-]*|\[.*\]", text)
    return text if plain else json.dumps(text)


def _markdown(of: Any, at: KeyPath) -> Iterator[str]:
    """Yield the paragraphs of a section: its own keys, then each section below it."""
    here = ".".join(at)
    yield f"## `{here}`" if at else "## Top level"
    yield _about(of)
    leaves = [each for each in fields(of) if "kind" in each.metadata]
    if leaves:
        yield _table(of, at, leaves)
    for each in fields(of):
        if "each" in each.metadata:
            path = ".".join((*at, each.name))
            over = ".".join((*at, each.metadata["over"]))
            yield f"## `{path}`"
            yield f"{_sentence(each.metadata['reason'])} The keys are those of `{over}`."
            nested = "".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate((*at, each.name)))
            yield f"```yaml\n{nested}{'  ' * (len(at) + 1)}{each.metadata['example']}\n```"
            if names := getattr(of, each.name):
                yield f"Where the file has no such section: {', '.join(f'`{name}`' for name in names)}."
            else:
                example = variable((*at, each.name, "NODE", fields(each.metadata["each"])[0].name))
                yield f"In the environment, with the node's name for `NODE`: `{example}`."
        elif "kind" not in each.metadata:
            yield from _markdown(getattr(of, each.name), (*at, each.name))


def _table(of: Any, at: KeyPath, leaves: Sequence[Field[Any]]) -> str:
    rows = [("key", "allowed", "default", "environment", "a change", "why"), ("---",) * 6]
    for each in leaves:
        kind, here = each.metadata["kind"], (*at, each.name)
        default = f"`{kind.format(getattr(of, each.name))}`"
        why = _sentence(each.metadata["reason"])
        change = "reload" if is_live(here) else "restart"
        rows.append((f"`{'.'.join(here)}`", kind.allowed, default, f"`{variable(here)}`", change, why))
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def _about(of: Any) -> str:
    return str(type(of).__doc__).split("\n", maxsplit=1)[0]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


if __name__ == "__main__":
    main()
