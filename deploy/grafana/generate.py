"""Write the dashboards: `python -m deploy.grafana.generate`; with `--check` say which are not current."""

import argparse
import sys
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.overview import overview
from deploy.grafana.pod import pod

FOLDER = Path(__file__).parent
PAGES = {"overview.json": overview, "pod.json": pod}


def as_json(page: dashboard.Dashboard) -> str:
    """Return a dashboard as Grafana imports it; its panels are numbered, so that links to them last."""
    built = page.build()
    for number, panel in enumerate(built.panels or [], start=1):
        panel.id_val = number
    return JSONEncoder(indent=2, sort_keys=True, ensure_ascii=False).encode(built) + "\n"


def main() -> None:
    """Write the dashboards, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name, page in PAGES.items():
        path, text = FOLDER / name, as_json(page())
        if check and path.read_text(encoding="utf-8") != text:
            stale.append(name)
        elif not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.exit(f"not current: {', '.join(stale)}; run make dashboards")


if __name__ == "__main__":
    main()
