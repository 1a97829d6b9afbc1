"""The HTTP surface, over real loopback sockets, with fake servers behind it."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from gateway.config import Limits, PolicyConfig, RewardConfig
from tests.gateway.fakes import MODEL, FakePolicy, Sample, running

CHAT = "/v1/chat/completions"


def events(text: str) -> list[Any]:
    """The data of a stream; `[DONE]` as it is."""
    found = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    return [part if part == "[DONE]" else json.loads(part) for part in found]


def check_envelope(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """An error as every error is."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert len(response.content) <= 4096
    body = response.json()
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    if code is not None:
        assert body["error"]["code"] == code
    return dict(body["error"])


# Pass-through


async def test_one_sample_passes_through_unchanged() -> None:
    async with running() as stack:
        stack.vllm.raw_body = (
            b'{ "choices": [], "odd":\n1.0, "usage": {"prompt_tokens": 5, "completion_tokens": 2}}'
        )
        answer = await stack.chat(temperature=0.5, user="me", best_of=1)
        assert answer.content == stack.vllm.raw_body
        assert "x-best-of" not in answer.headers
        assert answer.headers["server-timing"].startswith("queue;dur=")
        assert stack.vllm.requests[0].body == {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Hi"}],
            "temperature": 0.5,
        }
        assert stack.rewards.requests == []


async def test_a_stream_passes_through_byte_for_byte() -> None:
    pieces = [b'data: {"choices"', b": [1]}\n", b"\nda", b"ta: x\r\n\r\n: ping\n\nda", b"ta: [DONE]\n\n"]
    async with running() as stack:
        stack.vllm.raw_stream = pieces
        answer = await stack.chat(stream=True)
        assert answer.content == b"".join(pieces)
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_n_samples_pass_through_unranked_where_the_default_is_one() -> None:
    async with running() as stack:
        answer = (await stack.chat(n=3)).json()
        assert [choice["message"]["content"] for choice in answer["choices"]] == ["a", "aa", "aaa"]
        assert "alignment" not in answer


@pytest.mark.parametrize("cut", [2, 3])
async def test_a_stream_that_breaks_off_ends_in_an_error_event(cut: int) -> None:
    async with running() as stack:
        stack.vllm.break_after = cut
        found = events((await stack.chat(stream=True)).text)
        assert found[-1]["error"]["type"] == "upstream_error"
        assert "[DONE]" not in found


async def test_an_error_event_ends_the_stream_without_its_text_and_done() -> None:
    async with running() as stack:
        stack.vllm.error_event_after = 2
        answer = await stack.chat(stream=True)
        found = events(answer.text)
        assert len(found) == 3
        assert found[-1]["error"]["code"] == "upstream_error"
        assert "secret" not in answer.text


async def test_ignored_fields_are_named_and_not_forwarded() -> None:
    async with running() as stack:
        answer = await stack.chat(guided_regex="a*", shiny=1, store=True)
        assert answer.headers["x-ignored-fields"] == "guided_regex, shiny"
        assert sorted(stack.vllm.requests[0].body) == ["messages", "model"]


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (
            (400, {"message": "maximum context length is 512 tokens. /srv/secret"}, {}),
            400,
            "context_length_exceeded",
        ),
        ((404, {"message": "secret"}, {}), 404, "model_not_found"),
        ((500, "secret", {}), 502, "upstream_error"),
        ((503, "secret", {"Retry-After": "7"}), 503, "overloaded"),
        ((302, "secret", {"Location": "http://169.254.169.254/"}), 502, "upstream_error"),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"best_of": 4}, {"best_of": 4, "stream": True}])
async def test_refusals_of_the_policy_are_put_into_the_envelope(
    refusal: tuple[int, Any, dict[str, str]], status: int, code: str, fields: dict[str, Any]
) -> None:
    async with running() as stack:
        stack.vllm.refusal = refusal
        answer = await stack.chat(**fields)
        check_envelope(answer, status, code)
        assert "secret" not in answer.text
        if status == 503:
            assert answer.headers["retry-after"] == "7"


@pytest.mark.parametrize("body", [b"<html>", b"", b'{"choices": [', b'{"a": NaN}'])
async def test_a_200_that_is_not_json_is_a_502(body: bytes) -> None:
    async with running() as stack:
        stack.vllm.raw_body = body
        check_envelope(await stack.chat(), 502, "upstream_error")


# Best-of-N


