"""What a deployment may get wrong: its ConfigMap, its Secrets, its disk, its network. A sentence, or it serves on."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from sidecar.demo.processes import ChildError, child, start
from sidecar.demo.reference.service import create_app
from sidecar.demo.reference.state import ReferenceOptions
from tests.harness import Client, client_of, eventually, reference, sidecar_process

SUCCESSFUL = "prompt_sidecar_config_last_reload_successful"
TEMPLATES = {"explain": "Explain {{ topic }} in {{ style }}."}


async def command(*arguments: str) -> tuple[int | None, str]:
    """Run the command line; return its exit code and all that it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


@asynccontextmanager
async def sidecar_at(*arguments: str, host: str = "127.0.0.1", **settings: str) -> AsyncIterator[Client]:
    """Run a sidecar on free ports of a host; yield a client of it."""
    listen = ("--listen", f"{host}:0", "--ops-listen", f"{host}:0")
    async with child("run", *arguments, *listen, settings=settings) as running:
        started = json.loads(running.first_line)
        async with client_of(f"http://{started['listen']}", f"http://{started['ops']}") as client:
            yield client


async def status(client: Client) -> Any:
    async with client.session.get(f"{client.ops}/status") as response:
        return await response.json()


class ConfigMap:
    """A ConfigMap as the kubelet mounts it: a link to a file below `..data`, a link to a folder of one version."""

    def __init__(self, folder: Path, content: str) -> None:
        self._folder = folder
        self._versions = 0
        self.path = folder / "sidecar.yaml"
        self.path.symlink_to("..data/sidecar.yaml")
        self.update(content)

    def update(self, content: str) -> None:
        """Have `..data` lead to another version, at once."""
        self._versions += 1
        version = self._folder / f"..{self._versions}"
        version.mkdir()
        (version / "sidecar.yaml").write_text(content)
        (self._folder / "..data_tmp").symlink_to(version.name)
        (self._folder / "..data_tmp").rename(self._folder / "..data")


async def test_a_configmap_with_a_typo_keeps_the_old_settings_and_is_told_of_until_it_is_corrected(
    tmp_path: Path,
) -> None:
    settings = ConfigMap(tmp_path, "rollout: {percent: 100}\n")
    async with (
        reference() as upstream,
        sidecar_at("--config", str(settings.path), SIDECAR_UPSTREAM__URL=upstream.url) as sidecar,
    ):

        async def is_told(successful: str, percent: str) -> bool:
            lines = (await sidecar.metrics()).splitlines()
            return f"{SUCCESSFUL} {successful}" in lines and (await status(sidecar))["rollout"]["percent"] == percent

        settings.update("rolout: {percent: 0}\n")
        await eventually(lambda: is_told("0.0", "100%"))
        (problem,) = (await status(sidecar))["reload"]["problems"]
        assert problem.startswith("rolout: is no known key (")
        assert "line 1" in problem
        assert "did you mean rollout?" in problem
        assert (await sidecar.ask()).status == 200
        settings.update("rollout: {percent: 0}\nupstream: {api: passthrough}\n")
        await eventually(lambda: is_told("1.0", "0%"))
        assert (await status(sidecar))["reload"]["waiting_for_restart"] == ["upstream.api"]
        assert (await sidecar.ask()).how == "prompt-sidecar; fwd=bypass; detail=rollout"


@pytest.mark.parametrize("key", ["SIDECAR_STORE__ENCRYPTION_KEY_FILE", "SIDECAR_STORE__SIGNING_KEY_FILE"])
async def test_without_the_secret_that_its_store_needs_it_does_not_start_and_says_which(
    key: str, tmp_path: Path
) -> None:
    missing = tmp_path / "key"
    with pytest.raises(ChildError) as refused:
        await start("run", "--config", "/dev/null", settings={key: str(missing)})
    name = key.removeprefix("SIDECAR_").replace("__", ".").lower()
    assert f"(exit code 1): {name}: {missing} cannot be read: No such file or directory." in str(refused.value)


async def test_a_missing_admin_token_refuses_admin_calls_alone_and_one_with_a_newline_is_the_token(
    tmp_path: Path,
) -> None:
    token, ours = tmp_path / "token", tmp_path / "ours"
    ours.write_text("sesame")
    async with (
        reference() as upstream,
        sidecar_process(upstream.url, tmp_path, OPS__ADMIN_TOKEN_FILE=str(token)) as sidecar,
    ):
        assert (await sidecar.ask()).status == 200
        invalidate = ("invalidate", "--all", "--ops-url", sidecar.ops, "--token-file", str(ours))
        code, said = await command(*invalidate)
        assert (code, "The file of ops.admin_token_file cannot be read, or holds no token." in said) == (1, True)
        token.write_text("sesame\r\n")
        assert (await command(*invalidate))[0] == 0


@pytest.mark.parametrize("place", ["below a file", "a folder"])
async def test_without_a_place_for_its_store_it_serves_from_memory_and_says_so(place: str, tmp_path: Path) -> None:
    path = tmp_path / "store"
    if place == "below a file":
        path.write_text("")
        path /= "cache.db"
    else:
        path.mkdir()
    async with (
        reference() as upstream,
        sidecar_process(upstream.url, tmp_path, STORE__KIND="file", STORE__PATH=str(path)) as sidecar,
    ):
        assert "fwd=miss" in (await sidecar.ask()).how
        assert "; hit; " in (await sidecar.ask()).how
        assert (await status(sidecar))["store"]["error"] in {"unwritable", "unusable"}
        assert "\nprompt_sidecar_store_ok 0.0\n" in await sidecar.metrics()
        sidecar.process.terminate()
        assert await sidecar.process.wait() == 0


async def test_on_a_host_with_ipv6_alone_everything_is_reached_by_it() -> None:
    app = create_app(ReferenceOptions(templates=TEMPLATES))
    async with TestServer(app, host="::1") as upstream:
        url = f"http://[::1]:{upstream.port}"
        async with sidecar_at("--config", "/dev/null", host="[::1]", SIDECAR_UPSTREAM__URL=url) as sidecar:
            assert sidecar.base.startswith("http://[::1]:")
            assert (await sidecar.ask()).prompt.startswith("Explain tides in ")
            async with sidecar.session.get(f"{sidecar.base}/api/v1/profiles/") as response:
                assert response.status == 200
            assert await command("probe", "--url", f"{sidecar.ops}/readyz") == (0, "")
            assert (await command("invalidate", "--all", "--ops-url", sidecar.ops))[0] == 0


async def test_a_proxy_in_the_environment_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
            monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        async with reference() as upstream, sidecar_process(upstream.url, tmp_path) as sidecar:
            assert (await sidecar.ask()).status == 200
            async with sidecar.session.get(f"{sidecar.base}/api/v1/profiles/") as response:
                assert response.status == 200  # a static read
            async with sidecar.session.put(f"{sidecar.base}/api/v1/users/1/placeholders/1") as response:
                assert response.status in {400, 404, 422}  # passed on, on a connection of its own
            assert await command("probe", "--url", f"{sidecar.ops}/readyz") == (0, "")
            assert (await command("invalidate", "--all", "--ops-url", sidecar.ops))[0] == 0
    assert asked == []
