"""TLS to the config service: whom it trusts, what it shows, how both change without a restart, and never without."""

import asyncio
import os
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from sidecar.demo.processes import PACKAGE_ROOT
from sidecar.settings import BreakerSettings, RetrySettings, Settings, TlsSettings, TlsVersion
from sidecar.stores import FileMistakeError
from sidecar.upstream import client as upstream_client
from sidecar.upstream import rotating
from sidecar.watch import watch_all
from sidecar.wiring import open_core
from tests.authorities import HOST, Files, Mounted, chain, key, speaks, strict_server
from tests.harness import (
    KEPT,
    Exchange,
    Sidecar,
    eventually,
    prompt_data,
    raw_upstream,
    reference,
    settings_for,
    sidecar_with,
)

ONCE = RetrySettings(attempts=1)
AUTHORITY, OTHERS, CLIENTS = trustme.CA(), trustme.CA(), trustme.CA()
TLS_1_2 = ssl.TLSVersion.TLSv1_2
ASKING = [ssl.TLSVersion.TLSv1_3, TLS_1_2]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path)
    made.trust(AUTHORITY)
    return made


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotating, "watch_all", partial(watch_all, poll_seconds=0.01))


def by_tls(url: str, files: Files, *, mutual: bool = False, **given: Any) -> Settings:
    """Return settings that trust the files' authority; `given`: keys of `upstream.tls`, and sections."""
    tls: dict[str, Any] = {"ca_file": files / "ca.pem"}
    if mutual:
        tls |= {"cert_file": files / "cert.pem", "key_file": files / "key.pem"}
    tls |= {name: given.pop(name) for name in ("ca_file", "server_name", "min_version") if name in given}
    return settings_for(url, upstream={"tls": TlsSettings(**tls)}, **{"retry": ONCE, **given})


async def upstream_status(sidecar: Sidecar) -> Any:
    async with sidecar.session.get(f"{sidecar.ops}/status") as response:
        return (await response.json())["upstream"]


class Service:
    """A config service that remembers who asked, and whether a connection is still open."""

    def __init__(self) -> None:
        self.clients: list[str | None] = []
        self.versions: set[str] = set()
        self.writers: set[asyncio.StreamWriter] = set()

    async def __call__(self, exchange: Exchange) -> None:
        secured = exchange.writer.get_extra_info("ssl_object")
        shown = secured.getpeercert(binary_form=True)
        self.clients.append(shown and common_name(shown))
        self.versions.add(secured.version())
        self.writers.add(exchange.writer)
        await exchange.answer(prompt_data(settings={"style": f"style {exchange.user}"}))


def common_name(certificate: bytes) -> str:
    (found,) = x509.load_der_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found.value)


def client(name: str, authority: trustme.CA = CLIENTS) -> trustme.LeafCert:
    return authority.issue_cert(f"{name}.internal", common_name=name)


# Whom we trust


async def test_prompts_and_what_is_passed_on_come_by_tls(files: Files) -> None:
    service = Service()
    async with (
        raw_upstream(service, tls=speaks(AUTHORITY)) as upstream,
        sidecar_with(by_tls(upstream.url, files)) as sidecar,
    ):
        assert "style 1" in (await sidecar.ask(1)).prompt
        async with sidecar.session.put(f"{sidecar.base}/api/v1/other", json={"user_id": 2}) as response:
            assert response.status == 200
        assert service.versions == {"TLSv1.3"}
        told = (await upstream_status(sidecar))["tls"]
        assert (told["error"], told["handshake_error"], told["client_certificate_expires"]) == (None, None, None)
        assert told["server_certificate_expires"].startswith("3000-01-01T")
        assert 'certificate_expiry_timestamp_seconds{whose="server"} 3.2503' in await sidecar.metrics()


async def test_authorities_may_stand_among_many_with_comments_in_any_tongue(files: Files) -> None:
    many = b"".join(f"# Főtanúsítvány {n}\n".encode() + OTHERS.cert_pem.bytes() for n in range(150))
    files.put("ca.pem", many + AUTHORITY.cert_pem.bytes())
    async with (
        raw_upstream(Service(), tls=speaks(AUTHORITY)) as upstream,
        sidecar_with(by_tls(upstream.url, files)) as sidecar,
    ):
        assert (await sidecar.ask()).status == 200


