"""What the gateway itself refuses, and how it says so."""

import asyncio
import json
from typing import Any

import pytest

from gateway.config import Limits
from tests.gateway.fake_servers import MODEL
from tests.gateway.fakes import FakePolicy
from tests.gateway.stack import CHAT, check_envelope, running


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/v1/chat/completions/", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/sleep", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/openapi.json", 404, "not_found"),
        ("GET", "/v1/models/nope", 404, "model_not_found"),
    ],
)
async def test_paths_and_methods(method: str, path: str, status: int, code: str) -> None:
    async with running() as stack:
        answer = await stack.http.request(method, path)
        check_envelope(answer, status, code)
        if status == 405:
            assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=UTF-8", 200),
        ("text/plain", 415),
        ("application/json; charset=latin-1", 415),
        ("application/x-www-form-urlencoded", 415),
        (None, 415),
    ],
)
async def test_content_types(content_type: str | None, status: int) -> None:
    async with running() as stack:
        headers = {"content-type": content_type} if content_type else {}
        content = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
        answer = await stack.http.post(CHAT, content=content, headers=headers)
        assert answer.status_code == status
        if status == 415:
            check_envelope(answer, 415, "unsupported_media_type")


async def test_large_bodies_are_refused_announced_or_not() -> None:
    async def drip() -> Any:
        for _ in range(8):
            yield b" " * 1024

    async with running(limits=Limits(max_body_bytes=4096)) as stack:
        headers = {"content-type": "application/json"}
        for content in (b" " * 5000, drip()):
            answer = await stack.http.post(CHAT, content=content, headers=headers)
            check_envelope(answer, 413, "body_too_large")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": True}, "n"),
        ({"n": 2.0}, "n"),
        ({"best_of": 17}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"n": 33}, "n"),
        ({"alignment": {"best_off": 2}}, "alignment"),
        ({"chat_template": "{{ 7 * 7 }}"}, "chat_template"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "media"),
        ({"best_of": 2, "use_beam_search": True}, "use_beam_search"),
        ({"best_of": 4, "seed": 2**63 - 4 + 1}, "seed"),
        ({"best_of": 4, "seed": -2}, "seed"),
        ({"best_of": 4, "seed": -4}, "seed"),
        ({"model": 5}, "model"),
        ({"tools": [{"big": 2**80}], "stop": 5}, "stop"),
    ],
)
async def test_validation_is_a_400_and_nothing_goes_up(fields: dict[str, Any], param: str) -> None:
    async with running() as stack:
        error = check_envelope(await stack.chat(**fields), 400)
        assert error["param"] == param
        assert stack.vllm.requests == []


@pytest.mark.parametrize("seed", [2**63 - 4, -5, 0, -(2**63)])
async def test_every_seed_that_all_candidates_can_count_on_from_is_taken(seed: int) -> None:
    async with running() as stack:
        assert (await stack.chat(best_of=4, seed=seed)).status_code == 200
        assert stack.vllm.requests[-1].body["seed"] == seed


@pytest.mark.parametrize("seed", [2**63 - 1, -2])
async def test_one_sample_has_no_seed_to_count_on_to(seed: int) -> None:
    async with running() as stack:
        assert (await stack.chat(best_of=4, temperature=0, seed=seed)).status_code == 200
        assert (await stack.chat(seed=seed)).status_code == 200


async def test_prompts_times_best_of_is_capped() -> None:
    async with running() as stack:
        answer = await stack.complete(prompt=["x"] * 3, best_of=16)
        check_envelope(answer, 400, "too_many_candidates")


async def test_a_header_that_is_no_number_is_a_400() -> None:
    async with running() as stack:
        check_envelope(await stack.chat(headers={"X-Best-Of": "many"}), 400)


async def test_unknown_models_are_a_404() -> None:
    async with running() as stack:
        for model in ("nope", "nope:best-of-4", f"{MODEL}:best-of-x", "", "x" * 10_000):
            check_envelope(await stack.chat(model=model), 404, "model_not_found")


async def test_a_model_that_was_loaded_later_is_found() -> None:
    async with running() as stack:
        assert (await stack.chat()).status_code == 200
        stack.vllm.models = [MODEL, "lora"]
        assert "lora" in (await stack.http.get("/v1/models")).text  # a name alone costs a look a second
        assert (await stack.chat(model="lora:best-of-2")).json()["model"] == "lora"


async def test_without_a_model_the_default_answers() -> None:
    async with running() as stack:
        assert (await stack.chat(model=None)).status_code == 200
        assert stack.vllm.requests[0].body["model"] == MODEL


async def test_without_a_reward_model_best_of_is_refused() -> None:
    async with running(with_reward=False) as stack:
        assert (await stack.chat()).status_code == 200
        check_envelope(await stack.chat(best_of=2), 400, "no_reward_model")
        assert (await stack.http.get("/health/ready")).status_code == 200


async def test_beyond_the_slots_the_answer_is_a_503_with_a_time() -> None:
    limits = Limits(
        max_best_of=4,
        max_candidates_per_request=4,
        max_concurrent_candidates=4,
        max_queue=0,
    )
    async with running(limits=limits) as stack:
        stack.vllm.hold.clear()
        first = asyncio.create_task(stack.chat(best_of=4))
        await stack.vllm.arrived.wait()
        answer = await stack.chat()
        check_envelope(answer, 503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        stack.vllm.hold.set()
        assert (await first).status_code == 200
        assert (await stack.chat(best_of=4)).status_code == 200


async def test_a_bug_is_a_500_in_the_envelope(caplog: pytest.LogCaptureFixture) -> None:
    class Buggy(FakePolicy):
        async def models(self) -> list[dict[str, Any]]:
            raise ZeroDivisionError

    async with running(policy=Buggy()) as stack:
        check_envelope(await stack.http.get("/v1/models"), 500, "internal_error")
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(("coding", "status"), [("gzip", 415), ("br", 415), ("identity", 200), ("", 200)])
async def test_compressed_bodies_are_refused(coding: str, status: int) -> None:
    async with running() as stack:
        answer = await stack.chat(headers={"content-encoding": coding})
        assert answer.status_code == status
        if status == 415:
            check_envelope(answer, 415, "unsupported_media_type")


async def test_names_of_ignored_fields_cannot_break_the_header() -> None:
    async with running() as stack:
        fields = {
            "x\r\nset-cookie: a": 1,
            "é": 2,
            "a, b": 3,
            "": 4,
            "plain": 5,
            **{f"k{i}": 1 for i in range(999)},
        }
        answer = await stack.chat(**fields)
        assert answer.status_code == 200
        assert "set-cookie" not in answer.headers
        assert len(answer.headers["x-ignored-fields"]) < 2000


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_probes_may_ask_for_the_head_alone(path: str) -> None:
    async with running() as stack:
        answer = await stack.http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
