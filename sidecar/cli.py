"""The command: run | check-config | status | warm | invalidate | breaker | probe | demo | drill | upstream."""

import asyncio
import gc
import itertools
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from sidecar.drain import Drain

from sidecar.probe import TIMEOUT as PROBE_TIMEOUT
from sidecar.probe import URL as PROBE_URL

EXIT_FAILED = 1
EXIT_USAGE = 2
GC_THRESHOLD = 50_000
"""Allocations between collections of the youngest generation: a request makes no cycles worth looking for sooner."""
SHORTEST_WATCH = 0.1
"""Seconds between two looks at a sidecar, at least."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

FAULTS = (
    "none", "500", "503", "429", "unauthorized", "hang", "reset", "slow", "drip", "half", "garbage", "empty",
    "wrong-shape", "empty-template", "bad-template", "huge-template", "database-down",
)  # fmt: skip
"""`sidecar.demo.reference.faults.Mode`, said again so that --help need not import it (a test compares them)."""
FAILURES = ("refused", *FAULTS[1:])
"""What `drill` can rehearse: nobody listens, or one of the faults."""

F = TypeVar("F", bound=Callable[..., Any])


def _say_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 — click's own way
    if value and not context.resilient_parsing:
        from sidecar.app import installed_version

        click.echo(installed_version())
        context.exit()


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Shell completion (or zsh_source, fish_source):
  eval "$(_PROMPT_SIDECAR_COMPLETE=bash_source prompt-sidecar)"
""",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_say_version, help="Say the version."
)
def main() -> None:
    """Keep LearnFlow's prompts coming while its config service is away."""


def _settings_options(command: F) -> F:
    for option in reversed(
        [
            click.option(
                "--config",
                type=click.Path(path_type=Path),
                help="Settings file (YAML). Default: SIDECAR_CONFIG, else config/sidecar.yaml, where there is one.",
            ),
            click.option("--listen", metavar="HOST:PORT", help="Where LearnFlow asks."),
            click.option("--ops-listen", metavar="HOST:PORT", help="Where probes and Prometheus ask."),
            click.option("--upstream-url", metavar="URL", help="The config service."),
            click.option("--deadline", metavar="DURATION", help="An answer or an error inside this time."),
            click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error."),
            click.option("--log-format", metavar="FORMAT", help="auto, json or console."),
        ]
    ):
        command = option(command)
    return command


def _read_as(kind: str, *arguments: str, **options: bool) -> Callable[[Any, Any, str], Any]:
    """Return a callback that reads an option's value as a kind of `sidecar.core.units`, made with these arguments."""

    def read(_context: click.Context, _parameter: click.Parameter, value: str) -> Any:
        from sidecar.core import units

        try:
            return getattr(units, kind)(*arguments, **options).parse(value)
        except ValueError as error:
            raise click.BadParameter(f"{value!r}; allowed is {error}.") from None

    return read


_address, _http_url = _read_as("ListenAddress"), _read_as("BaseUrl")
_long = _read_as("duration", "1s", "1d")


FLAG_KEYS = {
    "listen": "listen",
    "ops_listen": "ops.listen",
    "upstream_url": "upstream.url",
    "deadline": "deadline",
    "log_level": "log.level",
    "log_format": "log.format",
}


def _load(config: Path | None, flags: dict[str, str | None]) -> tuple[Any, Any]:
    """Return the settings, and how and whence they are read again."""
    from sidecar.config_file import ConfigError, default_path, load
    from sidecar.reload import Origin
    from sidecar.watch import identity

    path = config if config is not None else default_path(os.environ)
    given = {FLAG_KEYS[name]: value for name, value in flags.items() if value is not None}
    read_as = identity(path) if path is not None else None
    was_empty = read_as is None or read_as.size == 0
    was_pipe = path is not None and path.is_fifo()
    load_again = partial(
        load, path, environ=os.environ, flags=given, may_be_empty=was_empty or was_pipe, may_be_pipe=was_pipe
    )
    origin = Origin(load_again, path, read_as)
    try:
        return origin.load(), origin
    except ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(EXIT_USAGE)


