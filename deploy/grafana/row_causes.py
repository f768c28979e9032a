"""The row that says why: upstream, circuit, store."""

from grafana_foundation_sdk.builders import dashboard

from deploy.grafana.frame import WHERE
from deploy.grafana.panels import (
    GREEN,
    NOUGHT,
    RATE,
    RED,
    SECONDS,
    SHARE,
    SINCE,
    YELLOW,
    Query,
    graph,
    number,
    states,
)


def why(page: dashboard.Dashboard) -> dashboard.Dashboard:
    """Add the row that says why: upstream, circuit, store."""
    calls = f"prompt_sidecar_upstream_requests_total{{{WHERE}}}"
    return (
        page.with_row(dashboard.Row("Why? The config service, the circuit, the store"))
        .with_panel(
            number(
                "Service last answered",
                "Seconds since any call succeeded. Long ago can also mean that nobody had to ask.",
                Query(f"time() - max(prompt_sidecar_upstream_last_success_timestamp_seconds{{{WHERE}}})"),
                unit=SINCE,
                span=6,
                runbook="upstream-failing",
                nothing="never",
            )
        )
        .with_panel(
            number(
                "Calls that fail",
                "Share of the last five minutes' calls. 404 is an answer.",
                Query(
                    "sum(rate(prompt_sidecar_upstream_requests_total"
                    f'{{{WHERE},result!~"ok|not_modified|gone|refused|cancelled"}}[5m]))'
                    f" / (sum(rate({calls}[5m])) > 0) or vector(0)"
                ),
                unit=SHARE,
                span=6,
                runbook="upstream-failing",
                steps=((None, GREEN), (0.01, YELLOW), (0.1, RED)),
            )
        )
        .with_panel(
            number(
                "Stores in trouble",
                "A restart now may lose what is kept.",
                Query(f"count(prompt_sidecar_store_ok{{{WHERE}}} == 0) or vector(0)"),
                span=6,
                runbook="store-degraded",
                steps=NOUGHT,
            )
        )
        .with_panel(
            number(
                "Crashes in the last hour",
                "Errors that nobody foresaw.",
                Query(f"sum(increase(prompt_sidecar_crashes_total{{{WHERE}}}[1h]))"),
                span=6,
                runbook="crashed",
                steps=NOUGHT,
            )
        )
        .with_panel(
            states(
                "Circuit",
                "open: the config service (upstream) or the store (redis) is not asked. Without the service, stale "
                "data or errors are served at once.",
                Query(
                    "max by (pod, instance, breaker) ("
                    f'prompt_sidecar_breaker_state{{{WHERE},state="open"}} * 2'
                    f' or prompt_sidecar_breaker_state{{{WHERE},state="half-open"}})',
                    "{{pod}} {{instance}} {{breaker}}",
                ),
                names={0: ("closed", GREEN), 1: ("half-open", YELLOW), 2: ("open", RED)},
                runbook="circuit-open",
            )
        )
        .with_panel(
            graph(
                "Calls to the service by result",
                "Anything but ok and not_modified is worth a look there.",
                Query(
                    "sum by (endpoint, result) "
                    f"(rate(prompt_sidecar_upstream_requests_total{{{WHERE}}}[$__rate_interval]))",
                    "{{endpoint}} {{result}}",
                ),
                unit=RATE,
                runbook="upstream-failing",
            )
        )
        .with_panel(
            graph(
                "How long the service takes",
                "Near retry.per_try_timeout (1 s) calls begin to fail.",
                *(
                    Query(
                        f"histogram_quantile({quantile}, sum by (endpoint, le) (rate("
                        f"prompt_sidecar_upstream_request_duration_seconds_bucket{{{WHERE}}}[$__rate_interval])))",
                        f"{{{{endpoint}}}} {name}",
                    )
                    for quantile, name in ((0.5, "50 %"), (0.95, "95 %"))
                ),
                unit=SECONDS,
                runbook="upstream-slow",
                steps=((None, GREEN), (0.5, YELLOW), (1.0, RED)),
            )
        )
        .with_panel(
            graph(
                "Last failures, seconds ago",
                "The lowest line says what is wrong now.",
                Query(
                    f"time() - max by (reason) (prompt_sidecar_upstream_last_failure_timestamp_seconds{{{WHERE}}})",
                    "{{reason}}",
                ),
                unit=SECONDS,
                runbook="upstream-failing",
            )
        )
        .with_panel(
            graph(
                "Retries by reason",
                "Attempts made again, within retry.budget.",
                Query(
                    f"sum by (reason) (rate(prompt_sidecar_retries_total{{{WHERE}}}[$__rate_interval]))", "{{reason}}"
                ),
                unit=RATE,
                runbook="upstream-failing",
            )
        )
        .with_panel(
            states(
                "Store",
                "In trouble: serving goes on without it.",
                Query(f"min by (pod, instance) (prompt_sidecar_store_ok{{{WHERE}}})", "{{pod}} {{instance}}"),
                names={1: ("works", GREEN), 0: ("in trouble", RED)},
                runbook="store-degraded",
            )
        )
    )
