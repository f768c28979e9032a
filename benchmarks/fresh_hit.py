"""What a fresh hit costs, with telemetry and without, against a bare aiohttp handler that answers the same bytes.

All run as processes of their own, in turns, so that a machine whose speed drifts slows all. `make bench` runs it.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import psutil
import uvloop
import yaml

from benchmarks.load import Sample, ask_once, round_of
from sidecar.demo import processes

ANYWHERE = "127.0.0.1:0"
BARE = "bare"
SETTINGS = {f"setting_{n}": f"value {n} of the user's profile, about as long as a real one is" for n in range(10)}
CONTENT = "The content of this request, recognised from notes or typed as an exam question. "


def template() -> str:
    """Return a template of about 2 KB with eleven placeholders."""
    lines = [f"{n}. <part_{n}> {{{{ {name} }}}} </part_{n}>" for n, name in enumerate(SETTINGS)]
    prose = "Work through the material step by step, and say why each step holds. " * 20
    return "\n".join(["You are an expert.", *lines, prose, "<content>", "{{ input_content }}", "</content>"])


def request(*, keep_alive: bool) -> bytes:
    """Return the request: a body of about 1.7 KB."""
    context = {"input_content": (CONTENT * 30)[:1600]}
    body = json.dumps({"user_id": 1, "node_name": "explain", "context": context}).encode()
    connection = "keep-alive" if keep_alive else "close"
    head = (
        "POST /api/v1/generate-prompt HTTP/1.1\r\nHost: localhost:8002\r\n"
        "Accept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
        f"Connection: {connection}\r\nUser-Agent: python-httpx/0.28.1\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: application/json\r\n\r\n"
    )
    return head.encode() + body


class Server(NamedTuple):
    """One of those that are compared."""

    name: str
    port: int
    process: psutil.Process


async def compare(*, rounds: int, seconds: float, concurrency: int, autoescape: bool) -> dict[str, object]:
    """Measure all, in turns."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "prompts.yaml").write_text(yaml.safe_dump({"explain_system_prompt": template()}))
        upstream = await stack.enter_async_context(
            processes.child(
                *("upstream", "--listen", ANYWHERE, "--templates", str(folder / "prompts.yaml"), "--cache-ttl", "3600")
            )
        )
        upstream_port = int(upstream.first_line.rpartition("127.0.0.1:")[2].split()[0])
        await _give_settings(upstream_port)
        (folder / "nothing").touch()
        collector, _ = await _yardstick(stack, folder / "nothing")
        settings = {"SIDECAR_RENDER__AUTOESCAPE": str(autoescape).lower(), "SIDECAR_LOG__FORMAT": "json"}
        servers: list[Server] = []
        body = b""
        for name, others, module in _variants(collector):
            sidecar = await stack.enter_async_context(
                processes.child(
                    *("run", "--config", "/dev/null", "--listen", ANYWHERE, "--ops-listen", ANYWHERE),
                    *("--upstream-url", f"http://127.0.0.1:{upstream_port}"),
                    settings=settings | others,
                    module=module,
                )
            )
            port = int(json.loads(sidecar.first_line)["listen"].rpartition(":")[2])
            answer = await ask_once(port, request(keep_alive=True))
            head, _, body = answer.partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(answer.decode())
            servers.append(Server(name, port, psutil.Process(sidecar.pid)))
        (folder / "body").write_bytes(body)
        servers.append(Server(BARE, *await _yardstick(stack, folder / "body")))
        result: dict[str, object] = {"answer_bytes": len(body), "autoescape": autoescape}
        for keep_alive in (True, False):
            samples: dict[str, list[Sample]] = {each.name: [] for each in servers}
            for n in range(rounds + 1):
                for name, port, process in servers:
                    before = process.cpu_times()
                    sample = await round_of(
                        port,
                        request(keep_alive=keep_alive),
                        seconds=seconds,
                        concurrency=concurrency,
                        keep_alive=keep_alive,
                    )
                    after = process.cpu_times()
                    sample.cpu_seconds = after.user + after.system - before.user - before.system
                    if n:  # the first warms up
                        samples[name].append(sample)
            result["keep-alive" if keep_alive else "connection per request"] = _figures(samples)
        result["resident_mib"] = {name: round(p.memory_info().rss / 2**20, 1) for name, _, p in servers}
        return result


