"""The command, as a person or a pod uses it."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import click
import pytest
import yaml
from click.testing import CliRunner, Result

import sidecar.__main__
from sidecar.cli import FAULTS, FLAG_KEYS, main
from sidecar.config_file import load
from sidecar.core.policy import Strategy
from sidecar.demo.processes import PACKAGE_ROOT
from sidecar.demo.reference.faults import Fault, Mode
from sidecar.settings import Address, Settings
from tests.wire import PATIENCE, reference, refuses, until

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(main.commands)
GENERATE_PROMPT = "/api/v1/generate-prompt"
QUESTION = {"user_id": 1, "node_name": "answer_question", "context": {"study_material": "tides", "input_content": "?"}}
HEAVY = ["aiohttp", "jinja2", "msgspec", "prometheus_client", "pybreaker", "rich", "structlog", "uvloop", "yaml"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder without settings, in an environment without any."""
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith("SIDECAR_") or name in {"FORCE_COLOR", "TTY_COMPATIBLE"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONWARNINGS", "error")


@pytest.fixture
def nobody() -> Iterator[int]:
    """Return a port on which nobody listens, and nobody else will."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environment)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "sidecar", *arguments, **environment)


# Help


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sidecar.cli import main\n"
        f"for name in {[[], *[[each] for each in COMMANDS]]}: main([*name, '--help'], standalone_mode=False)\n"
        f"sys.exit(', '.join(name for name in {HEAVY} if name in sys.modules) or None)"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Usage: ") == len(COMMANDS) + 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_its_line_of_help_and_each_line_fits(name: str) -> None:
    said = invoke(name, "--help").output
    assert max(map(len, said.splitlines())) <= 80
    options = [each for each in main.commands[name].params if isinstance(each, click.Option)]
    assert all(option.help for option in options)


def test_the_summary_of_each_command_is_whole() -> None:
    assert COMMANDS == [
        "breaker", "check-config", "demo", "drill", "invalidate", "probe", "run", "status", "upstream", "warm",
    ]  # fmt: skip
    assert "..." not in invoke("--help").output.partition("Commands:")[2]


def test_an_unknown_command_is_a_mistake_of_usage() -> None:
    done = invoke("rnu")
    assert done.exit_code == 2
    assert "No such command 'rnu'" in done.stderr


def test_the_version_is_one_line_whether_the_package_is_installed_or_not() -> None:
    done = command("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"\d+(\.\d+)*\S*\n", done.stdout)


def test_the_console_script_is_this_command() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert EntryPoint("prompt-sidecar", scripts["prompt-sidecar"], "console_scripts").load() is sidecar.__main__.main


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_prints_a_script(shell: str) -> None:
    code = "from sidecar.cli import main; main(prog_name='prompt-sidecar')"
    done = python("-c", code, _PROMPT_SIDECAR_COMPLETE=f"{shell}_source")
    assert done.returncode == 0
    assert "prompt-sidecar" in done.stdout
    assert f"_PROMPT_SIDECAR_COMPLETE={shell}_complete" in done.stdout


def test_shell_completion_completes_a_command() -> None:
    code = "from sidecar.cli import main; main(prog_name='prompt-sidecar')"
    variables = {"_PROMPT_SIDECAR_COMPLETE": "bash_complete", "COMP_WORDS": "prompt-sidecar ch", "COMP_CWORD": "1"}
    assert python("-c", code, **variables).stdout == "plain,check-config\n"


# Settings


def test_settings_that_can_be_used_are_said_to_be_so() -> None:
    done = invoke("check-config")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "The settings can be used.\n", "")


def test_checking_the_settings_starts_nothing() -> None:
    code = (
        "import sys; from sidecar.cli import main\n"
        "main(['check-config'], standalone_mode=False)\n"
        "sys.exit(', '.join(name for name in ('sidecar.app', 'aiohttp', 'uvloop') if name in sys.modules) or None)"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_flag_reaches_its_setting() -> None:
    flags = {
        "--listen": "127.0.0.1:1",
        "--ops-listen": "127.0.0.1:2",
        "--upstream-url": "http://upstream:3",
        "--deadline": "3s",
        "--log-level": "debug",
        "--log-format": "json",
    }
    given = [part for pair in flags.items() for part in pair]
    shown = json.loads(invoke("check-config", "--json", *given).stdout)
    assert {f"--{key.replace('_', '-')}" for key in FLAG_KEYS} == set(flags)
    for name, key in FLAG_KEYS.items():
        at: Any = shown
        for part in key.split("."):
            at = at[part]
        assert at == flags[f"--{name.replace('_', '-')}"]


@pytest.mark.parametrize(("flag", "read"), [("--show", yaml.safe_load), ("--json", json.loads)])
def test_the_settings_shown_are_those_in_force_and_can_be_read_again(tmp_path: Path, flag: str, read: Any) -> None:
    path = tmp_path / "given.yaml"
    path.write_text("deadline: 3s\npolicy: {nodes: {guard: {strategy: network-first, stale_if_error: 0s}}}\n")
    done = invoke("check-config", flag, "--config", str(path), "--listen", "[::1]:1", SIDECAR_CACHE__MAX_BYTES="1MiB")
    assert done.exit_code == 0
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(read(done.stdout)))
    settings = load(again, environ={}, flags={})
    assert settings == load(path, environ={"SIDECAR_CACHE__MAX_BYTES": "1MiB"}, flags={"listen": "[::1]:1"})
    assert settings.listen == Address("::1", 1)
    assert settings.policy.for_node("guard").strategy is Strategy.NETWORK_FIRST
    assert settings != Settings()


def test_changes_that_wait_for_a_restart_are_named_beforehand(tmp_path: Path) -> None:
    running, new = tmp_path / "running.yaml", tmp_path / "new.yaml"
    running.write_text("deadline: 3s\nstore: {kind: none}\n")
    new.write_text("deadline: 2s\nupstream: {url: 'http://another'}\n")
    done = invoke("check-config", "--config", str(new), "--running", str(running))
    assert (done.exit_code, done.stdout) == (0, "The settings can be used.\n")
    assert done.stderr == "These changes wait for a restart: upstream.url, store.kind.\n"
    done = invoke("check-config", "--config", str(running), "--running", str(running))
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["check-config", "run"])
def test_all_mistakes_of_file_environment_and_flags_come_at_once_a_line_each(tmp_path: Path, name: str) -> None:
    (tmp_path / "s.yaml").write_text("deadline: soon\nbreaker: {fail_max: 0}\nretrry: {}\n")
    done = invoke(
        name, "--config", "s.yaml", "--listen", "nowhere", "--log-level", "loud",
        SIDECAR_CACHE__MAX_BYTES="1", SIDECAR_UPSTREAM__URL="ftp://x",
    )  # fmt: skip
    assert (done.exit_code, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    named = [line.partition(":")[0] for line in lines]
    assert sorted(named) == [
        "breaker.fail_max", "cache.max_bytes", "deadline", "listen", "log.level", "retrry", "upstream.url",
    ]  # fmt: skip
    assert all("; allowed: " in line for line in lines)
    for source in ("s.yaml line 1", "environment SIDECAR_UPSTREAM__URL", "flag --listen"):
        assert f"({source})" in done.stderr


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _: None, "'s.yaml' cannot be read: No such file or directory (file)"),
        (lambda path: path.mkdir(), "'s.yaml' cannot be read: Is a directory (file)"),
        (lambda path: path.write_bytes(b"\xff"), "'s.yaml' is not UTF-8 text (s.yaml line 1)"),
        (lambda path: path.write_text("a: [\n"), "'s.yaml' is not YAML"),
    ],
    ids=["missing", "a folder", "not text", "not YAML"],
)
def test_a_settings_file_that_cannot_be_used_is_one_line_and_exit_code_2(tmp_path: Path, make: Any, says: str) -> None:
    make(tmp_path / "s.yaml")
    done = invoke("run", "--config", "s.yaml")
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"config: {says}")


WITHOUT_THE_EXTRA = """
import sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"opentelemetry", "google"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nowhere())
import sidecar.app
from sidecar.__main__ import main
main()
"""


def test_a_collector_without_the_extra_is_one_line_and_exit_code_2() -> None:
    done = python("-c", WITHOUT_THE_EXTRA, "run", SIDECAR_TRACING__ENDPOINT="http://127.0.0.1:4318")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line == (
        "tracing.endpoint: 'http://127.0.0.1:4318' is not allowed (environment SIDECAR_TRACING__ENDPOINT); allowed: "
        "null | http(s)://host[:port][/path], without user, password, query or fragment, where the extra is installed: "
        "pip install 'prompt-sidecar[otel]'"
    )


def test_without_a_collector_nothing_of_the_extra_is_needed() -> None:
    done = python("-c", WITHOUT_THE_EXTRA, "check-config")
    assert (done.returncode, done.stdout) == (0, "The settings can be used.\n")


def test_a_collector_without_a_path_takes_traces_where_collectors_do() -> None:
    for given, meant in (
        ("http://a:4318", "http://a:4318/v1/traces"),
        ("http://a:4318/", "http://a:4318/v1/traces"),
        ("https://a/otlp/v1/traces", "https://a/otlp/v1/traces"),
    ):
        shown = json.loads(invoke("check-config", "--json", SIDECAR_TRACING__ENDPOINT=given).stdout)
        assert shown["tracing"]["endpoint"] == meant


def test_a_mistake_in_the_settings_binds_nothing(nobody: int) -> None:
    done = command("run", "--listen", f"127.0.0.1:{nobody}", "--deadline", "soon")
    assert done.returncode == 2  # and not 1, for the address that could not be bound
    assert "cannot listen" not in done.stderr


# Run


class Running(NamedTuple):
    """A started process: its first line, and where that says it listens."""

    process: asyncio.subprocess.Process
    first_line: str

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.first_line)
        return event

    @property
    def url(self) -> str:
        return f"http://{self.event['listen']}"

    @property
    def ops(self) -> str:
        return f"http://{self.event['ops']}"

    @property
    def port(self) -> int:
        return int(self.event["listen"].rpartition(":")[2])

    async def ends(self) -> tuple[int, str]:
        """Wait for the end; returns the exit code and what was said after the first line."""
        async with asyncio.timeout(PATIENCE):
            _, said = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, said.decode()


@asynccontextmanager
async def started(*arguments: str, **environment: str) -> AsyncIterator[Running]:
    command = (sys.executable, "-m", "sidecar", *arguments)
    env = {**os.environ, **FIXED, **environment}
    process = await asyncio.create_subprocess_exec(*command, env=env, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE):
            line = (await process.stderr.readline()).decode()
        yield Running(process, line)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


FIXED = {  # nothing is looked for, so the first line is the start's; nothing is left behind
    "SIDECAR_UPSTREAM__API": "prompt-data",
    "SIDECAR_STORE__KIND": "none",
}
ANYWHERE = ("--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0")


async def test_the_first_event_says_where_it_listens_and_both_listeners_answer() -> None:
    async with reference() as (upstream, _), started("run", *ANYWHERE, "--upstream-url", upstream) as sidecar:
        event = sidecar.event
        assert (event["event"], event["level"], event["upstream"]) == ("started", "info", upstream)
        assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", event["listen"])
        assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", event["ops"])
        async with aiohttp.ClientSession() as session:
            for path in ("/livez", "/readyz"):
                async with session.get(sidecar.ops + path) as response:
                    assert (response.status, await response.text()) == (200, "ok\n")
            async with session.post(sidecar.url + GENERATE_PROMPT, json=QUESTION) as response:
                assert response.status == 200
                assert "tides" in (await response.json())["prompt"]
            async with session.get(sidecar.ops + "/metrics") as response:
                metrics = await response.text()
        assert 'prompt_sidecar_requests_total{node="answer_question",outcome="miss"} 1.0' in metrics
        assert f'prompt_sidecar_build_info{{version="{event["version"]}"}} 1.0' in metrics


async def test_it_starts_and_stays_ready_while_the_upstream_is_down(nobody: int) -> None:
    async with (
        started("run", *ANYWHERE, "--upstream-url", f"http://127.0.0.1:{nobody}") as sidecar,
        aiohttp.ClientSession() as session,
    ):
        for _ in range(8):  # more than open the circuit
            async with session.post(sidecar.url + GENERATE_PROMPT, json=QUESTION) as response:
                assert response.status == 503
                assert "Retry-After" in response.headers
        async with session.get(sidecar.ops + "/readyz") as response:
            assert response.status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_the_request_in_flight_finish_and_ends_with_0(number: signal.Signals) -> None:
    slow = {"SIDECAR_RETRY__PER_TRY_TIMEOUT": "4s", "SIDECAR_LOG__FORMAT": "json"}
    async with (
        reference(fault=Fault(Mode.HANG)) as (upstream, state),
        started("run", *ANYWHERE, "--upstream-url", upstream, **slow) as sidecar,
        aiohttp.ClientSession() as session,
    ):
        asking = asyncio.create_task(session.post(sidecar.url + GENERATE_PROMPT, json=QUESTION))
        await until(lambda: state.in_flight == 1)
        sidecar.process.send_signal(number)
        await until(lambda: refuses(sidecar.port))
        assert not asking.done()
        async with session.get(sidecar.ops + "/readyz") as ready, session.get(sidecar.ops + "/livez") as live:
            assert (ready.status, live.status) == (503, 200)
        state.fault = Fault()
        async with await asking as response:
            assert response.status == 200
            assert "tides" in (await response.json())["prompt"]
        code, said = await sidecar.ends()
    assert code == 0
    assert [json.loads(line)["event"] for line in said.splitlines()] == ["draining", "stopped"]


@pytest.mark.parametrize("signals", ["SIGTERM", "SIGINT", "SIGHUP SIGTERM"])
def test_a_signal_while_it_starts_ends_it_with_0(signals: str) -> None:
    program = """
