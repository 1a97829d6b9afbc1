"""Stand-ins for the stack's children: programs of a few lines that do as told, and a way to see them end."""

import os
import select
import sys
from pathlib import Path

from gateway.launch_checks import choose_ports
from gateway.launch_specs import ChildSpec

# argv: port, file. Starts a child of its own that ignores SIGTERM (as an engine in trouble would), writes its
# process id to the file, then serves 200 on every path.
SERVER = """
import http.server, subprocess, sys
stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
grandchild = subprocess.Popen([sys.executable, "-I", "-c", stubborn])
open(sys.argv[2], "w").write(str(grandchild.pid))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
DYING = """
import sys
print("loading the model")
print("Traceback (most recent call last):")
print("ValueError: the rope is too short")
print("shutting down")
sys.exit(int(sys.argv[1]))
"""
SILENT = "import signal; print('still thinking', flush=True); signal.pause()"
# argv: port. Serves 200 on every path and ignores SIGTERM.
DEAF = """
import http.server, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def free_port() -> int:
    """A port that nothing listens on."""
    return choose_ports([("--port", "127.0.0.1", 0)])[0]


def serving(name: str, folder: Path, port: int | None = None) -> ChildSpec:
    """A child that becomes ready; its own child's process id goes to FOLDER/NAME.pid."""
    port = port or free_port()
    return child(name, SERVER, str(port), str(folder / f"{name}.pid"), port=port)


def child(name: str, program: str, *argv: str, port: int = 9, grace_s: float = 10.0) -> ChildSpec:
    """A child that runs a program given as text."""
    command = (sys.executable, "-I", "-c", program, *argv)
    return ChildSpec(name=name, command=command, ready_url=f"http://127.0.0.1:{port}/", grace_s=grace_s)


def has_ended(pid: int, within_s: float = 30.0) -> bool:
    """Wait until a process, ours or not, has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], within_s)[0])
    finally:
        os.close(handle)