async def test_a_service_is_taken_for_the_name_that_the_settings_say(files: Files) -> None:
    async with (
        raw_upstream(Service(), tls=speaks(AUTHORITY, "config.internal")) as upstream,
        sidecar_with(by_tls(upstream.url, files, server_name="config.internal")) as sidecar,
    ):
        assert (await sidecar.ask()).status == 200
        async with sidecar.session.put(f"{sidecar.base}/api/v1/other", json={"user_id": 2}) as response:
            assert response.status == 200


@pytest.mark.parametrize(
    ("shows", "given", "why"),
    [
        pytest.param(
            {"expires": datetime(2002, 1, 1, tzinfo=UTC)},
            {},
            "the config service's certificate has expired",
            id="expired",
        ),
        pytest.param(
            {"names": ["10.9.8.7"]}, {}, "the config service's certificate is for another address", id="address"
        ),
        pytest.param(
            {},
            {"server_name": "config.internal"},
            "the config service's certificate is for another name",
            id="name",
        ),
        pytest.param(
            {"authority": OTHERS},
            {},
            "the config service's certificate is of an authority that is not trusted here",
            id="authority",
        ),
        pytest.param(
            {},
            {"ca_file": None},
            "the config service's certificate is of an authority that is not trusted here",
            id="the system's authorities",
        ),
        pytest.param(
            {"newest": TLS_1_2},
            {"min_version": TlsVersion.V1_3},
            "the config service speaks no version of TLS that is allowed here",
            id="version",
        ),
    ],
)
async def test_who_cannot_be_trusted_is_not_asked_and_the_reason_is_told(
    shows: dict[str, Any], given: dict[str, Any], why: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    names, authority = shows.pop("names", []), shows.pop("authority", AUTHORITY)
    with strict_server(speaks(authority, *names, **shows)) as url:
        async with sidecar_with(by_tls(url, files, **given)) as sidecar:
            answered = await sidecar.ask()
            assert (answered.status, answered.is_problem) == (503, True)
            assert answered.document["detail"] == f"No prompt: {why}, and the policy allows no stale data."
            assert "detail=tls-error" in answered.how
            assert (await upstream_status(sidecar))["tls"]["handshake_error"] == why
            assert 'requests_total{endpoint="prompt-data",result="tls_error"} 1.0' in await sidecar.metrics()
            async with sidecar.session.put(f"{sidecar.base}/api/v1/other", data=b"secret") as response:
                assert (response.status, "TLS handshake failed" in await response.text()) == (503, True)
    told = capsys.readouterr()
    assert why in told.out + told.err


async def test_a_service_without_tls_is_never_asked_in_plain_text(files: Files) -> None:
    async with (
        reference() as upstream,
        sidecar_with(by_tls(upstream.url.replace("http:", "https:"), files)) as sidecar,
    ):
        answered = await sidecar.ask()
        assert "speaks no TLS" in answered.document["detail"]
        assert (answered.status, upstream.calls) == (503, 0)


async def test_a_certificate_that_ends_is_an_outage_and_covered_like_one(files: Files) -> None:
    service = Service()
    async with raw_upstream(service, tls=speaks(AUTHORITY)) as upstream:
        port = int(upstream.url.rpartition(":")[2])
        async with sidecar_with(by_tls(upstream.url, files, policy=KEPT)) as sidecar:
            fresh = await sidecar.ask()
            await upstream.close()
            expired = speaks(AUTHORITY, expires=datetime(2002, 1, 1, tzinfo=UTC))
            upstream.server = await asyncio.start_server(upstream.connected, HOST, port, ssl=expired)
            stale = await sidecar.ask()
            assert stale.prompt == fresh.prompt
            assert "detail=stale-if-error" in stale.how
            assert (await sidecar.ask(2)).status == 503


async def test_no_variable_of_the_environment_has_the_connections_keys_written(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, service = tmp_path / "keys.log", speaks(AUTHORITY)
    monkeypatch.setenv("SSLKEYLOGFILE", str(written))
    async with (
        raw_upstream(Service(), tls=service) as upstream,
        sidecar_with(by_tls(upstream.url, files)) as sidecar,
    ):
        assert (await sidecar.ask()).status == 200
    assert not written.exists()


# Who we are


async def test_mutual_tls_shows_our_own_certificate_on_every_connection(files: Files) -> None:
    service = Service()
    files.show(client("sidecar"))
    async with (
        raw_upstream(service, tls=speaks(AUTHORITY, asks_for=CLIENTS)) as upstream,
        sidecar_with(by_tls(upstream.url, files, mutual=True)) as sidecar,
    ):
        assert (await sidecar.ask(1)).status == 200
        async with sidecar.session.put(f"{sidecar.base}/api/v1/other", json={"user_id": 2}) as response:
            assert response.status == 200
        assert service.clients == ["sidecar", "sidecar"]
        assert 'certificate_expiry_timestamp_seconds{whose="client"} 3.2503' in await sidecar.metrics()
        assert (await upstream_status(sidecar))["tls"]["client_certificate_expires"].startswith("3000-01-01T")


@pytest.mark.parametrize("newest", ASKING)
@pytest.mark.parametrize("shown", [None, OTHERS], ids=["none", "another's"])
async def test_a_service_that_does_not_take_our_certificate_says_so(
    shown: trustme.CA | None, newest: ssl.TLSVersion, files: Files
) -> None:
    if shown is not None:
        files.show(client("sidecar", shown))
    with strict_server(speaks(AUTHORITY, asks_for=CLIENTS, newest=newest)) as url:
        async with sidecar_with(by_tls(url, files, mutual=shown is not None)) as sidecar:
            answered = await sidecar.ask()
            assert answered.status == 503
            assert "does not take the sidecar's certificate, or wants one (" in answered.document["detail"]
            error = (await upstream_status(sidecar))["tls"]["handshake_error"]
            assert error.startswith("the config service does not take the sidecar's certificate")


# How both change


@asynccontextmanager
async def mutual(files: Files, service: Service) -> AsyncIterator[Sidecar]:
    async with (
        raw_upstream(service, tls=speaks(AUTHORITY, asks_for=CLIENTS)) as upstream,
        sidecar_with(by_tls(upstream.url, files, mutual=True, policy=KEPT)) as sidecar,
    ):
        await sidecar.ask()
        yield sidecar


async def is_shown(sidecar: Sidecar, service: Service, name: str) -> bool:
    assert (await sidecar.ask()).status == 200
    return service.clients[-1] == name


async def files_ok(sidecar: Sidecar, *, ok: bool) -> bool:
    return f'prompt_sidecar_upstream_files_ok{{what="tls"}} {float(ok)}' in await sidecar.metrics()


async def test_a_new_certificate_is_shown_without_a_restart(files: Files) -> None:
    service = Service()
    files.show(client("first"))
    async with mutual(files, service) as sidecar:
        assert service.clients == ["first"]
        files.show(client("second"))
        await eventually(lambda: is_shown(sidecar, service, "second"))
        assert "first" not in service.clients[service.clients.index("second") :]
        assert (await upstream_status(sidecar))["tls"]["error"] is None


async def test_a_secret_that_kubernetes_swaps_is_taken_whole(tmp_path: Path) -> None:
    service, files, first = Service(), Mounted(tmp_path), client("first")
    files.swap(ca_pem=AUTHORITY.cert_pem.bytes(), cert_pem=chain(first), key_pem=key(first))
    async with mutual(files, service) as sidecar:
        for name in ("second", "third"):
            leaf = client(name)
            files.swap(cert_pem=chain(leaf), key_pem=key(leaf))
            await eventually(partial(is_shown, sidecar, service, name))
        assert "not_read" not in (await sidecar.metrics())


@pytest.mark.parametrize("halves", [("cert.pem", "key.pem"), ("key.pem", "cert.pem")], ids=lambda each: each[0])
async def test_a_pair_of_which_one_half_is_new_leaves_the_old_one_in_force(
    halves: tuple[str, str], files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    service, second = Service(), client("second")
    new = {"cert.pem": chain(second), "key.pem": key(second)}
    files.show(client("first"))
    async with mutual(files, service) as sidecar:
        assert await files_ok(sidecar, ok=True)
        files.put(halves[0], new[halves[0]])
        await eventually(lambda: files_ok(sidecar, ok=False))
        error = (await upstream_status(sidecar))["tls"]["error"]
        assert error == f"upstream.tls.key_file: {files / 'key.pem'} does not belong to {files / 'cert.pem'}"
        assert await is_shown(sidecar, service, "first")
        files.put(halves[1], new[halves[1]])
        await eventually(lambda: is_shown(sidecar, service, "second"))
        assert await files_ok(sidecar, ok=True)
    said = "".join(capsys.readouterr())
    assert said.count("upstream_files_not_read") == 1
    assert said.count("upstream_files_read ") + said.count('"upstream_files_read"') == 1
    assert "PRIVATE KEY" not in said


def gone(files: Files) -> None:
    (files / "key.pem").unlink()


def garbled(files: Files) -> None:
    files.put("ca.pem", b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")


def emptied(files: Files) -> None:
    files.put("cert.pem", b"")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (gone, r"upstream\.tls\.key_file: \S+/key\.pem cannot be read: No such file or directory"),
        (garbled, r"upstream\.tls\.ca_file: \S+/ca\.pem holds no certificates in PEM"),
        (emptied, r"upstream\.tls\.cert_file: \S+/cert\.pem is empty"),
    ],
)
async def test_a_broken_file_changes_nothing_and_is_told_of(
    spoil: Callable[[Files], None], why: str, files: Files
) -> None:
    service = Service()
    files.show(client("first"))
    async with mutual(files, service) as sidecar:
        spoil(files)
        await eventually(lambda: files_ok(sidecar, ok=False))
        assert re.fullmatch(why, (await upstream_status(sidecar))["tls"]["error"])
        assert await is_shown(sidecar, service, "first")
        files.trust(AUTHORITY)
        files.show(client("second"))
        await eventually(lambda: is_shown(sidecar, service, "second"))
        assert await files_ok(sidecar, ok=True)


async def test_whom_to_trust_changes_without_a_restart(files: Files) -> None:
    async with (
        raw_upstream(Service(), tls=speaks(OTHERS)) as upstream,
        sidecar_with(by_tls(upstream.url, files, breaker=BreakerSettings(fail_max=1000))) as sidecar,
    ):
        assert (await sidecar.ask()).status == 503

        async def trusts() -> bool:
            return (await sidecar.ask()).status == 200

        files.trust(AUTHORITY, OTHERS)
        await eventually(trusts)


async def test_a_connection_of_an_earlier_certificate_is_used_no_more_and_ends(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_client, "IDLE_SECONDS", 0.2)
    service = Service()
    files.show(client("first"))
    async with mutual(files, service) as sidecar:
        (old,) = service.writers
        files.show(client("second"))
        await eventually(lambda: is_shown(sidecar, service, "second"))
        assert len(service.writers) == 2
        async with asyncio.timeout(5):
            await old.wait_closed()


# Bad input


def spoilt_ca(files: Files) -> None:
    files.put("ca.pem", b"no certificate\n")


def no_ca(files: Files) -> None:
    (files / "ca.pem").unlink()


def ca_folder(files: Files) -> None:
    no_ca(files)
    (files / "ca.pem").mkdir()


def swapped(files: Files) -> None:
    leaf = client("sidecar")
    files.put("cert.pem", key(leaf))
    files.put("key.pem", chain(leaf))


def locked(files: Files) -> None:
    leaf = client("sidecar")
    private = serialization.load_pem_private_key(key(leaf), None)
    files.put("cert.pem", chain(leaf))
    files.put(
        "key.pem",
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        ),
    )


def of_two(files: Files) -> None:
    files.put("cert.pem", chain(client("one")))
    files.put("key.pem", key(client("two")))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (no_ca, "upstream.tls.ca_file: {}/ca.pem cannot be read: No such file or directory."),
        (ca_folder, "upstream.tls.ca_file: {}/ca.pem cannot be read: Is a directory."),
        (spoilt_ca, "upstream.tls.ca_file: {}/ca.pem holds no certificates in PEM."),
        (
            swapped,
            "upstream.tls.cert_file: {0}/cert.pem and {0}/key.pem are no certificate and its private key in PEM.",
        ),
        (of_two, "upstream.tls.key_file: {0}/key.pem does not belong to {0}/cert.pem."),
        (locked, "upstream.tls.key_file: {}/key.pem wants a passphrase; allowed: a private key without one."),
    ],
)
async def test_files_that_cannot_be_used_stop_the_start_with_a_sentence(
    spoil: Callable[[Files], None], why: str, files: Files
) -> None:
    files.show(client("sidecar"))
    spoil(files)
    with pytest.raises(FileMistakeError) as refused:
        async with open_core(by_tls("https://127.0.0.1:1", files, mutual=True)):
            pass
    assert str(refused.value) == why.format(files.folder)


def test_the_command_ends_with_2(tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "run", "--config", "/dev/null", "--upstream-url", "https://127.0.0.1:1"],
        env=dict(os.environ) | {"SIDECAR_UPSTREAM__TLS__CA_FILE": str(missing), "SIDECAR_STORE__KIND": "none"},
        cwd=PACKAGE_ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    sentence = f"upstream.tls.ca_file: {missing} cannot be read: No such file or directory.\n"
    assert (done.returncode, done.stderr) == (2, sentence)
