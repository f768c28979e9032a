"""The row that says whether there is room: speed, cache, process."""

from grafana_foundation_sdk.builders import dashboard

from deploy.grafana.frame import NODES, WHERE
from deploy.grafana.panels import (
    BYTES,
    GREEN,
    NONE,
    RATE,
    RED,
    SECONDS,
    SHARE,
    Query,
    graph,
)


def capacity(page: dashboard.Dashboard) -> dashboard.Dashboard:
    """Add the row that says whether there is room."""
    return (
        page.with_row(dashboard.Row("Is there room? Speed, cache, process"))
        .with_panel(
            graph(
                "How long answers take",
                "Past 4 s LearnFlow is close to giving up.",
                *(
                    Query(
                        f"histogram_quantile({quantile}, sum by (le) "
                        f"(rate(prompt_sidecar_request_duration_seconds_bucket{{{NODES}}}[$__rate_interval])))",
                        name,
                    )
                    for quantile, name in ((0.5, "50 %"), (0.99, "99 %"))
                ),
                unit=SECONDS,
                span=6,
                runbook="availability",
            )
        )
        .with_panel(
            graph(
                "Answered without a call",
                "Of what is answered from here, the share made from fresh data. 0 where the strategy is network-first.",
                Query(
                    f'sum(rate(prompt_sidecar_requests_total{{{NODES},outcome="fresh"}}[$__rate_interval]))'
                    f' / (sum(rate(prompt_sidecar_requests_total{{{NODES},outcome=~"fresh|stale|miss"}}'
                    "[$__rate_interval])) > 0)",
                    "hits",
                ),
                unit=SHARE,
                span=6,
                runbook="hit-ratio",
            )
        )
        .with_panel(
            graph(
                "Entries kept",
                "At cache.max_entries the oldest make room.",
                Query(
                    f"sum by (pod, instance, tier) (prompt_sidecar_cache_entries{{{WHERE}}})",
                    "{{pod}} {{instance}} {{tier}}",
                ),
                unit=NONE,
                span=6,
                runbook="hit-ratio",
            )
        )
        .with_panel(
            graph(
                "Evictions",
                "Many for entries or bytes: raise that limit, or fewer survive an outage.",
                Query(
                    f"sum by (tier, reason) (rate(prompt_sidecar_cache_evictions_total{{{WHERE}}}[$__rate_interval]))",
                    "{{tier}} {{reason}}",
                ),
                unit=RATE,
                span=6,
                runbook="hit-ratio",
            )
        )
        .with_panel(
            graph(
                "Processor",
                "Of one core: a sidecar uses one.",
                Query(
                    "sum by (pod, instance) (rate(process_cpu_seconds_total"
                    f'{{job="prompt-sidecar",{WHERE}}}[$__rate_interval]))',
                    "{{pod}} {{instance}}",
                ),
                unit=SHARE,
                span=6,
                steps=((None, GREEN), (0.8, RED)),
            )
        )
        .with_panel(
            graph(
                "Memory",
                "Resident. cache.max_bytes bounds what is kept.",
                Query(
                    f'sum by (pod, instance) (process_resident_memory_bytes{{job="prompt-sidecar",{WHERE}}})',
                    "{{pod}} {{instance}}",
                ),
                unit=BYTES,
                span=6,
            )
        )
        .with_panel(
            graph(
                "Look-ups by tier",
                "A falling share of hits means more calls to the config service.",
                Query(
                    f"sum by (tier, result) (rate(prompt_sidecar_cache_lookups_total{{{WHERE}}}[$__rate_interval]))",
                    "{{tier}} {{result}}",
                ),
                unit=RATE,
                span=6,
                runbook="hit-ratio",
            )
        )
        .with_panel(
            graph(
                "Pairs warmed up",
                "Users and nodes that a warm-up dealt with. failed: /status of the pod says why.",
                Query(
                    f"sum by (result) (rate(prompt_sidecar_warmup_pairs_total{{{WHERE}}}[$__rate_interval]))",
                    "{{result}}",
                ),
                unit=RATE,
                span=6,
            )
        )
        .with_panel(
            graph(
                "Requests that shared a fetch",
                "One call answered them all.",
                Query(f"sum(rate(prompt_sidecar_coalesced_requests_total{{{WHERE}}}[$__rate_interval]))", "shared"),
                unit=RATE,
                span=6,
            )
        )
    )
