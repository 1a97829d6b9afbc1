"""A: the policy refuses. Whatever status it picks, the client gets one of ours, once, and none of its
words."""

import json

from tests.faults.fakes import Trap, answering, raw
from tests.faults.world import CANARY_UPSTREAM, WAYS, World
from tests.gateway.stack import check_envelope

TOLD = json.dumps({"error": {"message": CANARY_UPSTREAM, "code": CANARY_UPSTREAM}}).encode()
CONTEXT = json.dumps(
    {"error": {"message": f"This model's maximum context length is 512 tokens. {CANARY_UPSTREAM}"}}
).encode()

REFUSALS = {
    (400, TOLD): (400, "invalid_request"),
    (413, TOLD): (400, "invalid_request"),
    (422, TOLD): (400, "invalid_request"),
    (400, CONTEXT): (400, "context_length_exceeded"),
    (401, TOLD): (502, "upstream_auth"),
    (403, TOLD): (502, "upstream_auth"),
    (404, TOLD): (404, "model_not_found"),
    (429, TOLD): (503, "overloaded"),
    (503, TOLD): (503, "overloaded"),
    (501, TOLD): (400, "unsupported"),
    **{
        (status, TOLD): (502, "upstream_error")
        for status in (201, 202, 206, 300, 305, 402, 405, 406, 408, 409, 410, 415, 418, 425, 431, 451)
    },
    **{(status, TOLD): (502, "upstream_error") for status in (500, 502, 504, 505, 507, 511, 529, 599)},
    (204, b""): (502, "upstream_error"),
    (304, b""): (502, "upstream_error"),
    (500, b""): (502, "upstream_error"),
    (400, b"\xff\xfe\x00"): (400, "invalid_request"),
    (500, b"x" * 300_000): (502, "upstream_error"),
}


async def test_every_status_becomes_one_of_ours_and_nothing_is_judged(world: World) -> None:
    seen, judged = {}, sum(len(judge.requests) for judge in world.judges)
    for status, body in REFUSALS:
        world.policies_do(answering(body, status))
        answers = (await world.every_way()).values()
        seen[status, body] = {(answer.status_code, answer.json()["error"]["code"]) for answer in answers}
    assert seen == {refusal: {expected} for refusal, expected in REFUSALS.items()}
    assert sum(len(judge.requests) for judge in world.judges) == judged


async def test_what_is_the_clients_mistake_is_not_tried_elsewhere(world: World) -> None:
    for status in (400, 404, 422):
        world.policies_do(answering(CONTEXT, status))
        before = world.calls
        await world.every_way()
        assert world.calls - before == len(WAYS)


RETRY_AFTER = [
    ("7", "7"),
    ("0", "1"),
    ("99999", "60"),
    ("-1", "1"),
    ("1.5", "1"),
    ("Wed, 21 Oct 2026 07:28:00 GMT", "1"),
]


async def test_the_time_to_come_back_is_a_small_whole_number(world: World) -> None:
    for sent, passed in RETRY_AFTER:
        world.policies_do(answering(TOLD, 429, {"retry-after": sent, "content-type": "application/json"}))
        for answer in (await world.every_way()).values():
            check_envelope(answer, 503, "overloaded")
            assert answer.headers["retry-after"] == passed


async def test_redirects_are_not_followed(world: World) -> None:
    trap = Trap()
    await trap.start()
    for status in (301, 302, 303, 307, 308):
        world.policies_do(answering(TOLD, status, {"location": f"{trap.url}/v1/chat/completions"}))
        world.judges_do(answering(b"", status, {"location": f"{trap.url}/score"}))
        for answer in (await world.every_way()).values():
            check_envelope(answer, 502, "upstream_error")
        world.policies_do(None)
        check_envelope(await world.chat(best_of=2), 503, "reward_model_unavailable")
    assert not trap.arrived.is_set()
    await trap.stop()


