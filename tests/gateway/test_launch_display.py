"""What a person sees while the stack starts, and the three commands offered then."""

import io
import json
import re

import pytest
from rich.console import Console

from gateway.launch_display import LiveDisplay, PlainDisplay, things_to_try
from gateway.launch_stack import Status

STARTING = Status("policy", "starting", 3.2, "Loading weights [1/2]")
READY = Status("policy", "ready", 21.0, "")
WAITING = Status("gateway", "waiting", 0.0, "")


def test_lines_appear_at_changes_only(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainDisplay() as display:
        for statuses in ([STARTING, WAITING], [STARTING, WAITING], [READY, WAITING], [READY, WAITING]):
            display.show(statuses)
    assert capsys.readouterr().out.splitlines() == [
        "policy starting (3 s): Loading weights [1/2]",
        "policy ready (21 s)",
    ]


def test_a_terminal_shows_every_child_and_a_log_line_is_no_markup() -> None:
    screen = io.StringIO()
    with LiveDisplay(Console(file=screen, force_terminal=True, width=120)) as display:
        display.show([STARTING, Status("reward", "starting", 1.0, "[/] " + "x" * 200), WAITING])
    shown = screen.getvalue()
    assert "Loading weights [1/2]" in shown
    assert "[/] xxx" in shown
    assert "waiting" in shown


def test_the_commands_offered_are_whole() -> None:
    text = things_to_try("http://127.0.0.1:8000", "dpo", has_reward=True)
    body = re.search(r"-d '(.+)'", text)
    assert body is not None
    message = {"role": "user", "content": "Hello!"}
    assert json.loads(body.group(1)) == {"model": "dpo", "messages": [message], "best_of": 4}
    program = text.split("openai client:\n")[1].split("\n\n")[0]
    compile(program.replace("\n  ", "\n").strip(), "snippet", "exec")
    assert 'extra_body={"best_of": 4}' in program
    assert "curl http://127.0.0.1:8000/metrics" in text


def test_without_a_reward_model_no_best_of_is_offered() -> None:
    assert "best_of" not in things_to_try("http://127.0.0.1:8000", "dpo", has_reward=False)