def _variants(collector: int) -> Iterator[tuple[str, dict[str, str], str]]:
    """Yield the sidecars that are compared: name, settings, what is run."""
    yield "telemetry off", {}, "benchmarks.silent"
    yield "sidecar", {}, "sidecar"  # as it comes: metrics and logs
    if find_spec("opentelemetry") is None:
        return
    to = {"SIDECAR_TRACING__ENDPOINT": f"http://127.0.0.1:{collector}"}
    for ratio in ("1%", "10%", "100%"):
        yield f"traces {ratio}", {**to, "SIDECAR_TRACING__SAMPLE_RATIO": ratio}, "sidecar"


async def _yardstick(stack: AsyncExitStack, body: Path) -> tuple[int, psutil.Process]:
    """Start what answers anything with this body; return its port, and itself."""
    bare = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.bare", str(body), stdout=asyncio.subprocess.PIPE
    )
    stack.callback(bare.kill)
    assert bare.stdout is not None
    return int(await bare.stdout.readline()), psutil.Process(bare.pid)


async def _give_settings(port: int) -> None:
    body = json.dumps({"settings": SETTINGS}).encode()
    head = (
        "PUT /_reference/user/1 HTTP/1.1\r\nHost: x\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    answer = await ask_once(port, head.encode() + body)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(answer.decode())


def _figures(samples: dict[str, list[Sample]]) -> dict[str, object]:
    figures: dict[str, object] = {}
    cpu = {
        name: median(sample.cpu_seconds / len(sample.latencies) for sample in rounds)
        for name, rounds in samples.items()
    }
    for name, rounds in samples.items():
        cuts = quantiles([latency for sample in rounds for latency in sample.latencies], n=100)
        ratios = [a.rate / b.rate for a, b in zip(rounds, samples[BARE], strict=True)]
        figures[name] = {
            "requests_per_second": round(median(sample.rate for sample in rounds)),
            "p50_us": round(cuts[49] * 1e6),
            "p99_us": round(cuts[98] * 1e6),
            "cpu_us": round(cpu[name] * 1e6),
            "ratio": {
                "median": round(median(ratios), 3),
                "least": round(min(ratios), 3),
                "most": round(max(ratios), 3),
            },
            "cpu_ratio": round(cpu[BARE] / cpu[name], 3),
        }
    return figures


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each round")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = []
    for autoescape in (False, True):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(
                compare(
                    rounds=arguments.rounds,
                    seconds=arguments.seconds,
                    concurrency=arguments.concurrency,
                    autoescape=autoescape,
                )
            )
        results.append(result)
        if not arguments.json:
            _show(result)
    if arguments.json:
        print(json.dumps(results, indent=2))


def _show(result: dict[str, object]) -> None:
    print(f"\nautoescape {'on' if result['autoescape'] else 'off'}, answer {result['answer_bytes']} bytes")
    for mode in ("keep-alive", "connection per request"):
        figures = result[mode]
        assert isinstance(figures, dict)
        print(
            f"  {mode:22}  requests/s    p50 us    p99 us   processor us   ratio to bare (least, most)   by processor"
        )
        for name, f in figures.items():
            ratio = f["ratio"]
            print(
                f"    {name:20}  {f['requests_per_second']:10}  {f['p50_us']:8}  {f['p99_us']:8}  {f['cpu_us']:13}   "
                f"{ratio['median']:.2f} ({ratio['least']:.2f}, {ratio['most']:.2f}){'':13}   {f['cpu_ratio']:.2f}"
            )
    print(f"  resident memory, MiB: {result['resident_mib']}")


if __name__ == "__main__":
    main()
