"""`python -m gateway check`: is the configuration right, do the servers answer, do they take the same chats?

Takes the gateway's own flags. Exit code 0: all is well, or there are warnings only; 1: a server does not
answer as it should; 2: the configuration cannot work. `--schema` prints the JSON schema of the file instead.
"""

import asyncio
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from gateway import config_file
from gateway.config import ConfigError, GatewayConfig
from gateway.examine import Finding, examine
from gateway.flags import read_flags
from gateway.reward_clients import RewardReplicas
from gateway.runtime import Runtime
from gateway.vllm_client import VllmPolicy

COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    if "--schema" in argv:
        print(config_file.json_schema().decode())
        return 0
    load, _ = read_flags(argv, prog="python -m gateway check")
    try:
        findings = asyncio.run(_examine(load()))
    except ConfigError as error:
        print(f"gateway check: {error}", file=sys.stderr)
        return 2
    _show(findings)
    return 1 if any(finding.level == "error" for finding in findings) else 0


async def _examine(config: GatewayConfig) -> list[Finding]:
    runtime = Runtime.build(config, VllmPolicy, RewardReplicas)
    try:
        return await examine(runtime)
    finally:
        await runtime.close()


def _show(findings: Sequence[Finding]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        colour = COLOURS[finding.level]
        table.add_row(f"[{colour}]{finding.level}[/]", finding.subject, finding.text)
    Console().print(table)