async def test_all_four_ways_reach_best_of_n() -> None:
    async with running(default_best_of=3) as stack:
        answers = {
            8: await stack.chat(best_of=8),
            4: await stack.chat(headers={"X-Best-Of": "4"}, best_of=None),
            2: await stack.chat(model=f"{MODEL}:best-of-2"),
            3: await stack.chat(),
            5: await stack.complete(n=5),
        }
        for (best_of, answer), sent in zip(answers.items(), stack.vllm.requests, strict=True):
            assert answer.headers["x-best-of"] == str(best_of)
            assert answer.json()["alignment"]["best_of"] == best_of
            assert sent.body["n"] == best_of
            assert sent.body["model"] == MODEL
            assert answer.json()["model"] == MODEL


async def test_the_whole_answer() -> None:
    async with running() as stack:
        stack.vllm.samples = [
            Sample("aa", tokens=4),
            Sample("a", "length", 5),
            Sample("aaa", tokens=6),
            Sample("aa"),
        ]
        answer = await stack.chat(best_of=4, n=2, alignment={"return_candidates": True})
        body = answer.json()
        assert [choice["index"] for choice in body["choices"]] == [0, 1]
        assert [choice["message"]["content"] for choice in body["choices"]] == ["aaa", "aa"]
        assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 18, "total_tokens": 23}
        candidates = body["alignment"].pop("candidates")
        assert body["alignment"] == {
            "method": "best_of_n",
            "best_of": 4,
            "finished": 4,
            "scored": 4,
            "reward_model": "judge",
            "reward_model_version": "v1",
            "rewards": [3.0, 2.0],
            "reward_mean": 2.0,
            "kl_bound_nats": pytest.approx(0.636294, abs=1e-6),
            "usage": {"selected_completion_tokens": 10, "all_completion_tokens": 18, "reward_tokens": 30},
            "degraded": None,
        }
        assert [(c["index"], c["reward"], c["finish_reason"]) for c in candidates] == [
            (0, 2.0, "stop"),
            (1, 1.0, "length"),
            (2, 3.0, "stop"),
            (3, 2.0, "stop"),
        ]
        assert answer.headers["x-best-of-scored"] == "4"
        assert "x-alignment-degraded" not in answer.headers
        assert [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")] == [
            "queue",
            "generate",
            "reward",
        ]


async def test_what_goes_up_is_one_request_without_our_words() -> None:
    async with running() as stack:
        await stack.chat(best_of=4, n=2, seed=7, alignment={}, stream_options=None, stream_interval=1)
        (request,) = stack.vllm.requests
        assert request.body == {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Hi"}],
            "seed": 7,
            "n": 4,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "stream_interval": 16,
        }


async def test_each_choice_keeps_what_belongs_to_its_candidate() -> None:
    call = {
        "index": 0,
        "id": "c",
        "type": "function",
        "function": {"name": "f", "arguments": '{"b": 1, "a": 2}'},
    }
    async with running() as stack:
        stack.vllm.samples = [
            Sample("", "tool_calls", delta={"tool_calls": [call]}, logprobs={"content": [{"token": "x"}]}),
            Sample("a", "length", logprobs={"content": [{"token": "a"}]}),
            Sample("", delta={"content": "So", "reasoning": "because"}),
        ]
        body = (await stack.chat(best_of=3, n=3)).json()
        tool, plain, text = body["choices"][0], body["choices"][2], body["choices"][1]
        assert tool["message"]["tool_calls"] == [{key: call[key] for key in ("id", "type", "function")}]
        assert (tool["finish_reason"], tool["message"]["content"]) == ("tool_calls", None)
        assert (plain["finish_reason"], plain["logprobs"]) == ("length", {"content": [{"token": "a"}]})
        assert text["message"]["reasoning"] == "because"
        assert set(stack.rewards.judged) == {'[{"arguments":{"a":2,"b":1},"name":"f"}]', "a", "So"}


async def test_completions_judge_the_prompt_as_one_user_turn() -> None:
    async with running() as stack:
        body = (await stack.complete(prompt="Once", best_of=2)).json()
        assert (body["object"], body["choices"][0]["text"]) == ("text_completion", "aa")
        assert stack.rewards.requests[0].body["messages"] == [{"role": "user", "content": "Once"}]


