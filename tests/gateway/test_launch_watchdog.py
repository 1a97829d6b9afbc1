"""The watchdog's bookkeeping; that it ends what a killed launcher leaves is tested in test_launch_stack."""

import signal
import subprocess
import sys

from gateway.launch_watchdog import end, group_exists, read_groups, send

NO_SUCH_GROUP = 2**22 + 1  # above the largest process id that Linux gives


def test_groups_that_were_forgotten_are_let_alone() -> None:
    assert read_groups(["+5\n", "+7\n", "-5\n", "+9\n", "-6\n"]) == [7, 9]
    assert read_groups([]) == []


def test_a_group_that_has_gone_is_no_error() -> None:
    assert not group_exists(NO_SUCH_GROUP)
    assert send([NO_SUCH_GROUP], signal.SIGTERM) == []
    end([NO_SUCH_GROUP], grace_s=60.0)


def test_a_group_that_obeys_is_asked_only() -> None:
    program = "import sys; print('up', flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        assert send([child.pid], signal.SIGTERM) == [child.pid]
        assert child.wait() == -signal.SIGTERM
