"""The HTTP surface around generation: ids, models, tokens, health."""

import pytest

from tests.gateway.fake_servers import MODEL
from tests.gateway.stack import check_envelope, running


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
        variants = [f"{MODEL}:best-of-{n}" for n in (4, 8, 16)]
        assert [card["id"] for card in listed["data"]] == [MODEL, *variants]
        card = (await stack.http.get(f"/v1/models/{MODEL}:best-of-8")).json()
        assert (card["id"], card["object"]) == (f"{MODEL}:best-of-8", "model")
        for impossible in (f"{MODEL}:best-of-0", f"{MODEL}:best-of-17"):
            check_envelope(await stack.http.get(f"/v1/models/{impossible}"), 404, "model_not_found")


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


async def test_a_gateway_that_leaves_lives_and_is_not_ready() -> None:
    async with running() as stack:
        stack.drain.leaving = True
        check_envelope(await stack.http.get("/health/ready"), 503, "not_ready")
        assert (await stack.http.get("/health/live")).status_code == 200
        assert (await stack.chat(best_of=2)).status_code == 200


async def test_version() -> None:
    async with running() as stack:
        assert (await stack.http.get("/version")).json()["version"]


async def test_allowed_engine_fields_go_up() -> None:
    async with running(allow_fields=frozenset({"chat_template_kwargs"})) as stack:
        assert (await stack.chat(chat_template_kwargs={"x": 1})).status_code == 200
        assert stack.vllm.requests[0].body["chat_template_kwargs"] == {"x": 1}
