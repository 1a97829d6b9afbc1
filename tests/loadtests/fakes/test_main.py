"""`python -m loadtests.fakes` as a user starts it."""

import socket

import pytest

from loadtests.fakes.__main__ import main
from loadtests.fakes.script import RewardScript
from loadtests.processes import cores
from loadtests.stand import fake


async def test_it_serves_and_leaves_with_exit_code_0_when_asked_to() -> None:
    with fake("reward", RewardScript(delay_ms=1.5), cores()[1]) as running:
        assert (await running.state()).calls == 0
        await running.obey(RewardScript())
        process = running.server.process
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            ["vllm", "--port", "1", "--script", '{"token": 1}'],
            "--script: Object contains unknown field `token`",
        ),
        (["vllm"], "--port"),
        (["oracle", "--port", "1"], "oracle"),
    ],
)
def test_flags_that_make_no_sense_exit_with_2(
    line: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["vllm", "--port", str(port)]) == 2
    assert capsys.readouterr().err.startswith(f"fake: cannot listen on port {port}: ")
