"""A gateway that asks for keys, as a whole: every route closed, each key held to its own, and no key in
anything that we say."""

import asyncio
import logging
import re
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gateway import keys_file
from gateway.api_server import create_app
from gateway.auth import METRICS_PATHS, OPEN_PATHS
from gateway.keys import Key, digest, new_secret
from tests.gateway.fake_servers import MODEL, FakeVllm
from tests.gateway.processes import gateway
from tests.gateway.stack import CHAT, Stack, check_envelope, config_for, running
from tests.gateway.test_keys import key

SECRET = "sk-bonsai-canary-7f3a9c"
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


@asynccontextmanager
async def guarded(folder: Path, *keys: Key, **fields: Any) -> AsyncGenerator[Stack, None]:
    """A gateway that asks for keys."""
    path = folder / "keys.json"
    keys_file.update(path, lambda _: keys or (key(SECRET),), create=True)
    async with running(keys_file=str(path), **fields) as stack:
        yield stack


def authorization(secret: str = SECRET) -> dict[str, str]:
    """The header, for httpx."""
    return {"authorization": f"Bearer {secret}"}


def endpoints(folder: Path) -> list[tuple[str, str]]:
    """Every method and path that the application knows, asked of itself."""
    path = folder / "keys.json"
    keys_file.update(path, lambda _: (), create=True)
    app = create_app(config_for("http://127.0.0.1:1", None, keys_file=str(path)))
    found = []
    for route in app.routes:
        known = getattr(route, "path", None)
        assert known is not None, f"{route} has no path: say here how to ask for it"
        methods = getattr(route, "methods", None) or {"GET", "POST"}
        found += [(method, re.sub(r"\{.*?\}", "x", known)) for method in methods]
    return sorted(found)


async def test_every_route_is_closed_unless_it_is_listed_as_open(tmp_path: Path) -> None:
    asked = endpoints(tmp_path)
    assert set(asked) >= {("POST", CHAT), ("GET", "/v1/models/x"), ("GET", "/metrics")}
    assert {path for _, path in asked} >= OPEN_PATHS | METRICS_PATHS
    async with guarded(tmp_path) as stack:
        for method, path in asked:
            answer = await stack.http.request(method, path)
            if path in OPEN_PATHS:
                assert answer.status_code == 200
            elif method == "HEAD":
                assert answer.status_code == 401
            else:
                check_envelope(answer, 401, "invalid_api_key")
        assert stack.vllm.requests == []


async def test_unknown_paths_and_methods_are_401_without_a_key_and_told_with_one(tmp_path: Path) -> None:
    async with guarded(tmp_path) as stack:
        for path in ("/", "/v1/nothing", "/docs", "/health/nothing"):
            check_envelope(await stack.http.get(path), 401, "invalid_api_key")
            check_envelope(await stack.http.get(path, headers=authorization()), 404, "not_found")
        check_envelope(await stack.http.put(CHAT), 401, "invalid_api_key")
        check_envelope(await stack.http.put(CHAT, headers=authorization()), 405)
        check_envelope(await stack.http.get(f"/v1/models?api_key={SECRET}"), 401)


async def test_with_a_key_the_gateway_is_as_without_keys(tmp_path: Path) -> None:
    async with guarded(tmp_path) as stack:
        assert (await stack.chat(headers=authorization())).status_code == 200
        assert (await stack.chat(headers=authorization(), best_of=4)).headers["x-best-of"] == "4"
        assert (await stack.http.get("/metrics", headers=authorization())).status_code == 200


async def test_a_browser_can_ask_beforehand_and_read_why_it_may_not(tmp_path: Path) -> None:
    origin = {"origin": "https://app.example"}
    async with guarded(tmp_path, cors_origins=("https://app.example",)) as stack:
        wants = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        preflight = await stack.http.options(CHAT, headers=origin | wants)
        assert preflight.status_code == 200, "a browser sends no key with it"
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        stranger = await stack.http.options(CHAT, headers={"origin": "https://other.example"} | wants)
        check_envelope(stranger, 400, "invalid_request")
        assert "access-control-allow-origin" not in stranger.headers
        assert stranger.headers["vary"].startswith("Origin"), "no cache may give it to another page"
        refused = await stack.chat(headers=origin)
        check_envelope(refused, 401, "invalid_api_key")
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
        assert stack.vllm.requests == []


async def test_a_key_can_be_kept_to_models_and_best_of(tmp_path: Path) -> None:
    small = key(SECRET, models=[MODEL], max_best_of=4, default_best_of=2)
    other = key("other", name="other", models=["another"])
    async with guarded(tmp_path, small, other) as stack:
        mine, others = authorization(), authorization("other")
        assert (await stack.chat(headers=mine)).headers["x-best-of"] == "2", "its own default"
        assert (await stack.chat(headers=mine, best_of=4)).status_code == 200
        check_envelope(await stack.chat(headers=mine, best_of=5), 400, "best_of_too_large")
        assert (await stack.chat(headers=mine, model=f"{MODEL}:best-of-3")).headers["x-best-of"] == "3"
        # What is not allowed is as if it were not there.
        for model in (MODEL, f"{MODEL}:best-of-4", None):
            refused = await stack.chat(headers=others, model=model)
            assert refused.content == (await stack.chat(headers=others, model="no-such-model")).content
            check_envelope(refused, 404, "model_not_found")
        check_envelope(await stack.http.get(f"/v1/models/{MODEL}", headers=others), 404, "model_not_found")
        assert (await stack.http.get("/v1/models", headers=others)).json()["data"] == []
        listed = [card["id"] for card in (await stack.http.get("/v1/models", headers=mine)).json()["data"]]
        assert listed == [MODEL, f"{MODEL}:best-of-4"]