import os, signal, sys, types
class Cli(types.ModuleType):
    def __getattr__(self, name):  # it is about to be asked for its main
        for each in sys.argv.pop().split():
            os.kill(os.getpid(), signal.Signals[each])
sys.modules["sidecar.cli"] = Cli("sidecar.cli")
from sidecar.__main__ import main
main()
"""
    command = [sys.executable, "-c", program, "run", signals]
    done = subprocess.run(command, cwd=PACKAGE_ROOT, capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")


def test_no_keys_of_tls_connections_are_written_where_the_environment_says(tmp_path: Path) -> None:
    program = """
import os, sys
sys.argv = ["prompt-sidecar", "run", "--config", "nowhere"]
from sidecar.__main__ import main
try:
    main()
finally:
    import ssl
    assert ssl.create_default_context().keylog_filename is None
"""
    command = [sys.executable, "-c", program]
    environment = os.environ | {"SSLKEYLOGFILE": str(tmp_path / "keys")}
    done = subprocess.run(command, cwd=PACKAGE_ROOT, env=environment, capture_output=True, check=False, timeout=30)
    assert (done.returncode, b"AssertionError" in done.stderr) == (2, False)
    assert not (tmp_path / "keys").exists()


async def test_idle_connections_do_not_hold_up_the_end() -> None:
    async with (
        reference() as (upstream, _),
        started("run", *ANYWHERE, "--upstream-url", upstream) as sidecar,
        aiohttp.ClientSession() as session,
    ):
        async with session.post(sidecar.url + GENERATE_PROMPT, json=QUESTION) as response:
            assert response.status == 200
        began = asyncio.get_running_loop().time()
        sidecar.process.terminate()
        code, _ = await sidecar.ends()
        assert code == 0
        assert asyncio.get_running_loop().time() - began < 3  # the deadline would be 4


@pytest.mark.parametrize(("flag", "key"), [("--listen", "listen"), ("--ops-listen", "ops.listen")])
async def test_a_taken_address_is_one_sentence_that_names_the_key_and_the_address(flag: str, key: str) -> None:
    async with started("run", *ANYWHERE) as first:
        taken = first.event[key.removesuffix(".listen")]
        async with started("run", *ANYWHERE, flag, taken) as second:
            code, rest = await second.ends()
    assert (code, rest) == (1, "")
    assert second.first_line.startswith(f"{key}: cannot listen on {taken}: Address already in use.")


async def test_an_address_of_another_machine_is_one_sentence_too() -> None:
    async with started("run", *ANYWHERE, "--ops-listen", "192.0.2.1:9102") as sidecar:
        code, rest = await sidecar.ends()
    assert (code, rest) == (1, "")
    assert sidecar.first_line == "ops.listen: cannot listen on 192.0.2.1:9102: Cannot assign requested address.\n"


async def test_a_log_for_people_has_no_colours_where_no_person_looks() -> None:
    async with started("run", *ANYWHERE, "--log-format", "console") as sidecar:
        sidecar.process.terminate()
        code, rest = await sidecar.ends()
    assert code == 0
    assert "started" in sidecar.first_line
    assert "stopped" in rest
    assert "\x1b" not in sidecar.first_line + rest


# The reference config service


def test_the_fault_modes_are_those_of_the_reference_service() -> None:
    assert list(FAULTS) == [mode.value for mode in Mode]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_reference_service_serves_until_a_signal_and_ends_with_0(number: signal.Signals) -> None:
    async with started("upstream", "--listen", "127.0.0.1:0", "--cache-ttl", "7") as service:
        url = service.first_line.split()[4]
        async with aiohttp.ClientSession(url) as session:
            asked = {"user_id": 1, "node_name": "answer_question"}
            async with session.post("/api/v1/prompt-data", json=asked) as response:
                assert (await response.json())["cache_ttl"] == 7
        service.process.send_signal(number)
        assert await service.ends() == (0, "")


async def test_the_reference_service_begins_with_the_fault_it_was_given() -> None:
    async with (
        started("upstream", "--listen", "127.0.0.1:0", "--fault", "503") as service,
        aiohttp.ClientSession(service.first_line.split()[4]) as session,
        session.get("/health") as response,
    ):
        assert response.status == 503


async def test_the_reference_service_on_a_taken_address_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with started("upstream", "--listen", address) as service:
            code, rest = await service.ends()
    assert (code, rest) == (1, "")
    said = f"The reference config service cannot listen on {address}: Address already in use.\n"
    assert service.first_line == said


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--listen", "nowhere", "'nowhere'; allowed is host:port"),
        ("--cache-ttl", "-1", "-1.0 is not in the range"),
        ("--fault", "boredom", "'boredom' is not one of 'none', '500'"),
        ("--templates", "missing.yaml", "'missing.yaml' does not exist"),
    ],
)
def test_an_option_of_the_reference_service_that_is_none_is_named(flag: str, value: str, says: str) -> None:
    done = invoke("upstream", flag, value)
    assert done.exit_code == 2
    assert flag in done.stderr
    assert says in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--templates", "list.yaml", "list.yaml is not a mapping of names to texts"),
        ("--templates", "broken.yaml", "broken.yaml is not a YAML file"),
        ("--database", "nowhere/at/all.db", "nowhere/at/all.db cannot be opened"),
    ],
)
def test_a_file_that_the_reference_service_cannot_use_is_named(
    tmp_path: Path, flag: str, value: str, says: str
) -> None:
    (tmp_path / "list.yaml").write_text("[]")
    (tmp_path / "broken.yaml").write_text("a: [")
    done = command("upstream", flag, value)
    assert done.returncode == 2
    assert flag in done.stderr
    assert says in " ".join(done.stderr.split())


def test_an_error_that_nobody_foresaw_ends_it_with_a_line_of_the_log_and_without_its_text() -> None:
    code = """
import sidecar.app
def running(*_, **__):
    raise ValueError("redis://user:geheim@host")
sidecar.app.running = running
from sidecar.cli import main
main(["run", "--config", "/dev/null"])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=PATIENCE, check=False)
    line = json.loads(ended.stderr)
    assert (ended.returncode, line["level"], line["event"], line["what"]) == (1, "critical", "crashed", "run")
    assert (line["error"], line["where"][-1].rpartition(" ")[2]) == ("ValueError", "running")
    assert b"geheim" not in ended.stderr
