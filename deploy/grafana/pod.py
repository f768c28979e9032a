"""One pod: the same questions, and what only one can answer."""

from grafana_foundation_sdk.builders import dashboard

from deploy.grafana.frame import NODES, POD, WHERE, page
from deploy.grafana.panels import RATE, SECONDS, SINCE, Query, graph, number
from deploy.grafana.row_capacity import capacity
from deploy.grafana.row_causes import why
from deploy.grafana.row_changes import changed
from deploy.grafana.row_users import failing, stale


def pod() -> dashboard.Dashboard:
    """Return the page of one pod."""
    built = page(POD, "prompt-sidecar: one pod", "Rows in the order of an on-call's questions.", many_pods=False)
    built = failing(built, by="node")
    built = stale(built)
    built = why(built)
    built = changed(built)
    built = capacity(built)
    return _itself(built)


def _itself(built: dashboard.Dashboard) -> dashboard.Dashboard:
    """Add the row that says what this pod is."""
    return (
        built.with_row(dashboard.Row("This pod"))
        .with_panel(
            number(
                "Runs since",
                "Seconds since the process began.",
                Query(f'time() - max(process_start_time_seconds{{job="prompt-sidecar",{WHERE}}})'),
                unit=SINCE,
                span=6,
            )
        )
        .with_panel(
            number(
                "Open files",
                "Sockets included.",
                Query(f'max(process_open_fds{{job="prompt-sidecar",{WHERE}}})'),
                span=6,
            )
        )
        .with_panel(
            number(
                "Generation",
                "Of the config service's API, as it was found out.",
                Query(f"max by (generation) (prompt_sidecar_upstream_generation{{{WHERE}}} == 1)", "{{generation}}"),
                span=6,
            )
        )
        .with_panel(
            number(
                "Templates not admitted",
                "Found so far; the service renders them. /status names them.",
                Query(f"sum(prompt_sidecar_templates_not_admitted_total{{{WHERE}}})"),
                span=6,
            )
        )
        .with_panel(
            graph(
                "Requests by node",
                "Which node is busy.",
                Query(f"sum by (node) (rate(prompt_sidecar_requests_total{{{NODES}}}[$__rate_interval]))", "{{node}}"),
                unit=RATE,
                span=6,
            )
        )
        .with_panel(
            graph(
                "How long answers take, by outcome (99 %)",
                "A hit takes tenths of a millisecond, a miss as long as the service.",
                Query(
                    "histogram_quantile(0.99, sum by (outcome, le) "
                    f"(rate(prompt_sidecar_request_duration_seconds_bucket{{{NODES}}}[$__rate_interval])))",
                    "{{outcome}}",
                ),
                unit=SECONDS,
                span=6,
            )
        )
        .with_panel(
            graph(
                "Rendering (99 %)",
                "Milliseconds point to a heavy template.",
                Query(
                    "histogram_quantile(0.99, sum by (le) "
                    f"(rate(prompt_sidecar_render_duration_seconds_bucket{{{WHERE}}}[$__rate_interval])))",
                    "rendering",
                ),
                unit=SECONDS,
                span=6,
            )
        )
        .with_panel(
            graph(
                "Passed on untouched, by result",
                "What LearnFlow's bot asks.",
                Query(
                    "sum by (method, result) "
                    f"(rate(prompt_sidecar_proxied_requests_total{{{WHERE}}}[$__rate_interval]))",
                    "{{method}} {{result}}",
                ),
                unit=RATE,
                span=6,
            )
        )
    )
