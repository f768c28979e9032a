from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.policy import Policy, Strategy
from sidecar.core.prompt import Profile
from sidecar.core.servers import RedisServers, RedisUrl
from sidecar.settings import (
    Address,
    BreakerSettings,
    CacheSettings,
    DrainSettings,
    Key,
    LimitSettings,
    LogFormat,
    LogLevel,
    LogSettings,
    MetricsSettings,
    OnUpstreamFailure,
    OpsSettings,
    PolicySettings,
    ProxySettings,
    RedisMode,
    RedisSettings,
    RenderSettings,
    RetrySettings,
    RolloutSettings,
    Settings,
    ShadowSettings,
    StoreKind,
    StoreSettings,
    TlsSettings,
    TlsVersion,
    TracingSettings,
    UpstreamApi,
    UpstreamSettings,
    WarmUpSettings,
    contradictions,
    effective,
    keys,
)

KIB, MIB = 1024, 1024 * 1024


def test_the_defaults_are_those_of_the_contract() -> None:
    assert Settings() == Settings(
        listen=Address("127.0.0.1", 8002),
        listen_unix=None,
        listen_beyond_loopback=False,
        allowed_hosts=frozenset(),
        ops=OpsSettings(listen=Address("127.0.0.1", 9102), admin_token_file=None, max_connections=64),
        upstream=UpstreamSettings(
            url="http://prompt-config-service:8002",
            api=UpstreamApi.AUTO,
            templates_file=None,
            detect_interval=30.0,
            max_in_flight=64,
            max_response=2 * MIB,
            connect_timeout=0.5,
            token_file=None,
            forward_authorization=False,
            tls=TlsSettings(ca_file=None, cert_file=None, key_file=None, server_name=None, min_version=TlsVersion.V1_2),
        ),
        deadline=4.0,
        retry=RetrySettings(
            attempts=3,
            per_try_timeout=1.0,
            backoff=0.1,
            max_backoff=1.0,
            budget=0.2,
            budget_reserve=10,
            min_attempt=0.05,
        ),
        breaker=BreakerSettings(fail_max=5, reset_timeout=10.0, success_threshold=2),
        policy=PolicySettings(
            default=Policy(
                strategy=Strategy.AUTO,
                ttl=None,
                max_ttl=3600.0,
                stale_while_revalidate=30.0,
                stale_if_error=900.0,
                network_timeout=1.0,
            ),
            nodes={},
        ),
        render=RenderSettings(
            profile=Profile.STRICT,
            autoescape=None,
            undefined=None,
            max_template=256 * KIB,
            max_output=4 * MIB,
            max_iterations=100_000,
            max_time=0.1,
        ),
        rollout=RolloutSettings(
            percent=1.0, nodes=None, exclude=frozenset(), on_upstream_failure=OnUpstreamFailure.FAIL
        ),
        shadow=ShadowSettings(sample_rate=0.0, max_in_flight=4, max_mismatches=3, window=600.0),
        routes=dict.fromkeys(
            ("/api/v1/profiles*", "/api/v1/placeholders*", "/api/v1/users/{id}/placeholders"), Policy()
        ),
        proxy=ProxySettings(response_timeout=25.0, max_in_flight=64, queue_timeout=2.0, max_queue=128, add_token=False),
        store=StoreSettings(
            kind=StoreKind.FILE,
            path=Path(".sidecar/cache.db"),
            max_bytes=256 * MIB,
            encryption_key_file=None,
            signing_key_file=None,
            redis=RedisSettings(
                url=RedisServers(is_tls=False, hosts=(("127.0.0.1", 6379),), database=0),
                mode=RedisMode.SINGLE,
                sentinel_service="mymaster",
                username=None,
                password_file=None,
                sentinel_password_file=None,
                tls_ca_file=None,
                tls_cert_file=None,
                tls_key_file=None,
                prefix="prompt-sidecar",
                timeout=0.05,
                max_connections=16,
                fail_max=5,
                reset_timeout=1.0,
                reconnect=0.5,
                loss_window=1.0,
                gather=0.1,
                remember=900.0,
            ),
        ),
        warmup=WarmUpSettings(
            file=None,
            from_store=False,
            min_ratio=0.0,
            timeout=60.0,
            rate=500,
            concurrency=4,
            batch=100,
            batch_timeout=10.0,
            patience=60.0,
            max_pairs=1_000_000,
        ),
        cache=CacheSettings(max_entries=100_000, max_bytes=64 * MIB),
        limits=LimitSettings(
            max_body=4 * MIB,
            max_bodies=32 * MIB,
            max_waiting=768,
            max_header=16 * KIB,
            max_headers=100,
            max_connections=1024,
            head_timeout=5.0,
            keep_alive=75.0,
            write_timeout=30.0,
        ),
        drain=DrainSettings(delay=0.0, idle_grace=1.0, timeout=8.0),
        log=LogSettings(
            level=LogLevel.INFO, format=LogFormat.AUTO, repeat_window=10, max_repeat_window=300, max_lines=10_000
        ),
        metrics=MetricsSettings(max_nodes=100),
        tracing=TracingSettings(endpoint=None, sample_ratio=0.1, max_queue=2048, timeout=2.0),
    )


