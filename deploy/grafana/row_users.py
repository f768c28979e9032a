"""Rows that say what users feel: who fails, and who is served stale data."""

from grafana_foundation_sdk.builders import dashboard

from deploy.grafana.frame import NODES, WHERE
from deploy.grafana.panels import (
    BAD,
    COVERING,
    GREEN,
    LEFT,
    NOUGHT,
    RATE,
    RED,
    SECONDS,
    SHARE,
    YELLOW,
    Query,
    graph,
    number,
)


def failing(page: dashboard.Dashboard, *, by: str) -> dashboard.Dashboard:
    """Add the row that says whether anyone is failing."""
    errors = f'prompt_sidecar_request_errors_total{{{WHERE},status="5xx"}}'
    requests = f"prompt_sidecar_requests_total{{{WHERE}}}"
    return (
        page.with_row(dashboard.Row("Is anyone failing?"))
        .with_panel(
            number(
                "Without a prompt",
                "Share of the last five minutes' requests that ended in a 5xx: LearnFlow's users see these.",
                Query(f"sum(rate({errors}[5m])) / (sum(rate({requests}[5m])) > 0)"),
                unit=SHARE,
                runbook="availability",
                steps=BAD,
                nothing="no requests",
            )
        )
        .with_panel(
            number(
                "Requests",
                "Prompts asked for.",
                Query(f"sum(rate({requests}[5m]))"),
                unit=RATE,
            )
        )
        .with_panel(
            number(
                "Not answering",
                "Sidecars that cannot be scraped.",
                Query(f'count(up{{job="prompt-sidecar",{WHERE}}} == 0) or vector(0)'),
                runbook="sidecar-down",
                steps=NOUGHT,
            )
        )
        .with_panel(
            number(
                "Served stale",
                "Share of the last five minutes' prompts made from stale data because the config service gave none.",
                Query(
                    f"sum(rate(prompt_sidecar_stale_requests_total{{{WHERE},{COVERING}}}[5m]))"
                    f" / (sum(rate({requests}[5m])) > 0) or vector(0)"
                ),
                unit=SHARE,
                runbook="stale-served",
                steps=((None, GREEN), (0.0001, YELLOW), (0.5, RED)),
            )
        )
        .with_panel(
            number(
                "Stale data lasts for",
                "Until the policy ends the use of the oldest stale data that is served; then errors begin.",
                Query(f"min(prompt_sidecar_stale_time_left_seconds{{{NODES}}})"),
                unit=SECONDS,
                runbook="stale-ends-soon",
                steps=LEFT,
                nothing="not needed",
            )
        )
        .with_panel(
            number(
                "Circuits not closed",
                "Sidecars that do not ask the config service now.",
                Query(f'sum(prompt_sidecar_breaker_state{{{WHERE},breaker="upstream",state!="closed"}})'),
                runbook="circuit-open",
                steps=NOUGHT,
            )
        )
        .with_panel(
            graph(
                "Requests by outcome",
                "stale: an outage is being covered (or a revalidation is under way); error: LearnFlow sees it.",
                Query(
                    f"sum by (outcome) (rate(prompt_sidecar_requests_total{{{NODES}}}[$__rate_interval]))",
                    "{{outcome}}",
                ),
                unit=RATE,
                stacked=True,
                runbook="availability",
            )
        )
        .with_panel(
            graph(
                "Errors by reason",
                "5xx: an outage that nothing covers. 4xx: what was asked, or a template, is wrong.",
                Query(
                    f"sum by (status, reason) (rate(prompt_sidecar_request_errors_total{{{WHERE}}}[$__rate_interval]))",
                    "{{status}} {{reason}}",
                ),
                unit=RATE,
                runbook="availability",
            )
        )
        .with_panel(
            graph(
                f"Errors by {by}",
                "Where they are: one of them, or all?",
                Query(
                    f'sum by ({by}) (rate(prompt_sidecar_requests_total{{{NODES},outcome="error"}}[$__rate_interval]))',
                    f"{{{{{by}}}}}",
                ),
                unit=RATE,
                runbook="availability",
            )
        )
    )


def stale(page: dashboard.Dashboard) -> dashboard.Dashboard:
    """Add the row that says who gets stale data, how old it is and how long that will last."""
    return (
        page.with_row(dashboard.Row("Who gets stale data, how old is it, how long will that last?"))
        .with_panel(
            graph(
                "Stale prompts by node",
                "Made from stale data because the config service gave none in time.",
                Query(
                    "sum by (node) "
                    f"(rate(prompt_sidecar_stale_requests_total{{{NODES},{COVERING}}}[$__rate_interval]))",
                    "{{node}}",
                ),
                unit=RATE,
                runbook="stale-served",
            )
        )
        .with_panel(
            graph(
                "Age of what is served (95 %)",
                "Since the config service confirmed it. It rises by a second each second in an outage.",
                Query(
                    "histogram_quantile(0.95, sum by (node, le) "
                    f"(rate(prompt_sidecar_served_age_seconds_bucket{{{NODES}}}[$__rate_interval])))",
                    "{{node}}",
                ),
                unit=SECONDS,
                runbook="freshness",
            )
        )
        .with_panel(
            graph(
                "Time left until the policy ends",
                "Of the oldest stale data served. At 0 its user gets errors. No line: nothing is covered.",
                Query(f"min by (node) (prompt_sidecar_stale_time_left_seconds{{{NODES}}})", "{{node}}"),
                unit=SECONDS,
                runbook="stale-ends-soon",
                steps=((None, RED), (300.0, YELLOW)),
            )
        )
    )
