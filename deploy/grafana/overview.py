"""The fleet: every sidecar of the namespaces that are chosen."""

from grafana_foundation_sdk.builders import dashboard

from deploy.grafana.frame import GROUP, OVERVIEW, page
from deploy.grafana.panels import GREEN, RED, SHARE, YELLOW, Query, graph
from deploy.grafana.row_capacity import capacity
from deploy.grafana.row_causes import why
from deploy.grafana.row_changes import changed
from deploy.grafana.row_users import failing, stale


def overview() -> dashboard.Dashboard:
    """Return the page of the fleet."""
    built = page(OVERVIEW, "prompt-sidecar: the fleet", "Rows in the order of an on-call's questions.", many_pods=True)
    built = failing(built, by="pod")
    built = stale(built)
    built = why(built)
    built = changed(built)
    built = capacity(built)
    return _objectives(built)


def _objectives(built: dashboard.Dashboard) -> dashboard.Dashboard:
    """Add the row that says whether the objectives are met."""
    built = built.with_row(dashboard.Row("Are the objectives met? (30 days: 99.9 % answered, 99 % fresh)"))
    for name, rule, budget, runbook in (
        ("Without a prompt", "availability_errors", 0.001, "availability"),
        ("From stale data", "freshness_errors", 0.01, "freshness"),
    ):
        built = built.with_panel(
            graph(
                f"{name}: share by window",
                f"The objective bears {budget:.1%} over 30 days (the line).",
                *(
                    Query(f"max(prompt_sidecar:{rule}:ratio_rate{window}{{{GROUP}}})", window)
                    for window in ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
                ),
                unit=SHARE,
                span=12,
                runbook=runbook,
                steps=((None, GREEN), (budget, YELLOW), (14.4 * budget, RED)),
            )
        )
    return built
