"""A Prometheus that watches servers on this machine while a command runs, and a picture of what it saw.

    python -m deploy.watch --gateway 127.0.0.1:8000 --rm-server 127.0.0.1:8001 --vllm 127.0.0.1:8002 \\
        --picture overview.png -- python -m loadtests sustained --stack runs/demo/ready.json

Configuration and rules are those of deploy/prometheus, with these addresses put in. The program `prometheus`
has to be there (Debian: apt-get install prometheus). The exit code is the command's.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import yaml

from deploy.grafana.__main__ import DASHBOARDS
from deploy.grafana.picture import Source, draw, save

FOLDER = Path(__file__).parent / "prometheus"
START_LIMIT_S = 30.0
LAST_LOOKS = 2
"""Scrapes that are waited for after the command, so that its end is in the picture."""


class WatchError(Exception):
    """Why nothing is watched: one line."""


def configuration(targets: Mapping[str, Sequence[str]], interval_s: float) -> dict[str, Any]:
    """deploy/prometheus/prometheus.yml with these addresses by job; jobs that have none are left out."""
    config: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    every = f"{interval_s * 1000:.0f}ms"
    config["global"] = {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every}
    config["rule_files"] = [str(FOLDER / file) for file in config["rule_files"]]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    config["scrape_configs"] = [
        jobs[name] | {"static_configs": [{"targets": list(places)}]}
        for name, places in targets.items()
        if places
    ]
    return config


@contextmanager
def prometheus(
    folder: Path, targets: Mapping[str, Sequence[str]], *, port: int, interval_s: float
) -> Iterator[str]:
    """Its address, once it answers; it ends with this.

    Raises:
        WatchError: there is no such program, its port is in use, or it does not start.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise WatchError("there is no program `prometheus` here (Debian: apt-get install prometheus)")
    _check_free(port)  # else the one that has it would be asked, for it answers
    address = f"127.0.0.1:{port}"
    file = folder / "prometheus.yml"
    watched = {**targets, "prometheus": [address]}
    file.write_text(yaml.safe_dump(configuration(watched, interval_s)), encoding="utf-8")
    command = [program, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address={address}", "--log.level=warn"]
    with subprocess.Popen(command) as process:
        try:
            _wait_ready(process, f"http://{address}/-/ready")
            yield f"http://{address}"
        finally:
            process.terminate()


def _check_free(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        raise WatchError(f"port {port} is in use; choose another by --port") from None


def _wait_ready(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise WatchError("prometheus did not start; it has said why")


def build_parser() -> argparse.ArgumentParser:
    """Every flag."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.watch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag, whose in (
        ("--gateway", "a gateway's"),
        ("--rm-server", "a reward server's"),
        ("--vllm", "a vLLM server's"),
        ("--training", "of python -m trainers.exporter"),
    ):
        parser.add_argument(
            flag, action="append", default=[], metavar="HOST:PORT", help=f"{whose}; may stand several times"
        )
    parser.add_argument("--port", type=int, default=9090, help="of Prometheus (default: %(default)s)")
    parser.add_argument(
        "--interval", type=float, default=5.0, metavar="S", help="between scrapes (default: %(default)g)"
    )
    parser.add_argument("--picture", type=Path, metavar="PNG", help="drawn after the command")
    boards = {board.uid: board for board in DASHBOARDS}
    parser.add_argument(
        "--dashboard", choices=boards, default="bonsai-overview", help="to draw (default: %(default)s)"
    )
    parser.add_argument("command", nargs="+", help="what to run meanwhile")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Watch, run, draw; the command's exit code, or 2 where nothing could be watched."""
    options = build_parser().parse_args(argv)
    targets = {"gateway": options.gateway, "rm_server": options.rm_server, "vllm": options.vllm}
    targets["training"] = options.training
    try:
        with (
            TemporaryDirectory() as folder,
            prometheus(Path(folder), targets, port=options.port, interval_s=options.interval) as url,
        ):
            return _run_and_draw(options, url)
    except (WatchError, httpx.HTTPError) as error:
        print(f"watch: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run_and_draw(options: argparse.Namespace, url: str) -> int:
    begin = time.monotonic()
    try:
        code = subprocess.run(options.command, check=False).returncode
    except OSError as error:
        raise WatchError(f"{options.command[0]}: {error.strerror}") from None
    if options.picture is not None:
        time.sleep(LAST_LOOKS * options.interval)
        [board] = [board for board in DASHBOARDS if board.uid == options.dashboard]
        save(draw(board, Source(url, time.monotonic() - begin)), options.picture)
        print(f"drawn: {options.picture}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