async def test_who_names_no_model_gets_the_default_or_the_first_that_its_key_may_use(tmp_path: Path) -> None:
    second = key(SECRET, models=["second"])
    both = key("other", name="other", models=["second", MODEL])
    async with guarded(tmp_path, second, both) as stack:
        stack.vllm.models = [MODEL, "second"]
        for sent, model in (("other", MODEL), (SECRET, "second")):
            assert (await stack.chat(headers=authorization(sent), model=None)).status_code == 200
            assert stack.vllm.requests[-1].body["model"] == model


async def test_a_keys_limits_are_told_in_headers_and_kept(tmp_path: Path) -> None:
    limited = key(SECRET, requests_per_minute=2, tokens_per_day=1000)
    async with guarded(tmp_path, limited) as stack:
        first = await stack.chat(headers=authorization())
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-limit-tokens"] == "1000"
        assert first.headers["x-ratelimit-remaining-tokens"] == "1000"
        used = first.json()["usage"]["total_tokens"]
        second = await stack.chat(headers=authorization())
        assert second.headers["x-ratelimit-remaining-tokens"] == str(1000 - used)
        third = await stack.chat(headers=authorization())
        check_envelope(third, 429, "rate_limit_exceeded")
        assert 1 <= int(third.headers["retry-after"]) <= 30
        assert third.headers["x-ratelimit-remaining-requests"] == "0"


async def test_all_candidates_tokens_are_charged_whatever_way_they_are_sent(tmp_path: Path) -> None:
    async with guarded(tmp_path, key(SECRET, tokens_per_day=1000)) as stack:
        remaining: list[int] = []
        asked: list[dict[str, Any]] = [
            {},
            {"stream": True},
            {"best_of": 4},
            {"best_of": 4, "stream": True},
            {},
        ]
        used: list[int] = []
        for fields in asked:
            answer = await stack.chat(headers=authorization(), **fields)
            await stack.drain.at_rest()
            remaining.append(int(answer.headers["x-ratelimit-remaining-tokens"]))
            if not fields.get("stream"):
                used.append(answer.json()["usage"]["total_tokens"])
    charged = [before - after for before, after in pairwise(remaining)]
    assert charged == [used[0], used[0], used[1], used[1]]
    assert used[1] > used[0] > 0


async def test_a_keys_limits_hold_across_workers(tmp_path: Path) -> None:
    path, vllm = tmp_path / "keys.json", FakeVllm()
    keys_file.update(path, lambda _: (key(SECRET, requests_per_minute=3),), create=True)
    await vllm.start()
    try:
        argv = ("--policy-url", vllm.url, "--keys-file", str(path), "--workers", "2")
        async with gateway(*argv) as real:
            asking = [real.http.post(CHAT, json=HI, headers=authorization()) for _ in range(20)]
            codes = [answer.status_code for answer in await asyncio.gather(*asking)]
    finally:
        await vllm.stop()
    assert (codes.count(200), codes.count(429)) == (3, 17)


# Nothing that we say has a key in it.


async def test_no_key_and_no_hash_in_answers_metrics_or_logs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret, wrong = new_secret(), "sk-bonsai-" + "W" * 43
    said: list[str] = []
    async with guarded(tmp_path, key(secret, requests_per_minute=1)) as stack:
        for sent in (secret, wrong):
            for path in ("/v1/models", "/nothing", "/metrics", "/version"):
                answer = await stack.http.get(path, headers=authorization(sent))
                said += [answer.text, str(answer.headers)]
            for fields in ({}, {"best_of": 4}, {"stream": True}, {"n": "x"}):
                answer = await stack.chat(headers=authorization(sent), **fields)
                said += [answer.text, str(answer.headers)]
        stack.vllm.refusal = (500, f"who sent {secret}?", {})
        answer = await stack.chat(headers=authorization(secret))
        said += [answer.text, str(answer.headers), stack.metrics.render().decode()]
        assert not any(secret in str(request) for request in stack.vllm.requests), (
            "nor does the policy see it"
        )
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    said += [record.getMessage() for record in ours]
    for text in said:
        for hidden in (secret, wrong, digest(secret.encode()), digest(wrong.encode())):
            assert hidden not in text


async def test_a_gateway_says_nothing_of_keys_on_its_standard_error(tmp_path: Path) -> None:
    secret, wrong = new_secret(), "sk-bonsai-" + "W" * 43
    mine, path = key(secret), tmp_path / "keys.json"
    keys_file.update(path, lambda _: (mine,), create=True)
    vllm = FakeVllm()
    await vllm.start()
    try:
        flags = ["--policy-url", vllm.url, "--keys-file", str(path), "--drain-delay", "0", "--public-metrics"]
        async with gateway(*flags) as real:
            process, http = real.process, real.http
            for sent in (secret, wrong):
                for body in (HI, {"messages": "x"}, HI | {"model": "none"}):
                    await http.post(CHAT, json=body, headers=authorization(sent))
                await http.get(f"/nothing?api_key={sent}", headers=authorization(sent))
            misplaced = path.read_text().replace('"keys"', f'"{secret}"')
            path.write_text(misplaced)
            process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(20):
                while await real.metric("key_file_reloads_total", result="refused") < 1:
                    pass
            process.terminate()
            said = await asyncio.wait_for(real.stderr, 20)
    finally:
        await vllm.stop()
    assert b"unknown field `...`" in said
    for hidden in (secret, wrong, mine.sha256, digest(wrong.encode())):
        assert hidden not in said.decode()
