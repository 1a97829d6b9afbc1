"""The answer of best-of-N, over real sockets, with fake servers behind the gateway."""

from typing import Any

import pytest

from tests.gateway.fake_servers import MODEL, Sample
from tests.gateway.stack import check_envelope, running


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


async def test_a_list_of_one_prompt_is_a_list() -> None:
    async with running() as stack:
        for prompt in (["x"], [[72, 105]]):
            body = (await stack.complete(prompt=prompt, best_of=2)).json()
            assert [record["rewards"] for record in body["alignment"]] == [[2.0]]
        for prompt in ("x", [72, 105]):
            assert (await stack.complete(prompt=prompt, best_of=2)).json()["alignment"]["rewards"] == [2.0]


async def test_what_the_policy_takes_for_greedy_is_greedy() -> None:
    async with running() as stack:
        answer = await stack.chat(best_of=4, temperature=9e-6)
        assert answer.headers["x-alignment-degraded"] == "greedy"
        assert "x-alignment-degraded" not in (await stack.chat(best_of=4, temperature=1e-5)).headers


async def test_max_completion_tokens_stands_above_max_tokens() -> None:
    async with running() as stack:
        answer = await stack.chat(best_of=4, max_tokens=0, max_completion_tokens=8)
        assert answer.headers["x-best-of"] == "4"
