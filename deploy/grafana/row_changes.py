"""The row that says what changed: settings, rollout, parity."""

from grafana_foundation_sdk.builders import dashboard

from deploy.grafana.frame import NODES, WHERE
from deploy.grafana.panels import (
    NOUGHT,
    RATE,
    SINCE,
    Query,
    graph,
    number,
)


def changed(page: dashboard.Dashboard) -> dashboard.Dashboard:
    """Add the row that says what changed: reloads, rollout, parity."""
    return (
        page.with_row(dashboard.Row("What changed? Settings, rollout, parity"))
        .with_panel(
            number(
                "Reloads that failed",
                "Sidecars that run with old settings, because the file has a mistake.",
                Query(f"count(prompt_sidecar_config_last_reload_successful{{{WHERE}}} == 0) or vector(0)"),
                span=6,
                runbook="reload-failed",
                steps=NOUGHT,
            )
        )
        .with_panel(
            number(
                "Settings last taken",
                "Seconds ago, anywhere.",
                Query(f"time() - max(prompt_sidecar_config_last_reload_success_timestamp_seconds{{{WHERE}}})"),
                unit=SINCE,
                span=6,
                runbook="reload-failed",
            )
        )
        .with_panel(
            number(
                "Nodes rolled back",
                "Taken back to the service's own rendering: no cover in an outage.",
                Query(f"count(max by (node) (prompt_sidecar_rolled_back{{{WHERE}}}) == 1) or vector(0)"),
                span=6,
                runbook="parity",
                steps=NOUGHT,
            )
        )
        .with_panel(
            number(
                "Template files with a mistake",
                "The old templates are in force.",
                Query(f"count(prompt_sidecar_templates_file_ok{{{WHERE}}} == 0) or vector(0)"),
                span=6,
                runbook="reload-failed",
                steps=NOUGHT,
            )
        )
        .with_panel(
            graph(
                "Sidecars by version",
                "Two lines during a rollout.",
                Query(f"count by (version) (prompt_sidecar_build_info{{{WHERE}}})", "{{version}}"),
                span=6,
            )
        )
        .with_panel(
            graph(
                "Not answered from here",
                "rollout: as the settings say; parity and not-admitted are worth a look.",
                Query(
                    f"sum by (reason) (rate(prompt_sidecar_bypassed_requests_total{{{WHERE}}}[$__rate_interval]))",
                    "{{reason}}",
                ),
                unit=RATE,
                span=6,
                runbook="parity",
            )
        )
        .with_panel(
            graph(
                "Comparisons with the service",
                "mismatch: local rendering of the node is not to be trusted. Needs shadow.sample_rate.",
                Query(
                    f"sum by (node, result) (rate(prompt_sidecar_parity_checks_total{{{NODES}}}[$__rate_interval]))",
                    "{{node}} {{result}}",
                ),
                unit=RATE,
                span=6,
                runbook="parity",
            )
        )
        .with_panel(
            graph(
                "Entries invalidated by source",
                "write: a user changed settings; upstream: the service said that something is gone.",
                Query(
                    f"sum by (source) (rate(prompt_sidecar_invalidations_total{{{WHERE}}}[$__rate_interval]))",
                    "{{source}}",
                ),
                unit=RATE,
                span=6,
            )
        )
    )