@main.command("check-config")
@_settings_options
@click.option("--show", is_flag=True, help="Print the settings in force, as YAML.")
@click.option("--json", "as_json", is_flag=True, help="Print the settings in force, as JSON.")
@click.option(
    "--running",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The settings that a sidecar runs with: say which changes wait for a restart.",
)
def check_config(config: Path | None, *, show: bool, as_json: bool, running: Path | None, **flags: str | None) -> None:
    """Say whether the settings can be used, and start nothing."""
    settings, _ = _load(config, flags)
    if running is not None:
        from sidecar.reload import merged

        if waiting := merged(_load(running, flags)[0], settings).waiting:
            click.echo(f"These changes wait for a restart: {', '.join(waiting)}.", err=True)
    if as_json or show:
        import yaml

        from sidecar.settings import effective

        values = effective(settings)
        click.echo(json.dumps(values, indent=2) if as_json else yaml.safe_dump(values, sort_keys=False).rstrip())
    else:
        click.echo("The settings can be used.")


@main.command()
@_settings_options
def run(config: Path | None, **flags: str | None) -> None:
    """Stand between LearnFlow and its config service."""
    settings, origin = _load(config, flags)
    from sidecar.activation import inherited
    from sidecar.app import running
    from sidecar.drain import Drain
    from sidecar.open_files import allow, wanted
    from sidecar.sd_notify import Notifier
    from sidecar.telemetry.log_setup import Logs

    logs = Logs.to_standard_error(settings.log)
    allow(wanted(settings))

    async def serve() -> None:
        stop, hung_up, drain = asyncio.Event(), asyncio.Event(), Drain(settings.drain)
        _on_stop_signals(stop.set, drain)
        # Before anything is said: a SIGHUP without a handler ends the process.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up.set)
        manager = Notifier.of(os.environ)
        async with running(
            settings,
            origin=origin,
            sockets=inherited(os.environ),
            drain=drain,
            around_reload=manager.reloading,
            logs=logs,
        ) as sidecar:
            sidecar.core.background.keep(_on_each(hung_up, sidecar.reload), name="reload")
            sidecar.core.background.keep(manager.feed(), name="watchdog")
            gc.collect()
            gc.freeze()  # what start-up made stays, and need not be looked at again
            gc.set_threshold(GC_THRESHOLD, 20, 100)
            manager.ready(f"Answering on {sidecar.listen}.")
            await stop.wait()
            manager.stopping()

    try:
        _run(serve())
    except Exception as error:  # noqa: BLE001 — whatever it is, its text may quote what must not be told
        logs.tell_of_crash("run", error)
        sys.exit(EXIT_FAILED)
    finally:
        logs.close()


