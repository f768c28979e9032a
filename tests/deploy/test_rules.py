"""The rules and alerts of deploy/prometheus, by promtool; and that each alert is tested and leads somewhere."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.cache.memory import MemoryCache
from sidecar.telemetry.metrics import Metrics
from tests.needs import program

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/prometheus"
TESTS = sorted((FOLDER / "tests").glob("*.yaml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def alerts() -> list[Any]:
    return [rule for group in load(FOLDER / "alerts.yaml")["groups"] for rule in group["rules"]]


def names() -> list[str]:
    return list(dict.fromkeys(rule["alert"] for rule in alerts()))


def run(*arguments: str) -> str:
    promtool = program("promtool", from_="the Debian package prometheus")
    done = subprocess.run([promtool, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_valid() -> None:
    run("check", "rules", "--lint-fatal", "rules.yaml", "alerts.yaml")


def test_the_scrape_configuration_is_valid(tmp_path: Path) -> None:
    configuration = load(FOLDER / "scrape.yaml")
    (job,) = configuration["scrape_configs"]
    assert job["job_name"] == "prompt-sidecar"  # as the alerts want it
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]  # Debian's build knows no Kubernetes
    (tmp_path / "scrape.yaml").write_text(yaml.safe_dump(configuration))
    run("check", "config", "--syntax-only", str(tmp_path / "scrape.yaml"))


def test_what_is_scraped_are_the_sidecars_of_the_manifests_that_run(tmp_path: Path) -> None:
    (job,) = load(FOLDER / "scrape.yaml")["scrape_configs"]
    del job["kubernetes_sd_configs"]
    patch = load(ROOT / "deploy/kubernetes/components/sidecar/patch.yaml")
    (container,) = patch["spec"]["template"]["spec"]["initContainers"]
    (port,) = container["ports"]
    found = {"container_name": container["name"], "container_port_name": port["name"], "phase": "Running"}
    others: list[dict[str, str]] = [{}, {"container_port_name": "http"}, {"phase": "Failed"}, {"phase": "Succeeded"}]
    job["static_configs"] = [
        {
            "targets": [f"10.0.0.{n}:9102"],
            "labels": {
                "__meta_kubernetes_namespace": "prod",
                **{f"__meta_kubernetes_pod_{key}": value for key, value in {**found, "name": f"p{n}", **other}.items()},
            },
        }
        for n, other in enumerate(others)
    ]
    (tmp_path / "scrape.yaml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
    answer = run("check", "service-discovery", "--timeout=1s", str(tmp_path / "scrape.yaml"), job["job_name"])
    labels = [target["labels"] for target in json.loads(answer) if target["labels"]]
    assert [(each["job"], each["namespace"], each["pod"]) for each in labels] == [("prompt-sidecar", "prod", "p0")]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_each_alert_fires_when_it_should_and_not_when_it_should_not(path: Path) -> None:
    run("test", "rules", str(path))


@pytest.mark.parametrize("alert", names())
def test_each_alert_is_tested_firing_and_not_firing(alert: str) -> None:
    cases = [case for path in TESTS for test in load(path)["tests"] for case in test["alert_rule_test"]]
    fires = {bool(case["exp_alerts"]) for case in cases if case["alertname"] == alert}
    assert fires == {True, False}


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: f"{rule['alert']} {rule['labels'].get('window', '')}")
def test_each_alert_says_how_bad_how_much_and_what_to_do(rule: Any) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert "$value" in rule["annotations"]["summary"]
    page = re.fullmatch(r"https://\S+/docs/runbooks/([a-z-]+\.md)", rule["annotations"]["runbook_url"])
    assert page is not None
    text = (ROOT / "docs/runbooks" / page[1]).read_text()
    assert f"`{rule['alert']}`" in text
    for heading in ("## What it means", "## How to confirm it", "## What to do"):
        assert heading in text, heading


def test_each_runbook_belongs_to_an_alert_and_is_listed() -> None:
    folder = ROOT / "docs/runbooks"
    pages = {path.name for path in folder.glob("*.md")} - {"README.md"}
    assert pages == {rule["annotations"]["runbook_url"].rpartition("/")[2] for rule in alerts()}
    index = (folder / "README.md").read_text()
    assert all(f"({page})" in index for page in pages)
    assert all(f"`{alert}`" in index for alert in names())


def test_every_metric_that_is_used_exists() -> None:
    there = families()
    files = [*FOLDER.glob("*.yaml"), *(ROOT / "deploy/grafana").glob("*.json"), *(ROOT / "docs").rglob("*.md")]
    for path in files:
        used = set(re.findall(r"\bprompt_sidecar_[a-z0-9_]+", path.read_text()))
        assert {name for name in used if re.sub(r"_(bucket|count|sum)$", "", name) not in there} == set(), path.name


def families() -> set[str]:
    """Return the names of all metrics of a sidecar with a store and a collector."""
    metrics = Metrics(version="1", cache=MemoryCache(max_entries=1, max_bytes=1, clock=lambda: 0.0), traces=True)
    metrics.has_store(_Store())
    return set(re.findall(r"^# TYPE (prompt_sidecar_\w+) ", metrics.expose(None)[0].decode(), re.MULTILINE))


class _Store:
    kind = "file"
    entries = 1
    bytes = 1