def sections(of: Any) -> Iterator[Any]:
    yield of
    for each in fields(of):
        if is_dataclass(below := getattr(of, each.name)) and "kind" not in each.metadata:
            yield from sections(below)


@pytest.mark.parametrize("section", [*sections(Settings())], ids=lambda section: type(section).__name__)
def test_a_section_cannot_be_changed_and_says_what_it_is(section: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(section, fields(section)[0].name, None)
    assert not hasattr(section, "__dict__")
    assert str(type(section).__doc__).endswith(".")


@pytest.mark.parametrize("key", [*keys()], ids=lambda key: ".".join(key.path))
def test_each_key_has_a_default_that_its_kind_allows_and_a_reason_for_it(key: Key) -> None:
    assert key.kind.format(key.kind.parse(key.default)) == key.default
    assert len(key.reason.split()) >= 5
    assert not key.reason.endswith(".")


def test_a_node_without_a_policy_of_its_own_has_the_default() -> None:
    default, own = Policy(ttl=5.0), Policy(strategy=Strategy.NETWORK_FIRST)
    policy = PolicySettings(default=default, nodes={"security_guard_detection": own})
    assert policy.for_node("security_guard_detection") is own
    assert policy.for_node("answer_question") is default


def test_the_effective_settings_are_written_in_their_units() -> None:
    settings = replace(
        Settings(),
        ops=OpsSettings(listen=Address("::", 9102)),
        policy=PolicySettings(nodes={"answer.question": Policy(ttl=90.0)}),
        render=RenderSettings(autoescape=False),
    )
    written = effective(settings)
    assert written["ops"] == {"listen": "[::]:9102", "admin_token_file": "null", "max_connections": 64}
    assert written["deadline"] == "4s"
    assert written["retry"]["budget"] == "20%"
    assert written["retry"]["attempts"] == 3
    assert written["render"]["autoescape"] is False
    assert written["cache"]["max_bytes"] == "64MiB"
    assert written["policy"]["default"]["ttl"] == "upstream"
    assert written["policy"]["nodes"]["answer.question"]["ttl"] == "90s"


def test_the_defaults_do_not_contradict_each_other() -> None:
    assert list(contradictions(Settings())) == []


def by_tls(url: str = "https://a", **tls: Any) -> Settings:
    return Settings(upstream=UpstreamSettings(url=url, tls=TlsSettings(**tls)))


def with_redis(**given: Any) -> Settings:
    return Settings(store=StoreSettings(redis=RedisSettings(**given)))


@pytest.mark.parametrize(
    ("settings", "path", "other"),
    [
        pytest.param(
            Settings(retry=RetrySettings(per_try_timeout=4.1)),
            ("retry", "per_try_timeout"),
            ("deadline",),
            id="an attempt longer than the deadline",
        ),
        pytest.param(
            Settings(retry=RetrySettings(min_attempt=4.1)),
            ("retry", "min_attempt"),
            ("deadline",),
            id="no attempt would ever begin",
        ),
        pytest.param(
            Settings(retry=RetrySettings(backoff=1.1)),
            ("retry", "backoff"),
            ("retry", "max_backoff"),
            id="a first pause longer than any",
        ),
        pytest.param(
            Settings(policy=PolicySettings(default=Policy(network_timeout=4.1))),
            ("policy", "default", "network_timeout"),
            ("deadline",),
            id="a wait longer than the deadline",
        ),
        pytest.param(
            Settings(policy=PolicySettings(nodes={"a": Policy(ttl=3601.0)})),
            ("policy", "nodes", "a", "ttl"),
            ("policy", "nodes", "a", "max_ttl"),
            id="a ttl above its cap",
        ),
        pytest.param(
            Settings(ops=OpsSettings(listen=Address("0.0.0.0", 8002))),
            ("ops", "listen"),
            ("listen",),
            id="two listeners on one address",
        ),
        pytest.param(
            Settings(store=StoreSettings(encryption_key_file=Path("a"), signing_key_file=Path("b"))),
            ("store", "signing_key_file"),
            ("store", "encryption_key_file"),
            id="records signed and encrypted",
        ),
        pytest.param(
            by_tls("http://a", min_version=TlsVersion.V1_3),
            ("upstream", "tls", "min_version"),
            ("upstream", "url"),
            id="TLS in plain text",
        ),
        pytest.param(
            by_tls(cert_file=Path("a")),
            ("upstream", "tls", "key_file"),
            ("upstream", "tls", "cert_file"),
            id="the upstream's certificate without its key",
        ),
        pytest.param(
            by_tls(key_file=Path("a")),
            ("upstream", "tls", "cert_file"),
            ("upstream", "tls", "key_file"),
            id="the upstream's key without its certificate",
        ),
        pytest.param(
            Settings(proxy=ProxySettings(add_token=True)),
            ("proxy", "add_token"),
            ("upstream", "token_file"),
            id="no token to add",
        ),
        pytest.param(
            Settings(
                proxy=ProxySettings(add_token=True),
                upstream=UpstreamSettings(token_file=Path("a")),
                listen_beyond_loopback=True,
            ),
            ("proxy", "add_token"),
            ("listen_beyond_loopback",),
            id="a token lent to whoever reaches the machine",
        ),
        pytest.param(
            Settings(upstream=UpstreamSettings(forward_authorization=True)),
            ("upstream", "forward_authorization"),
            ("store", "signing_key_file"),
            id="credentials in a store without a key",
        ),
        pytest.param(
            with_redis(tls_cert_file=Path("a")),
            ("store", "redis", "tls_key_file"),
            ("store", "redis", "tls_cert_file"),
            id="a certificate without its key",
        ),
        pytest.param(
            with_redis(tls_key_file=Path("a")),
            ("store", "redis", "tls_cert_file"),
            ("store", "redis", "tls_key_file"),
            id="a key without its certificate",
        ),
        pytest.param(
            with_redis(url=RedisUrl().parse("redis://a/1"), mode=RedisMode.CLUSTER),
            ("store", "redis", "url"),
            ("store", "redis", "mode"),
            id="a database in a cluster",
        ),
        pytest.param(
            with_redis(url=RedisUrl().parse("redis://a,b")),
            ("store", "redis", "url"),
            ("store", "redis", "mode"),
            id="two single servers",
        ),
    ],
)
def test_two_keys_that_cannot_both_hold_are_a_contradiction(
    settings: Settings, path: tuple[str, ...], other: tuple[str, ...]
) -> None:
    assert [(each.path, each.other) for each in contradictions(settings)] == [(path, other)]


@pytest.mark.parametrize(
    "store", [StoreSettings(kind=StoreKind.NONE), StoreSettings(encryption_key_file=Path("a"))], ids=lambda s: s.kind
)
def test_credentials_may_be_kept_apart_in_memory_alone_or_with_a_key(store: StoreSettings) -> None:
    settings = Settings(upstream=UpstreamSettings(forward_authorization=True), store=store)
    assert list(contradictions(settings)) == []
