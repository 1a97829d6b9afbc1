"""What a line says, what it never says, and that nothing in it can forge another or paint a terminal."""

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.log_format import RequestLine, as_json, as_text, level_of, of_record

WHEN = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
CANARY = "canary-7f3a"
TEXTS = st.text(st.characters(categories=None)) | st.text(
    st.sampled_from("\n\r\x1b[31m\x7f\u202e\u2028\ud800😀a")
)


def request_line(**fields: Any) -> RequestLine:
    """A line with what is always there."""
    always: dict[str, Any] = {
        "ts": WHEN,
        "level": "info",
        "event": "request",
        "request_id": "id-1",
        "method": "POST",
    }
    also = {"route": "/v1/chat/completions", "model": "tiny", "status": 200, "duration_ms": 12.345}
    return RequestLine(**(always | also | fields))


def record(message: str, *args: object, name: str = "gateway", **extra: Any) -> logging.LogRecord:
    """As `logging` makes it; with the exception that is being handled."""
    exc_info = sys.exc_info() if sys.exception() else None
    made = logging.LogRecord(name, logging.WARNING, "a.py", 1, message, args, exc_info)
    made.created = WHEN.timestamp()
    made.__dict__.update(extra)
    return made


def failure(act: Callable[[], object]) -> dict[str, Any]:
    """The line of an exception."""
    try:
        act()
    except BaseException:
        return of_record(record("failed"))
    raise AssertionError


def test_a_request_in_json() -> None:
    line = request_line(
        queue_ms=0.5, best_of=8, scored=7, degraded="greedy", tokens=99, replica="a:1", key="k"
    )
    assert json.loads(as_json(line)) == {
        "ts": "2026-01-02T03:04:05.678000Z",
        "level": "info",
        "event": "request",
        "request_id": "id-1",
        "method": "POST",
        "route": "/v1/chat/completions",
        "model": "tiny",
        "status": 200,
        "duration_ms": 12.345,
        "queue_ms": 0.5,
        "best_of": 8,
        "scored": 7,
        "degraded": "greedy",
        "tokens": 99,
        "replica": "a:1",
        "key": "k",
    }


def test_what_a_request_had_not_is_left_out() -> None:
    assert list(json.loads(as_json(request_line())))[-2:] == ["status", "duration_ms"]


def test_a_request_as_text() -> None:
    assert as_text(request_line(best_of=4)).decode() == (
        "03:04:05 info     request request_id=id-1 method=POST route=/v1/chat/completions model=tiny"
        " status=200 duration_ms=12.345 best_of=4\n"
    )


def test_a_report_in_json() -> None:
    assert of_record(record("%d of %s", 2, "three", request_id="id-1")) == {
        "ts": WHEN,
        "level": "warning",
        "event": "log",
        "logger": "gateway",
        "message": "2 of three",
        "request_id": "id-1",
    }


def test_arguments_that_do_not_fit_are_no_new_failure() -> None:
    assert of_record(record("%d of %s", "two"))["message"] == "%d of %s"


@given(TEXTS)
def test_any_message_is_one_line_of_plain_ascii_json_that_reads_back(text: str) -> None:
    data = as_json(of_record(record("%s", text)))
    assert data.isascii()
    assert data.endswith(b"\n")
    assert b"\n" not in data[:-1]
    assert b"\x1b" not in data
    assert len(data) <= 4096
    read = json.loads(data)["message"]
    assert read == text[: len(read)]
    assert len(read) >= min(len(text), 200)


@given(TEXTS)
def test_any_message_is_one_line_of_visible_text(text: str) -> None:
    data = as_text(of_record(record("%s", text))).decode()
    assert data.endswith("\n")
    assert data[:-1].isprintable()


def test_a_failure_is_its_type_and_place_but_never_what_it_says() -> None:
    def break_down() -> None:
        raise KeyError(CANARY)

    def give_up() -> None:
        try:
            break_down()
        except KeyError as error:
            raise ValueError(CANARY) from error

    line = failure(give_up)
    assert line["error"] == "ValueError"
    assert [place.rsplit(" ", 1)[-1] for place in line["traceback"]] == [
        "failure",
        "give_up",
        "KeyError",
        "give_up",
        "break_down",
    ]
    assert CANARY not in as_json(line).decode() + as_text(line).decode()
    assert as_text(line).decode().splitlines()[3].strip() == "from KeyError"


def test_a_suppressed_cause_is_not_followed() -> None:
    def give_up() -> None:
        try:
            raise KeyError
        except KeyError:
            raise ValueError from None

    assert "from KeyError" not in failure(give_up)["traceback"]


def test_a_group_names_what_it_holds() -> None:
    def fail() -> None:
        raise ExceptionGroup(CANARY, [ValueError(CANARY), OSError(28, CANARY)])

    line = failure(fail)
    assert line["error"] == "ExceptionGroup of ValueError, OSError ENOSPC"
    assert CANARY not in as_json(line).decode()


def test_an_endless_recursion_fits_into_a_line() -> None:
    def endless() -> None:
        endless()

    line = failure(endless)
    assert line["error"] == "RecursionError"
    assert len(as_json(line)) <= 4096


def test_of_other_libraries_only_the_first_line_is_taken() -> None:
    line = of_record(record(f"Exception in ASGI application\n{CANARY}", name="uvicorn.error"))
    assert line["message"] == "Exception in ASGI application"


async def test_asyncio_tells_nothing_of_what_a_callback_or_a_task_was_about() -> None:
    heard: list[logging.LogRecord] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record)

    def break_down(text: str) -> None:
        raise ValueError(text)

    async def fail() -> None:
        raise ValueError(CANARY)

    ear = Ear()
    logging.getLogger("asyncio").addHandler(ear)
    try:
        asyncio.get_running_loop().call_soon(break_down, CANARY)
        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        del task
        await asyncio.sleep(0)
    finally:
        logging.getLogger("asyncio").removeHandler(ear)
    callback, unretrieved = (of_record(record)["message"] for record in heard)
    assert callback.startswith("Exception in callback test_")
    assert unretrieved == "Task exception was never retrieved"
    assert CANARY in heard[0].getMessage()
    assert CANARY not in b"".join(as_json(of_record(record)) for record in heard).decode()


@pytest.mark.parametrize(
    ("status", "late_code", "level"),
    [
        (200, None, "INFO"),
        (404, None, "INFO"),
        (499, None, "INFO"),
        (500, None, "ERROR"),
        (503, None, "WARNING"),
        (200, "499", "INFO"),
        (200, "stopping", "WARNING"),
        (200, "500", "ERROR"),
    ],
)
def test_how_bad_an_end_is(status: int, late_code: str | None, level: str) -> None:
    assert logging.getLevelName(level_of(status, late_code)) == level