def _timeout(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    from sidecar.probe import seconds

    found = seconds(value)
    if found is None:
        raise click.BadParameter(f"{value!r}; allowed is a duration from 1ms to 60s, with its unit (ms, s).")
    return found


@main.command()
@click.option("--url", default=PROBE_URL, show_default=True, metavar="URL", help="What to ask: http://host:port/path.")
@click.option(
    "--timeout",
    default=PROBE_TIMEOUT,
    show_default=True,
    metavar="DURATION",
    callback=_timeout,
    help="How long the answer may take.",
)
def probe(url: str, timeout: float) -> None:
    """Ask a running sidecar whether it is ready.

    For images without curl: exit code 0 after a 2xx answer, else 1 and a sentence on standard error.
    """
    from sidecar.probe import ProbeError
    from sidecar.probe import probe as ask

    try:
        ask(url, timeout)
    except ProbeError as error:
        _die(str(error))


@main.command()
@click.option(
    "--listen",
    default="127.0.0.1:8003",
    show_default=True,
    metavar="HOST:PORT",
    callback=_address,
    help="Where to serve.",
)
@click.option(
    "--templates",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="prompts.yaml. Default: the demo's own.",
)
@click.option("--database", default=":memory:", show_default=True, help="SQLite file.")
@click.option(
    "--generation",
    type=click.Choice(["prompt-data", "placeholders", "passthrough"]),
    default="prompt-data",
    show_default=True,
    help="The newest API to offer; placeholders is what runs in production today.",
)
@click.option(
    "--cache-ttl",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="cache_ttl of the prompt-data answers; seconds.",
)
@click.option(
    "--fault",
    type=click.Choice(FAULTS),
    default="none",
    show_default=True,
    metavar="MODE",
    help=f"Fault mode to begin with; PUT /_reference/fault changes it. One of: {', '.join(FAULTS)}.",
)
def upstream(**options: Any) -> None:
    """Serve a reference config service, never for production.

    A small one, for the demo and the tests.
    """
    from sidecar.demo.reference.cli import serve_from_options

    _run(serve_from_options(**options))


def _ops_options(command: F) -> F:
    for option in (
        click.option(
            "--token-file",
            type=click.Path(path_type=Path),
            help="File with the admin token (ops.admin_token_file), where the sidecar wants one.",
        ),
        click.option(
            "--ops-url",
            default="http://127.0.0.1:9102",
            show_default=True,
            metavar="URL",
            callback=_http_url,
            help="The ops listener of the running sidecar.",
        ),
    ):
        command = option(command)
    return command


def _http_url_if_given(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else _http_url(context, parameter, value)


def _watch(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    from sidecar.probe import seconds

    found = None if value is None else seconds(value)
    if value is not None and (found is None or found < SHORTEST_WATCH):
        raise click.BadParameter(f"{value!r}; allowed is a duration from 100ms to 60s, with its unit (ms, s).")
    return found


def _ops_url_of(config: Path) -> str:
    """Return where the sidecar with these settings answers to people on its own machine."""
    listen = _load(config, {})[0].ops.listen
    if listen.port == 0:
        raise click.UsageError(f"ops.listen in {config} is any free port; say --ops-url instead.")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104 — not to listen, to ask
    return f"http://[{host}]:{listen.port}" if ":" in host else f"http://{host}:{listen.port}"


@main.command(epilog="Exit codes: 0 healthy, 1 degraded, 2 it cannot be reached, or usage.")
@click.option(
    "--ops-url",
    "--url",
    metavar="URL",
    callback=_http_url_if_given,
    help="The ops listener of the running sidecar.  [default: http://127.0.0.1:9102]",
)
@click.option("--config", type=click.Path(path_type=Path), help="Ask where ops.listen of this settings file says.")
@click.option("--json", "as_json", is_flag=True, help="Print what /status says as JSON; watched, a line each time.")
@click.option(
    "--watch",
    is_flag=False,
    flag_value="2s",
    default=None,
    metavar="[DURATION]",
    callback=_watch,
    help="Look again and again, every 2s or as often as said, until interrupted.",
)
def status(ops_url: str | None, config: Path | None, *, as_json: bool, watch: float | None) -> None:
    """Say how a running sidecar is doing.

    Whether all is well, and if not, why, since when and what to do; the nodes, the config service and the stores.
    """
    if ops_url is not None and config is not None:
        raise click.UsageError("Say where once: --ops-url or --config.")
    url = _ops_url_of(config) if config is not None else ops_url
    from sidecar.ops_client import DEFAULT_URL
    from sidecar.status_command import Wanted, show

    sys.exit(show(Wanted(url or DEFAULT_URL, as_json, watch)))


@main.command(epilog="Exit codes: 0 done, 1 the sidecar cannot be reached or refuses, 2 usage.")
@click.option("--user", type=click.IntRange(min=1), metavar="ID", help="What is kept of this user.")
@click.option("--node", metavar="NAME", help="The documents of this node.")
@click.option("--all", "everything", is_flag=True, help="All that is kept.")
@_ops_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def invalidate(
    user: int | None, node: str | None, *, everything: bool, ops_url: str, token_file: Path | None, as_json: bool
) -> None:
    """Make what a running sidecar keeps void.

    It and its group ask the upstream again. What is invalidated is not served any more, in an outage either: neither
    from memory nor from the store.
    """
    from sidecar.ops_client import OpsError, call

    given = {"user": user, "node": node, "all": everything or None}
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) != 1:
        raise click.UsageError("Say what: exactly one of --user ID, --node NAME and --all.")
    try:
        done = call("POST", f"{ops_url}/admin/invalidate", chosen, token_file=token_file)
    except OpsError as error:
        _die(str(error))
    if as_json:
        click.echo(json.dumps(done))
        return
    told, pending = "the other sidecars of its group know", "the others will be told as soon as Redis answers"
    group = {True: f"; {told}", False: f"; {pending}", None: ""}[done["group_told"]]
    store = "the store's as soon as it answers" if done["store"] is None else f"{done['store']} in the store"
    click.echo(f"Invalidated: {done['memory']} entries in memory, {store}{group}.")


@main.command(epilog="Exit codes: 0 done, 1 the sidecar cannot be reached or refuses, 2 usage.")
@click.argument("state", type=click.Choice(["open", "closed", "auto"]))
@click.option("--for", "held_for", metavar="DURATION", help="How long it is held; 10m by default, 1h at most.")
@_ops_options
def breaker(state: str, held_for: str | None, *, ops_url: str, token_file: Path | None) -> None:
    """Hold the circuit open or closed for a while, or let it go.

    Held open, the service is not asked at all: what the policy allows is served from what is kept, everything else is
    503. Held closed, it is asked however often it fails.
    """
    from sidecar.ops_client import OpsError, call

    given = {"state": state} | ({} if held_for is None else {"for": held_for})
    try:
        done = call("POST", f"{ops_url}/admin/breaker", given, token_file=token_file)
    except OpsError as error:
        _die(str(error))
    left = done["held_for_seconds"]
    click.echo(f"The circuit is {done['state']}" + ("." if left is None else f", and is held so for {left:,.0f} s."))


@main.command(
    epilog="Exit codes: 0 all warm, 1 some failed, 2 usage or no usable list, 3 stopped early, 130 interrupted."
)
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("--users", metavar="ID,ID,…", help="Users, each with each of --nodes.")
@click.option("--nodes", metavar="NAME,NAME,…", help="Nodes, for each of --users.")
@click.option("--from-store", is_flag=True, help="What the sidecar's store has.")
@click.option("--rate", type=click.IntRange(1, 100_000), help="Pairs a second at most. Default: warmup.rate.")
@click.option("--concurrency", type=click.IntRange(1, 100), help="Calls at once at most. Default: warmup.concurrency.")
@click.option(
    "--resume",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File that remembers how far it is, to go on there.",
)
@_ops_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def warm(
    files: tuple[str, ...],
    users: str | None,
    nodes: str | None,
    *,
    from_store: bool,
    rate: int | None,
    concurrency: int | None,
    resume: Path | None,
    ops_url: str,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Fill a running sidecar beforehand.

    Templates and settings are brought into its memory and its store.

    FILE is CSV (user_id,node_name) or JSON lines with these two keys; - is standard input.
    """
    from sidecar.warm_command import ListError, Wanted, crossed, read_list, warm

    if (users is None) != (nodes is None):
        raise click.UsageError("--users and --nodes go together.")
    if bool(files) + (users is not None) + from_store != 1:
        raise click.UsageError("Say what: files, --users and --nodes, or --from-store.")
    if from_store and resume is not None:
        raise click.UsageError("--resume needs a list: what the store has changes all the time.")
    try:
        pairs = read_list(files, lambda line: click.echo(line, err=True)) if files else None
        if users is not None and nodes is not None:
            pairs = crossed(users, nodes)
    except ListError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_USAGE)
    sys.exit(warm(Wanted(pairs, ops_url, token_file, rate, concurrency, resume, as_json)))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result for machines, and nothing else.")
def demo(*, as_json: bool) -> None:
    """Show the main job: an outage, from beginning to end.

    Healthy traffic, an outage covered from the cache, the end of what the policy allows, recovery; half a minute.
    """
    from sidecar.demo.processes import ChildError
    from sidecar.demo.scenario import StoryError, play

    try:
        sys.exit(_run(_unless_stopped(play(as_json=as_json))))
    except (ChildError, StoryError) as error:
        _die(str(error))


@main.command(
    epilog="Exit codes: 0 all promises held and the objective met, 1 not, 2 usage or settings, 130 interrupted."
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Settings file (YAML). Default: SIDECAR_CONFIG, else config/sidecar.yaml, where there is one.",
)
@click.option(
    "--failure",
    "failures",
    type=click.Choice(FAILURES),
    multiple=True,
    default=("refused", "hang", "503", "garbage"),
    show_default=True,
    metavar="MODE",
    help=f"How the service fails; again for more, in turn. One of: {', '.join(FAILURES)}.",
)
@click.option(
    "--duration",
    default="10s",
    show_default=True,
    metavar="DURATION",
    callback=_long,
    help="How long each outage lasts.",
)
@click.option(
    "--recovery",
    default="30s",
    show_default=True,
    metavar="DURATION",
    callback=_long,
    help="How long each recovery may last; it ends when all prompts are fresh again.",
)
@click.option(
    "--objective",
    default="99%",
    show_default=True,
    metavar="PERCENT",
    callback=_read_as("percent", bare=True),
    help="Share of requests that must get their prompt, in each phase.",
)
@click.option("--rate", type=click.IntRange(1, 500), default=20, show_default=True, help="Requests a second.")
@click.option("--users", type=click.IntRange(1, 1000), default=5, show_default=True, help="Users who ask.")
@click.option(
    "--nodes", metavar="NAME,NAME,…", help="Nodes asked for. Default: three, and those with a policy of their own."
)
@click.option(
    "--cache-ttl",
    default="2s",
    show_default=True,
    metavar="DURATION",
    callback=_read_as("duration", "0s", "1d"),
    help="Lifetime that the service states: short, so that data is stale in the outage.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report for machines, and nothing else.")
def drill(config: Path | None, *, failures: tuple[str, ...], nodes: str | None, as_json: bool, **options: Any) -> None:
    """Rehearse an outage with your settings.

    On this machine alone: a reference config service is broken in front of a sidecar with your settings, in each of the
    ways said, under steady traffic; nothing else is asked or changed. Prints an availability report.
    """
    settings, origin = _load(config, {})
    from sidecar.demo.drill.command import drill as rehearse
    from sidecar.demo.drill.plan import Plan, PlanError, checked, generation_of
    from sidecar.demo.processes import ChildError

    plan = Plan(
        settings=settings,
        source="the defaults" if origin.path is None else str(origin.path),
        generation=generation_of(settings),
        failures=tuple(dict.fromkeys(failures)),
        nodes=() if nodes is None else tuple(dict.fromkeys(nodes.split(","))),
        **options,
    )
    try:
        sys.exit(_run(_unless_stopped(rehearse(checked(plan), as_json=as_json))))
    except (PlanError, ChildError) as error:
        _die(str(error), EXIT_USAGE)


async def _on_each(event: asyncio.Event, act: Callable[[], Awaitable[None]]) -> None:
    """Act each time that the event is set, for ever."""
    while True:
        await event.wait()
        event.clear()
        await act()


def _on_stop_signals(stop: Callable[[], None], drain: "Drain") -> None:
    """Have the first SIGTERM or SIGINT stop, and any further one hasten the drain; the process ends within its time.

    Python's own handlers: unlike the loop's they are run even while the loop hangs in a call, such as to a full log.
    """
    from sidecar.drain import HASTY_SECONDS, end_at_the_latest

    loop = asyncio.get_running_loop()
    signals = itertools.count()

    def caught(_number: int, _frame: object) -> None:
        is_first = next(signals) == 0
        end_at_the_latest(drain.seconds if is_first else HASTY_SECONDS)
        with suppress(RuntimeError):  # the loop may have ended already
            loop.call_soon_threadsafe(stop if is_first else drain.hasten)

    for number in STOP_SIGNALS:
        signal.signal(number, caught)


async def _unless_stopped(work: Coroutine[Any, Any, int]) -> int:
    """Return what the work returns; SIGTERM and SIGINT cancel it, once, so that it can tidy up after itself.

    The exit code is then the shell's: 128 and the signal's number.
    """
    task = asyncio.ensure_future(work)
    caught: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        if not caught:
            caught.append(number)
            task.cancel()

    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return await task
    except (asyncio.CancelledError, Exception):  # what was stopped may also fail on its way out
        if not caught:
            raise
        click.echo("Stopped.", err=True)
        return 128 + caught[0]


def _run(main_task: Coroutine[Any, Any, Any]) -> Any:
    """Run on uvloop; what cannot start says so in a sentence."""
    import uvloop

    _have_standard_files()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main_task)
    except OSError as error:
        _die(str(error), getattr(error, "exit_code", EXIT_FAILED))


def _have_standard_files() -> None:
    """Put /dev/null where standard input, output or error is closed: a socket in its place is more than libuv bears."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _die(message: str, exit_code: int = EXIT_FAILED) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(exit_code)