async def test_list_prompts_have_lists_of_choices_and_records() -> None:
    async with running() as stack:
        body = (await stack.complete(prompt=["x", "y"], best_of=3, n=2)).json()
        assert [(c["index"], c["text"]) for c in body["choices"]] == [
            (0, "aaa"),
            (1, "aa"),
            (2, "aaaaaa"),
            (3, "aaaaa"),
        ]
        assert [record["rewards"] for record in body["alignment"]] == [[3.0, 2.0], [6.0, 5.0]]
        asked = [(r.body["messages"][0]["content"], r.body["responses"]) for r in stack.rewards.requests]
        judged = {prompt: [t for p, texts in asked for t in texts if p == prompt] for prompt, _ in asked}
        assert judged == {"x": ["a", "aa", "aaa"], "y": ["aaaa", "aaaaa", "aaaaaa"]}


async def test_token_ids_are_turned_into_text_for_the_reward_model() -> None:
    async with running() as stack:
        answer = await stack.complete(prompt=[72, 105], best_of=2)
        assert answer.status_code == 200
        assert stack.rewards.requests[0].body["messages"] == [{"role": "user", "content": "Hi"}]
        assert stack.vllm.requests[-1].body["prompt"] == [72, 105]


async def test_a_continued_message_is_judged_whole() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Dear "}]
    async with running() as stack:
        await stack.chat(messages=turns, best_of=2, continue_final_message=True, add_generation_prompt=False)
        assert stack.rewards.requests[0].body["messages"] == turns[:1]
        assert sorted(stack.rewards.judged) == ["Dear a", "Dear aa"]


async def test_the_options_reach_the_reward_server_as_given() -> None:
    options = {"reward_model": "other", "ensemble": "worst", "objectives": {"kind": 0.5}}
    async with running() as stack:
        stack.rewards.extra = {"out_of_distribution": [0.25, 0.75]}
        body = (await stack.chat(best_of=2, alignment=options)).json()
        asked = stack.rewards.requests[0].body
        assert (asked["model"], asked["ensemble"], asked["objectives"]) == ("other", "worst", {"kind": 0.5})
        assert body["alignment"]["out_of_distribution"] == [0.75]


async def test_greedy_samples_one_and_says_so() -> None:
    async with running() as stack:
        answer = await stack.chat(best_of=8, temperature=0)
        assert answer.headers["x-alignment-degraded"] == "greedy"
        assert stack.vllm.requests[0].body["n"] == 1
        record = answer.json()["alignment"]
        assert (record["best_of"], record["scored"], record["degraded"]) == (8, 1, "greedy")
        error = check_envelope(await stack.chat(best_of=8, n=2, temperature=0), 400)
        assert error["param"] == "temperature"


@pytest.mark.parametrize("fields", [{"echo": True}, {"max_tokens": 0}, {"prompt_logprobs": 1}])
async def test_scoring_requests_bypass_best_of_n(fields: dict[str, Any]) -> None:
    async with running() as stack:
        answer = await stack.complete(best_of=4, **fields)
        assert answer.status_code == 200
        assert "alignment" not in answer.json()
        assert "x-best-of" not in answer.headers
        assert stack.vllm.requests[0].body.get("n") is None


async def test_a_deadline_answers_with_those_that_finished() -> None:
    async with running() as stack:
        stack.vllm.samples = [Sample("a"), Sample("aa"), Sample("aaa", gate=asyncio.Event())]
        answer = await stack.chat(best_of=3, alignment={"deadline_ms": 600})
        record = answer.json()["alignment"]
        assert (record["finished"], record["scored"], record["degraded"]) == (2, 2, "deadline")
        assert answer.json()["choices"][0]["message"]["content"] == "aa"
        await stack.vllm.wait_idle()
        assert stack.vllm.aborted == 1


async def test_a_deadline_with_nothing_is_a_504_that_is_not_retried() -> None:
    async with running() as stack:
        stack.vllm.hold.clear()
        answer = await stack.chat(best_of=3, alignment={"deadline_ms": 50})
        check_envelope(answer, 504, "deadline_exceeded")
        assert answer.headers["x-should-retry"] == "false"


async def test_a_failing_reward_model_is_a_503_or_the_first_by_wish() -> None:
    async with running() as stack:
        stack.rewards.refusal = (500, "secret")
        answer = await stack.chat(best_of=2)
        check_envelope(answer, 503, "reward_model_unavailable")
        assert (answer.headers["x-should-retry"], answer.headers["retry-after"]) == ("false", "1")
        answer = await stack.chat(best_of=2, alignment={"on_reward_failure": "first"})
        assert answer.json()["choices"][0]["message"]["content"] == "a"
        assert answer.headers["x-alignment-degraded"] == "reward_unavailable"
        record = answer.json()["alignment"]
        assert (record["rewards"], record["scored"], record["reward_mean"]) == ([None], 0, None)


