"""`python -m loadtests.fakes vllm|reward|proxy`: see loadtests.fakes."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

import msgspec
import uvloop

from loadtests import fakes
from loadtests.errors import LoadTestError
from loadtests.fakes.http_server import Serve, listen
from loadtests.fakes.proxy import FaultProxy
from loadtests.fakes.reward import FakeRewardServer
from loadtests.fakes.script import ProxyScript, RewardScript, VllmScript
from loadtests.fakes.vllm import FakeVllm


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.fakes",
        description=fakes.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=["vllm", "reward", "proxy"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", metavar="URL", help="what the proxy stands before")
    parser.add_argument("--script", default="{}", metavar="JSON", help="(default: answer at once, no faults)")
    return parser


def make(kind: str, script: str, upstream: str | None) -> Serve:
    """The fake. msgspec.DecodeError where the script is none, LoadTestError where the upstream is."""
    if (kind == "proxy") != (upstream is not None):
        raise LoadTestError("--upstream is for the proxy, which needs it")
    if upstream is not None:
        return FaultProxy(msgspec.json.decode(script, type=ProxyScript), upstream)
    if kind == "vllm":
        return FakeVllm(msgspec.json.decode(script, type=VllmScript))
    return FakeRewardServer(msgspec.json.decode(script, type=RewardScript))


async def serve(fake: Serve, port: int) -> None:
    """Listen on loopback until SIGTERM or Ctrl-C."""
    server = await listen(fake, port)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    port = server.sockets[0].getsockname()[1]
    print(f"fake: serving on http://127.0.0.1:{port}", file=sys.stderr, flush=True)
    await stopped.wait()
    server.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        fake = make(args.kind, args.script, args.upstream)
    except msgspec.DecodeError as error:
        parser.error(f"--script: {error}")
    except LoadTestError as error:
        parser.error(str(error))
    try:
        uvloop.run(serve(fake, args.port))
    except OSError as error:
        print(f"fake: cannot listen on port {args.port}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
