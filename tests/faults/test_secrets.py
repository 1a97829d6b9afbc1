"""F: what a client says, and what stands behind the gateway, comes out nowhere; and no client picks what is
asked. That the canaries stay in is one of the invariants, checked after every test."""

import json
from typing import Any

import httpx

from tests.faults.clients import connected, request_bytes
from tests.faults.fakes import Trap, answering, streaming
from tests.faults.world import CANARY_KEY, CANARY_PROMPT, CANARY_UPSTREAM, WAYS, World
from tests.gateway.fake_servers import event

TOLD = json.dumps({"error": {"message": CANARY_UPSTREAM}, "message": CANARY_UPSTREAM}).encode()
WRONG: list[dict[str, Any]] = [
    {"messages": CANARY_PROMPT},
    {"messages": [CANARY_PROMPT]},
    {"messages": [{"role": CANARY_PROMPT, "content": "x"}]},
    {"messages": [{"role": "user", "content": {CANARY_PROMPT: 1}}]},
    {"messages": [{"role": "user", "content": [{"type": CANARY_PROMPT}]}]},
    {"messages": [{"role": "user", "content": CANARY_PROMPT, "tool_calls": CANARY_PROMPT}]},
    {"model": CANARY_PROMPT},
    {"model": f"{CANARY_PROMPT}:best-of-4"},
    {"model": [CANARY_PROMPT]},
    {"n": CANARY_PROMPT},
    {"temperature": CANARY_PROMPT},
    {"stop": [CANARY_PROMPT * 20]},
    {"logit_bias": {CANARY_PROMPT: 1}},
    {"alignment": {CANARY_PROMPT: 1}},
    {"alignment": {"method": CANARY_PROMPT}},
    {"alignment": {"objectives": {CANARY_PROMPT: "x"}}},
    {"tools": [CANARY_PROMPT]},
    {"chat_template": CANARY_PROMPT},
    {"stream_options": CANARY_PROMPT},
]


async def test_mistakes_are_told_without_repeating_them(world: World) -> None:
    for fields in WRONG:
        assert (await world.chat(**fields)).status_code in {400, 404}, fields
    for content in (CANARY_PROMPT, f'{{"{CANARY_PROMPT}', f'{{"a": 1, "a": "{CANARY_PROMPT}"}}', "\ud800"):
        body = content.encode("utf-8", "surrogatepass")
        headers = {"content-type": "application/json"}
        answer = await world.http.post("/v1/chat/completions", content=body, headers=headers)
        assert answer.status_code == 400, content
    for headers in ({"x-best-of": CANARY_PROMPT}, {"content-type": CANARY_PROMPT}):
        assert (await world.chat(headers=headers)).status_code in {400, 415}
    for path in (f"/{CANARY_PROMPT}", f"/v1/models/{CANARY_PROMPT}", f"/v1/models?key={CANARY_KEY}"):
        await world.http.get(path)


async def test_names_of_unknown_fields_are_told_only_to_who_sent_them(world: World) -> None:
    odd: dict[str, Any] = {CANARY_PROMPT.replace("-", "_"): 1}
    answer = await world.chat(**odd)
    assert answer.status_code == 200


async def test_what_servers_behind_the_gateway_say_of_themselves_stays_there(world: World) -> None:
    error = event({"error": {"message": CANARY_UPSTREAM, "type": CANARY_UPSTREAM}})
    for behaviour in (
        *(answering(TOLD, status) for status in (400, 401, 404, 429, 500, 503)),
        answering(CANARY_UPSTREAM.encode()),
        answering(TOLD, 500, {"content-type": "text/html", "server": CANARY_UPSTREAM}),
    ):
        world.policies_do(behaviour)
        for answer in (await world.every_way()).values():
            assert answer.status_code >= 400
    world.policies_do(streaming([b'data: {"choices": []}\n\n', error]))
    for way in WAYS.values():
        assert CANARY_UPSTREAM not in (await world.chat(**way)).text


async def test_what_reward_servers_say_of_themselves_stays_there(world: World) -> None:
    for status in (400, 401, 404, 422, 429, 500, 503):
        world.judges_do(answering(TOLD, status))
        for way in ("best_of", "best_of_stream"):
            assert (await world.chat(**WAYS[way])).status_code >= 400


async def test_what_probes_find_behind_the_gateway_stays_there(world: World) -> None:
    for server in world.everyone:
        server.healthy = False
    answer = await world.http.get("/health/ready")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert (await world.http.get("/health/live")).status_code == 200


ELSEWHERE = [
    "api_base",
    "base_url",
    "api_url",
    "url",
    "policy_url",
    "reward_url",
    "host",
    "proxy",
    "api_key",
    "extra_body",
]


async def test_no_client_picks_what_is_asked(world: World) -> None:
    trap = Trap()
    await trap.start()
    before = {vllm: len(vllm.requests) for vllm in world.vllms}
    for name in ELSEWHERE:
        elsewhere: dict[str, Any] = {name: trap.url}
        await world.chat(**elsewhere)
        await world.chat(alignment=elsewhere, best_of=2)
    host = trap.url.removeprefix("http://")
    for header in (
        "host",
        "x-forwarded-host",
        "forwarded",
        "x-upstream",
        "x-original-url",
        "x-rewrite-url",
        "referer",
    ):
        assert (await world.chat(headers={header: host})).status_code == 200
    for target in (f"{trap.url}/v1/chat/completions", f"//{host}/v1/chat/completions"):
        async with connected(world.url) as socket:
            socket.send(request_bytes(target, messages=[{"role": "user", "content": "Hi"}]))
            assert await socket.status() in {200, 400, 404}
    assert not trap.arrived.is_set()
    for vllm in world.vllms:
        for request in vllm.requests[before[vllm] :]:
            assert trap.url not in json.dumps(request.body)
            assert host not in repr(dict(request.headers))
            assert CANARY_KEY not in repr(dict(request.headers))
    await trap.stop()


async def test_the_policy_and_reward_server_are_told_no_key_cookie_or_address(world: World) -> None:
    told = {
        "cookie": CANARY_KEY,
        "x-forwarded-for": "6.6.6.6",
        "x-api-key": CANARY_KEY,
        "user-agent": CANARY_KEY,
    }
    for way in WAYS.values():
        assert (await world.chat(headers=told, **way)).status_code == 200
    for server in world.everyone:
        for request in server.requests:
            assert not {"cookie", "x-forwarded-for", "x-api-key"} & {name.lower() for name in request.headers}
            assert CANARY_KEY not in repr(dict(request.headers))


NOWHERE = """/docs /redoc /openapi.json /admin /config /v1/config /debug /invocations /pause /abort_requests
/update_weights /score /pooling /load_lora_adapter /v1/load_lora_adapter /server_info /collective_rpc /sleep
/.env /v1/chat/completions/ //v1/models""".split()


async def test_no_other_path_leads_anywhere(world: World) -> None:
    asked = [len(server.requests) for server in world.everyone]
    for path in NOWHERE:
        for method in ("GET", "POST", "PUT", "DELETE"):
            answer = await world.http.request(method, httpx.URL(world.url + path), json={})
            assert answer.status_code in {404, 405}, (method, path)
    assert [len(server.requests) for server in world.everyone] == asked