async def test_the_configuration_can_wish_for_the_first_too() -> None:
    async with running(on_reward_failure="first") as stack:
        stack.rewards.raw_scores = [1.0]
        assert (await stack.chat(best_of=2)).headers["x-alignment-degraded"] == "reward_unavailable"
        answer = await stack.chat(best_of=2, alignment={"on_reward_failure": "error"})
        check_envelope(answer, 503, "reward_model_unavailable")


async def test_rewards_that_are_not_finite_leave_their_candidates_out() -> None:
    async with running() as stack:
        stack.rewards.rewards = {"aaa": float("nan"), "aaaa": float("inf")}
        record = (await stack.chat(best_of=4)).json()["alignment"]
        assert (record["rewards"], record["finished"], record["scored"]) == ([2.0], 4, 2)
        assert record["degraded"] == "rewards_invalid"
        check_envelope(await stack.chat(best_of=4, n=3), 502, "too_few_candidates")


async def test_what_is_too_long_for_the_reward_model_is_left_out() -> None:
    async with running() as stack:
        stack.rewards.max_length = 2
        record = (await stack.chat(best_of=4)).json()["alignment"]
        assert (record["scored"], record["degraded"]) == (2, "candidates_too_long")


async def test_a_question_that_the_reward_model_refuses_is_a_400() -> None:
    async with running() as stack:
        stack.rewards.refusal = (400, {"error": {"code": "unknown_objective", "message": "secret"}})
        answer = await stack.chat(
            best_of=2, alignment={"objectives": {"odd": 1.0}, "on_reward_failure": "first"}
        )
        check_envelope(answer, 400, "reward_model_refused")
        assert "secret" not in answer.text


async def test_a_policy_that_breaks_leaves_those_that_finished() -> None:
    async with running() as stack:
        stack.vllm.break_after = 7
        record = (await stack.chat(best_of=3)).json()["alignment"]
        assert (record["finished"], record["degraded"]) == (2, "candidates_failed")
        assert record["usage"]["all_completion_tokens"] == 6


async def test_a_pooling_reward_model_on_vllm_judges_too() -> None:
    def pooling(_: Any, rewards: Any) -> RewardConfig:
        return RewardConfig(url=rewards.url, name="rm", kind="pooling", offset=1.0)

    async with running(reward_config=pooling) as stack:
        record = (await stack.chat(best_of=3)).json()["alignment"]
        assert (record["rewards"], record["reward_model"]) == ([2.0], "rm")


# Streaming best-of-N


async def test_the_winner_is_streamed() -> None:
    async with running() as stack:
        answer = await stack.chat(best_of=3, stream=True, stream_options={"include_usage": True})
        assert answer.headers["x-best-of"] == "3"
        *chunks, usage, done = events(answer.text)
        assert done == "[DONE]"
        assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 9)
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "aaa"
        assert [c for c in chunks if "alignment" in c] == chunks[-1:]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-1]["alignment"]["rewards"] == [3.0]
        assert len({c["id"] for c in [*chunks, usage]}) == 1


async def test_several_winners_are_streamed_by_rank_and_usage_only_if_asked() -> None:
    async with running() as stack:
        *chunks, done = events((await stack.complete(best_of=3, n=2, stream=True)).text)
        assert done == "[DONE]"
        texts: dict[int, str] = {}
        for chunk in chunks:
            (choice,) = chunk["choices"]
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        assert texts == {0: "aaa", 1: "aa"}
        assert ["alignment" in chunk for chunk in chunks].count(True) == 1
        assert "alignment" in chunks[-1]


async def test_heartbeats_fill_the_wait() -> None:
    gate = asyncio.Event()
    async with running(heartbeat_s=0.05) as stack:
        stack.vllm.samples = [Sample("a"), Sample("aa", gate=gate)]
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "best_of": 2, "stream": True}
        seen: list[Any] = []
        async with stack.http.stream("POST", CHAT, json=body) as answer:
            async for line in answer.aiter_lines():
                if line:
                    seen += events(line)
                if len(seen) == 3:
                    gate.set()
        beats = [chunk["choices"][0]["delta"] for chunk in seen[:3]]
        assert beats == [{"role": "assistant", "content": ""}, {}, {}]
        assert seen[-1] == "[DONE]"
        roles = [c for c in seen[:-1] if c["choices"][0]["delta"].get("role")]
        assert len(roles) == 1
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in seen[:-1]) == "aa"


