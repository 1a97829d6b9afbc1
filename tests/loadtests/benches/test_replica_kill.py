"""What clients saw of a kill, by what they had got before."""

import json

from loadtests.benches.replica_kill import seen
from loadtests.http_client import Reply

ERROR = json.dumps({"error": {"message": "m", "type": "t", "param": None, "code": "c"}}).encode()
CHUNK = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'


def reply(*pieces: bytes, status: int = 200, error: str | None = None) -> Reply:
    return Reply(status=status, pieces=list(pieces), times=[0.0] * len(pieces), error=error)


def test_only_a_stream_that_had_begun_may_end_in_an_error_event() -> None:
    told = (reply(CHUNK, b"data: " + ERROR + b"\n\n"), True)
    cut = (reply(CHUNK, error="cut"), True)
    fine = [(reply(CHUNK, b"data: [DONE]\n\n"), True), (reply(b'{"choices": [{}]}'), False)]
    refused = [(reply(ERROR, status=502), True), (reply(ERROR, status=502), False)]
    dropped = [(reply(status=0, error="reset"), True), (reply(status=0, error="reset"), False)]
    half = (reply(b'{"choi', error="cut"), False)
    headers_only = (reply(error="cut"), True)
    assert seen([told, cut, *fine, *refused, *dropped, half, headers_only]) == {
        "one killed: errors before the first byte": 6,
        "one killed: streams cut without an error event": 1,
        "one killed: streams that had begun, told by an error event": 1,
    }
