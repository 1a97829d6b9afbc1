"""`python -m deploy.grafana [--check]`: see deploy.grafana."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy import grafana
from deploy.grafana import best_of_n, overview, reward_model, training, upstreams
from deploy.grafana.panels import Dashboard

FOLDER = Path(__file__).parent / "dashboards"
DASHBOARDS = (
    overview.DASHBOARD,
    best_of_n.DASHBOARD,
    upstreams.DASHBOARD,
    reward_model.DASHBOARD,
    training.DASHBOARD,
)


def text(dashboard: Dashboard) -> str:
    """What its file holds."""
    return json.dumps(dashboard.render(), indent=1, ensure_ascii=False) + "\n"


def stale(folder: Path) -> list[str]:
    """The files that are not as they would be written, strangers among them."""
    wanted = {f"{dashboard.uid}.json": text(dashboard) for dashboard in DASHBOARDS}
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    return sorted(name for name in wanted | found if wanted.get(name) != found.get(name))


def write(folder: Path) -> None:
    """All of them, and none besides."""
    for path in folder.glob("*.json"):
        path.unlink()
    for dashboard in DASHBOARDS:
        (folder / f"{dashboard.uid}.json").write_text(text(dashboard), encoding="utf-8")


def main(argv: Sequence[str] | None = None, folder: Path = FOLDER) -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.grafana",
        description=grafana.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where files are stale"
    )
    if not parser.parse_args(argv).check:
        write(folder)
        return 0
    names = stale(folder)
    if names:
        print(f"run python -m deploy.grafana: {', '.join(names)} would change", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
