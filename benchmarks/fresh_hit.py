"""What a fresh hit costs, against a bare aiohttp handler that decodes the same JSON and answers the same bytes.

Both run as processes of their own, in turns, so that a machine whose speed drifts slows both. `make bench` runs it.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median, quantiles

import psutil
import uvloop
import yaml

from benchmarks.load import Sample, ask_once, round_of
from sidecar.demo import processes

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


async def compare(*, rounds: int, seconds: float, concurrency: int, autoescape: bool) -> dict[str, object]:
    """Measure both, in turns."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "prompts.yaml").write_text(yaml.safe_dump({"explain_system_prompt": template()}))
        upstream = await stack.enter_async_context(
            processes.child(
                "upstream",
                "--listen",
                "127.0.0.1:0",
                "--templates",
                str(folder / "prompts.yaml"),
                "--cache-ttl",
                "3600",
            )
        )
        upstream_port = int(upstream.first_line.rpartition("127.0.0.1:")[2].split()[0])
        await _give_settings(upstream_port)
        sidecar = await stack.enter_async_context(
            processes.child(
                "run",
                "--config",
                "/dev/null",
                "--listen",
                "127.0.0.1:0",
                "--ops-listen",
                "127.0.0.1:0",
                "--upstream-url",
                f"http://127.0.0.1:{upstream_port}",
                settings={"SIDECAR_RENDER__AUTOESCAPE": str(autoescape).lower(), "SIDECAR_LOG__FORMAT": "json"},
            )
        )
        sidecar_port = int(json.loads(sidecar.first_line)["listen"].rpartition(":")[2])
        answer = await ask_once(sidecar_port, request(keep_alive=True))
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode())
        (folder / "body").write_bytes(body)
        bare = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.bare", str(folder / "body"), stdout=asyncio.subprocess.PIPE
        )
        stack.callback(bare.kill)
        assert bare.stdout is not None
        bare_port = int(await bare.stdout.readline())
        result: dict[str, object] = {"answer_bytes": len(body), "autoescape": autoescape}
        servers = (
            ("sidecar", sidecar_port, psutil.Process(sidecar.pid)),
            ("bare", bare_port, psutil.Process(bare.pid)),
        )
        for keep_alive in (True, False):
            samples: dict[str, list[Sample]] = {"sidecar": [], "bare": []}
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
    ratios = [a.rate / b.rate for a, b in zip(samples["sidecar"], samples["bare"], strict=True)]
    figures: dict[str, object] = {
        "ratio": {"median": round(median(ratios), 3), "least": round(min(ratios), 3), "most": round(max(ratios), 3)}
    }
    cpu = {
        name: sum(sample.cpu_seconds for sample in rounds) / sum(len(sample.latencies) for sample in rounds)
        for name, rounds in samples.items()
    }
    figures["cpu_ratio"] = round(cpu["bare"] / cpu["sidecar"], 3)
    for name, rounds in samples.items():
        cuts = quantiles([latency for sample in rounds for latency in sample.latencies], n=100)
        figures[name] = {
            "requests_per_second": round(median(sample.rate for sample in rounds)),
            "p50_us": round(cuts[49] * 1e6),
            "p99_us": round(cuts[98] * 1e6),
            "cpu_us": round(cpu[name] * 1e6),
        }
    return figures


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each round")
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
        ratio = figures["ratio"]
        print(
            f"  {mode}: ratio {ratio['median']:.2f} (least {ratio['least']:.2f}, most {ratio['most']:.2f}), "
            f"by processor time {figures['cpu_ratio']:.2f}"
        )
        for name in ("sidecar", "bare"):
            f = figures[name]
            rate, p50, p99 = f["requests_per_second"], f["p50_us"], f["p99_us"]
            print(
                f"    {name:8} {rate:6} requests/s   p50 {p50:5} us   p99 {p99:5} us   "
                f"processor {f['cpu_us']:4} us a request"
            )
    print(f"  resident memory, MiB: {result['resident_mib']}")


if __name__ == "__main__":
    main()
