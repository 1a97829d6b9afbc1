"""The `bonsai` command: one name for the project's programs.

It becomes `python -m PACKAGE` and imports none of them: starting it costs nothing, and doors stay shut.
"""

import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence

PROGRAMS = {
    "up": (["gateway", "up"], "start policy, reward model and gateway as one local stack"),
    "gateway": (["gateway"], "the gateway alone, in front of servers that run already"),
    "rm-server": (["rm_server"], "serve reward models over HTTP"),
    "train": (["trainers"], "make checkpoints: sft, reward, dpo, ..."),
    "load": (["loadtests"], "measure a running gateway under load"),
}
EXAMPLES = """\
examples:
  bonsai train sft --help
  bonsai up --policy runs/demo/dpo --reward-model runs/demo/reward
  bonsai load chat --url http://127.0.0.1:8000 --rate 10 --seconds 10
"""
Execute = Callable[[str, list[str]], object]


def help_text() -> str:
    """What there is, and how to go on."""
    rows = [f"  {name:<10} {text}" for name, (_, text) in PROGRAMS.items()]
    usage = "usage: bonsai COMMAND [flags]; `bonsai COMMAND --help` lists a command's flags"
    return "\n".join([usage, "", *rows, "", EXAMPLES])


def main(argv: Sequence[str] | None = None, execute: Execute = os.execv) -> int:
    """Become the program that the first word names; 0 after help or version, 2 for a word that names none."""
    words = list(sys.argv[1:] if argv is None else argv)
    first = words[0] if words else "--help"
    if first in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if first == "--version":
        print(f"bonsai {importlib.metadata.version('bonsai-gateway')}")
        return 0
    if first not in PROGRAMS:
        print(f"bonsai: there is no command {first!r}; there are {', '.join(PROGRAMS)}", file=sys.stderr)
        return 2
    module, _ = PROGRAMS[first]
    execute(sys.executable, [sys.executable, "-m", *module, *words[1:]])
    return 0
