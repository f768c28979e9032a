"""What the dashboards share: variables, annotations, links."""

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from deploy.grafana.panels import BLUE, RUNBOOKS, SOURCE, YELLOW

OVERVIEW, POD = "prompt-sidecar-overview", "prompt-sidecar-pod"
"""The dashboards' uids, by which they link to each other."""
WHERE = 'namespace=~"$namespace",pod=~"$pod"'
"""The sidecars that are looked at."""
NODES = f'{WHERE},node=~"$node"'
GROUP = 'namespace=~"$namespace"'
"""What the recording rules know."""


class Marks(models.AnnotationQuery):
    """An annotation from a query; the SDK does not know how it is titled."""

    title: str = ""
    tags: str = ""

    def to_json(self) -> dict[str, object]:
        """Return what Grafana reads."""
        return {**super().to_json(), "titleFormat": self.title, "tagKeys": self.tags, "step": "15s"}


class MarksBuilder(dashboard.AnnotationQuery):
    """The SDK's own builder, for ours."""

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self._internal = marks


def _marks(name: str, expr: str, color: str, title: str, tags: str) -> MarksBuilder:
    marks = Marks(name=name, datasource=SOURCE, enable=True, icon_color=color, expr=expr)
    marks.title, marks.tags = title, tags
    return MarksBuilder(marks)


def _labels(name: str, query: str, *, many: bool) -> dashboard.QueryVariable:
    variable = (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )
    if many:
        # Without Kubernetes there is no such label; .* then stands for that, too.
        everything = models.VariableOption(text="All", value="$__all", selected=True)
        variable = variable.multi(multi=True).include_all(include_all=True).all_value(".*").current(everything)
    return variable


def page(uid: str, title: str, about: str, *, many_pods: bool) -> dashboard.Dashboard:
    """Return a dashboard without panels."""
    pods = f"label_values(prompt_sidecar_build_info{{{GROUP}}}, pod)"
    nodes = f"label_values(prompt_sidecar_requests_total{{{WHERE}}}, node)"
    other = (POD, "One pod") if uid == OVERVIEW else (OVERVIEW, "The fleet")
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags(["prompt-sidecar"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_labels("namespace", "label_values(prompt_sidecar_build_info, namespace)", many=True))
        .with_variable(_labels("pod", pods, many=many_pods))
        .with_variable(_labels("node", nodes, many=True))
        .annotation(
            _marks(
                "Circuit",
                f"sum by (pod, breaker, to) (increase(prompt_sidecar_breaker_transitions_total{{{WHERE}}}[1m])) > 0",
                YELLOW,
                "{{breaker}} circuit {{to}}",
                "pod",
            )
        )
        .annotation(
            _marks(
                "Reloads",
                "sum by (pod) "
                f"(changes(prompt_sidecar_config_last_reload_success_timestamp_seconds{{{WHERE}}}[1m])) > 0",
                BLUE,
                "settings reloaded",
                "pod",
            )
        )
        .link(
            dashboard.DashboardLink(other[1])
            .type(models.DashboardLinkType.LINK)
            .url(f"/d/{other[0]}")
            .include_vars(include_vars=True)
            .keep_time(keep_time=True)
        )
        .link(
            dashboard.DashboardLink("Runbooks")
            .type(models.DashboardLinkType.LINK)
            .url(f"{RUNBOOKS}README.md")
            .target_blank(target_blank=True)
        )
    )
