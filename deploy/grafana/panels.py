"""Panels as an on-call reads them: a question, a unit, and where to go on."""

from collections.abc import Mapping
from typing import NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

RUNBOOKS = "https://git.example.com/prompt-sidecar/blob/main/docs/runbooks/"
"""Where docs/runbooks/ can be read; the same as in the alerts."""
SOURCE = models.DataSourceRef(type_val="prometheus", uid="$datasource")
GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"
HEIGHT = 7
"""Of a panel, in Grafana's units of about 30 pixels."""
NONE, RATE = units.Short, units.RequestsPerSecond
SHARE, SECONDS, BYTES, SINCE = units.PercentUnit, units.Seconds, units.BytesIEC, units.Seconds

Steps = tuple[tuple[float | None, str], ...]
"""From which value on which colour; the first has None."""
NOUGHT: Steps = ((None, GREEN), (1.0, RED))
"""None is well, one is not."""
BAD: Steps = ((None, GREEN), (0.001, YELLOW), (0.01, RED))
"""Shares of requests that fail: the objective, and ten times that."""
LEFT: Steps = ((None, RED), (300.0, YELLOW), (900.0, GREEN))
"""Seconds that are left: the alert's five minutes, and the usual quarter of an hour."""
COVERING = 'reason=~"stale-if-error|network-timeout"'
"""Stale data that stands in for a service that does not answer."""


class Query(NamedTuple):
    """A PromQL expression, and what its series are called."""

    expr: str
    legend: str = ""


def _target(query: Query, place: int, *, instant: bool = False) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + place))
    target = target.datasource(SOURCE)
    return target.instant() if instant else target.range()


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=color) for value, color in steps])
    )


def _links(runbook: str | None) -> list[dashboard.DashboardLink]:
    if runbook is None:
        return []
    return [
        dashboard.DashboardLink(f"Runbook: {runbook}").url(f"{RUNBOOKS}{runbook}.md").target_blank(target_blank=True)
    ]


def graph(
    title: str,
    about: str,
    *queries: Query,
    unit: str = NONE,
    span: int = 8,
    runbook: str | None = None,
    steps: Steps = (),
    stacked: bool = False,
) -> timeseries.Panel:
    """Return a graph over time; a line is drawn at each threshold but the first."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .height(HEIGHT)
        .span(span)
        .fill_opacity(40 if stacked else 10)
        .line_width(1)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
        )
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
        .links([*_links(runbook)])
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if steps:
        panel = panel.thresholds(_thresholds(steps)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_models.GraphTresholdsStyleMode.LINE)
        )
    for place, query in enumerate(queries):
        panel = panel.with_target(_target(query, place))
    return panel


def number(
    title: str,
    about: str,
    query: Query,
    *,
    unit: str = NONE,
    span: int = 4,
    runbook: str | None = None,
    steps: Steps = ((None, BLUE),),
    nothing: str = "none",
) -> stat.Panel:
    """Return the present value, coloured by its thresholds; `nothing`: what stands where there is none."""
    panel = (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .height(4)
        .span(span)
        .no_value(nothing)
        .thresholds(_thresholds(steps))
        .color_mode(common_models.BigValueColorMode.BACKGROUND)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .links([*_links(runbook)])
    )
    return panel.with_target(_target(query, 0, instant=True))


def states(
    title: str,
    about: str,
    query: Query,
    *,
    names: Mapping[int, tuple[str, str]],
    span: int = 8,
    runbook: str | None = None,
) -> statetimeline.Panel:
    """Return a timeline of states; `names`: value → what it is called, and its colour."""
    mapping = models.ValueMap(
        options={
            str(value): models.ValueMappingResult(text=text, color=color, index=index)
            for index, (value, (text, color)) in enumerate(names.items())
        }
    )
    return (
        statetimeline.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .mappings([mapping])
        .height(HEIGHT)
        .span(span)
        .show_value(common_models.VisibilityMode.NEVER)
        .merge_values(merge_values=True)
        .links([*_links(runbook)])
        .with_target(_target(query, 0))
    )
