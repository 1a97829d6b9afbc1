"""The guard alone: closed unless listed as open, and the same 401 whatever is wrong."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth import METRICS_PATHS, OPEN_PATHS, Auth, key_of
from gateway.keys import Key, KeyRing, Retired, digest
from gateway.metrics import Metrics
from gateway.middleware import Trace
from tests.gateway.test_keys import NOW, key

SECRET = "sk-bonsai-canary-7f3a9c"


@dataclass
class Settings:
    """The part of a configuration that it reads."""

    public_metrics: bool = False


class Runtime:
    """What holds that configuration."""

    def __init__(self, public_metrics: bool) -> None:
        self.config = Settings(public_metrics)


class Door:
    """What the guard asks of an instance, and an application behind it."""

    def __init__(self, keys: KeyRing | None, *, public_metrics: bool = False) -> None:
        self.keys = keys
        self.runtime = Runtime(public_metrics)
        self.metrics = Metrics()
        self.entered: list[Key | None] = []

    async def app(self, scope: Any, _receive: Any, send: Any) -> None:
        """What is guarded."""
        self.entered.append(key_of(scope))
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask(
        self, *headers: tuple[bytes, bytes], path: str = "/v1/models", type_: str = "http"
    ) -> list[dict[str, Any]]:
        """One request; what is sent back."""
        scope = {"type": type_, "path": path, "headers": headers, "state": {"trace": Trace("r")}}
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(dict(message))

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        await Auth(self.app, self, self.metrics)(scope, receive, send)  # type: ignore[arg-type] # a part of it
        return sent

    async def status(self, *headers: tuple[bytes, bytes], path: str = "/v1/models") -> int:
        """One request; its status."""
        return int((await self.ask(*headers, path=path))[0]["status"])


def bearer(secret: bytes) -> tuple[bytes, bytes]:
    """How a client sends its key."""
    return (b"authorization", b"Bearer " + secret)


GOOD = bearer(SECRET.encode())


@pytest.mark.parametrize(
    "header",
    [
        GOOD,
        (b"authorization", f"bearer {SECRET}".encode()),
        (b"authorization", f"BEARER   {SECRET} ".encode()),
    ],
)
async def test_a_key_opens_the_door_and_is_known_behind_it(header: tuple[bytes, bytes]) -> None:
    mine = key(SECRET)
    door = Door(KeyRing([mine]))
    assert await door.status((b"host", b"x"), header) == 200
    assert door.entered == [mine]


async def test_the_log_line_gets_the_keys_id() -> None:
    mine, trace = key(SECRET), Trace("r")
    door = Door(KeyRing([mine]))
    scope = {"type": "http", "path": "/", "headers": [GOOD], "state": {"trace": trace}}
    await Auth(door.app, door, door.metrics)(scope, None, _ignore)  # type: ignore[arg-type] # a part of it
    assert trace.key == mine.id


async def _ignore(_: Any) -> None:
    pass


async def test_without_a_keys_file_everybody_may_do_everything() -> None:
    door = Door(None)
    assert await door.status() == 200
    assert await door.status(bearer(b"whatever"), path="/metrics") == 200
    assert door.entered == [None, None]


async def test_with_an_empty_keys_file_nobody_may() -> None:
    assert await Door(KeyRing()).status(GOOD) == 401


REFUSED: list[tuple[tuple[bytes, bytes], ...]] = [
    (),
    (bearer(b""),),
    (bearer(b"wrong"),),
    (bearer(b"revoked"),),
    (bearer(b"expired"),),
    (bearer(b"replaced"),),
    (bearer(SECRET.encode() + b"x"),),
    (bearer(SECRET.encode() + b" " + SECRET.encode()),),
    (bearer(b"\xff\x00\xf0\x9f\x8c\xb3"),),
    (bearer(b"x" * 2**20),),
    (GOOD, GOOD),
    (GOOD, bearer(b"")),
    ((b"authorization", b""),),
    ((b"authorization", SECRET.encode()),),
    ((b"authorization", b"Bearer"),),
    ((b"authorization", b"Bearer\t" + SECRET.encode()),),
    ((b"authorization", b"Basic " + SECRET.encode()),),
    ((b"authorization", b" " * 2**20),),
    ((b"proxy-authorization", GOOD[1]),),
    ((b"x-api-key", SECRET.encode()),),
    ((b"cookie", b"authorization=" + GOOD[1]),),
]


def full_ring() -> KeyRing:
    """One key in force, and others that are not."""
    keys = [
        key(SECRET, retired=(Retired(sha256=digest(b"replaced"), until=NOW),)),
        key("revoked", name="revoked", revoked=NOW),
        key("expired", name="expired", expires=NOW - timedelta(days=1)),
    ]
    return KeyRing(keys, clock=NOW.timestamp)


@pytest.mark.parametrize("headers", REFUSED, ids=lambda headers: repr(headers)[:60])
async def test_whatever_is_wrong_the_answer_is_the_same(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    door = Door(full_ring())
    answer = await door.ask(*headers)
    assert answer == await Door(full_ring()).ask()
    assert answer[0]["status"] == 401
    assert (b"www-authenticate", b"Bearer") in answer[0]["headers"]
    assert door.entered == []
    name = "bonsai_gateway_errors_total"
    assert door.metrics.registry.get_sample_value(name, {"code": "invalid_api_key"}) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"authorization", b"x"]), st.binary(max_size=50) | st.just(b"Bearer ").map(bytes)
        ),
        max_size=3,
    )
)
async def test_no_header_is_a_bug_of_ours(headers: list[tuple[bytes, bytes]]) -> None:
    assert await Door(full_ring()).status(*headers) == 401


@pytest.mark.parametrize("public", [False, True])
async def test_which_paths_are_open(public: bool) -> None:
    door = Door(KeyRing(), public_metrics=public)
    for path in OPEN_PATHS:
        assert await door.status(path=path) == 200
    for path in METRICS_PATHS:
        assert await door.status(path=path) == (200 if public else 401)
    for path in (
        "",
        "/",
        "/health/",
        "//health",
        "/health/x",
        "/Health",
        "/health/../v1/models",
        "/health?x",
    ):
        assert await door.status(path=path) == 401


async def test_what_is_no_request_is_let_through_only_at_start_and_end() -> None:
    door = Door(KeyRing([key(SECRET)]))
    assert await door.ask(type_="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert door.entered == []
    await door.ask(type_="lifespan")
    assert len(door.entered) == 1