HOSTILE = {
    "set-cookie": "session=stolen; Path=/",
    "server": CANARY_UPSTREAM,
    "x-powered-by": CANARY_UPSTREAM,
    "x-request-id": CANARY_UPSTREAM,
    "x-accel-redirect": "/etc/passwd",
    "x-should-retry": "true",
    "access-control-allow-origin": "*",
    "alt-svc": 'h3="evil.example:443"',
    "clear-site-data": "*",
    "content-disposition": "attachment; filename=x.exe",
    "link": "<https://evil.example>; rel=preload",
    "location": "https://evil.example",
    "refresh": "0; url=https://evil.example",
    "retry-after": "0",
    "strict-transport-security": "max-age=31536000",
    "www-authenticate": "Basic",
    "x-alignment-degraded": "canary",
    "x-best-of": "64",
    "server-timing": CANARY_UPSTREAM,
    "x-ignored-fields": "messages",
}
ALLOWED = {
    "cache-control",
    "content-length",
    "content-type",
    "date",
    "retry-after",
    "server",
    "server-timing",
    "transfer-encoding",
    "x-accel-buffering",
    "x-request-id",
    "x-should-retry",
}


async def test_only_headers_of_ours_come_out(world: World) -> None:
    theirs = {value for value in HOSTILE.values() if value != "0"}
    answers = []
    for status in (200, 400, 500, 503):
        body = b'{"choices": []}' if status == 200 else TOLD
        world.policies_do(answering(body, status, HOSTILE | {"content-type": "application/json"}))
        answers.append(await world.chat())
    stream = b"data: {}\n\ndata: [DONE]\n\n"
    world.policies_do(answering(stream, 200, HOSTILE | {"content-type": "text/event-stream"}))
    answers.append(await world.chat(stream=True))
    assert [answer.status_code for answer in answers] == [200, 400, 502, 503, 200]
    for answer in answers:
        assert set(answer.headers) <= ALLOWED
        assert not theirs & set(answer.headers.values())


JSON_200 = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
NOT_HTTP = {
    "nothing": b"",
    "half a status line": b"HTTP/1.1 20",
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\n[]",
    "status 99": b"HTTP/1.1 99 OK\r\nContent-Length: 2\r\n\r\n{}",
    "status 1000": b"HTTP/1.1 1000 OK\r\nContent-Length: 2\r\n\r\n{}",
    "HTTP/0.9": b"<html>canary</html>\r\n",
    "HTTP/9.9": b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "half of the headers": JSON_200,
    "half of the body": JSON_200 + b"Content-Length: 100\r\n\r\n{",
    "a body that never starts": JSON_200 + b"Content-Length: 100\r\n\r\n",
    "half of a chunk": JSON_200 + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{",
    "a chunk size that is none": JSON_200 + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a negative length": JSON_200 + b"Content-Length: -1\r\n\r\n{}",
    "two lengths": JSON_200 + b"Content-Length: 2\r\nContent-Length: 200\r\n\r\n{}",
    "a line break in a header": JSON_200 + b"X: a\nSet-Cookie: b\r\n bad\x00\r\nContent-Length: 2\r\n\r\n{}",
    "a header of 100 kB": JSON_200 + b"X: " + b"a" * 100_000 + b"\r\nContent-Length: 2\r\n\r\n{}",
    "an upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "continue, for ever": b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
    "gzip": JSON_200 + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
}


async def test_what_is_not_http_is_a_502_or_503(world: World) -> None:
    seen = {}
    for name, data in NOT_HTTP.items():
        world.policies_do(raw(data))
        statuses = {answer.status_code for answer in (await world.every_way()).values()}
        seen[name] = statuses - {502, 503}
    assert not any(seen.values()), seen


CONTENT_TYPES = [
    b"application/json; x=\xff\xfe",
    b"application/json; x=\xc3\xa9",
    b"",
    b"text/html; charset=utf-8",
    b"application/json\x01",
    b"x" * 7000,
]


async def test_a_strange_content_type_cannot_break_the_answer(world: World) -> None:
    for content_type in CONTENT_TYPES:
        world.policies_do(
            raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: " + content_type + b"\r\n\r\n{}")
        )
        for answer in (await world.every_way()).values():
            assert answer.status_code in {200, 502, 503}, content_type
            assert answer.headers["content-type"] == "application/json"