async def test_a_failure_before_the_first_heartbeat_keeps_its_status() -> None:
    async with running() as stack:
        stack.rewards.refusal = (500, "")
        check_envelope(await stack.chat(best_of=2, stream=True), 503, "reward_model_unavailable")


async def test_a_failure_after_the_first_heartbeat_is_an_error_event_without_done() -> None:
    async with running(heartbeat_s=0.02) as stack:
        stack.rewards.refusal = (500, "")
        stack.rewards.hold = asyncio.Event()
        body = {"model": MODEL, "prompt": "Hi", "best_of": 2, "stream": True}
        async with stack.http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.aiter_lines()
            assert events(await anext(lines))[0]["choices"][0]["text"] == ""
            stack.rewards.hold.set()
            rest = [line async for line in lines if line]
        assert answer.status_code == 200
        assert events(rest[-1])[0]["error"]["code"] == "reward_model_unavailable"


# Refusals of the gateway's own


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
        ({"model": 5}, "model"),
        ({"tools": [{"big": 2**80}], "stop": 5}, "stop"),
    ],
)
async def test_validation_is_a_400_and_nothing_goes_up(fields: dict[str, Any], param: str) -> None:
    async with running() as stack:
        error = check_envelope(await stack.chat(**fields), 400)
        assert error["param"] == param
        assert stack.vllm.requests == []


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
    async with running(policy_config=lambda vllm, _: PolicyConfig(url=vllm.url, name=MODEL)) as stack:
        assert (await stack.chat()).status_code == 200
        stack.vllm.models = [MODEL, "lora"]
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


# Ids, models, tokens, health


@pytest.mark.parametrize(
    ("offered", "kept"), [("abc-1.2:3_4", True), ("x" * 129, False), ("a b", False), ("é", False)]
)
async def test_request_ids(offered: str, kept: bool) -> None:
    async with running() as stack:
        answer = await stack.chat(headers={"x-request-id": offered.encode()})  # type: ignore[dict-item]
        assert (answer.headers["x-request-id"] == offered) is kept
        sent = stack.vllm.requests[0].headers["X-Request-ID"]
        assert sent.startswith(answer.headers["x-request-id"] + "-")


async def test_models() -> None:
    async with running() as stack:
        listed = (await stack.http.get("/v1/models")).json()
        assert [card["id"] for card in listed["data"]] == [MODEL]
        card = (await stack.http.get(f"/v1/models/{MODEL}:best-of-8")).json()
        assert (card["id"], card["object"]) == (f"{MODEL}:best-of-8", "model")


async def test_tokenize_and_detokenize_pass_through() -> None:
    async with running() as stack:
        tokens = (await stack.http.post("/tokenize", json={"prompt": "Hi", "odd": 1})).json()["tokens"]
        assert tokens == [72, 105]
        answer = await stack.http.post("/detokenize", json={"model": MODEL, "tokens": tokens})
        assert answer.json() == {"prompt": "Hi"}
        assert stack.vllm.requests[0].body == {"model": MODEL, "prompt": "Hi"}
        refused = await stack.http.post("/tokenize", json={"prompt": "Hi", "chat_template": "x"})
        check_envelope(refused, 400, "field_not_allowed")


async def test_health() -> None:
    async with running() as stack:
        for path in ("/health", "/health/live", "/health/ready"):
            assert (await stack.http.get(path)).status_code == 200
        stack.rewards.healthy = False
        check_envelope(await stack.http.get("/health/ready"), 503, "not_ready")
        await stack.vllm.stop()
        error = check_envelope(await stack.http.get("/health/ready"), 503, "not_ready")
        assert "policy and the reward model" in error["message"]
        assert (await stack.http.get("/health")).status_code == 200
        check_envelope(await stack.chat(), 503, "no_healthy_upstream")


async def test_version() -> None:
    async with running() as stack:
        assert (await stack.http.get("/version")).json()["version"]


async def test_allowed_engine_fields_go_up() -> None:
    async with running(allow_fields=frozenset({"chat_template_kwargs"})) as stack:
        assert (await stack.chat(chat_template_kwargs={"x": 1})).status_code == 200
        assert stack.vllm.requests[0].body["chat_template_kwargs"] == {"x": 1}
