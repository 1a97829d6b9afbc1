"""What of a message goes upstream."""

from typing import Any

import pytest

from gateway.errors import InvalidRequestError
from gateway.parts import text_only

URL = {"url": "http://169.254.169.254/"}


def sent(message: dict[str, Any]) -> Any:
    """The message as it goes up."""
    [result] = text_only([message])
    return result


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("text", "text"),
        ("input_text", "text"),
        ("output_text", "text"),
        ("refusal", "refusal"),
        ("thinking", "thinking"),
    ],
)
def test_a_text_part_goes_up_as_its_type_and_its_text(kind: str, key: str) -> None:
    part = {"type": kind, key: "Hi"}
    extra = {"prompt_cache_breakpoint": {"mode": "explicit"}, "cache_control": {}, "image": "x", "uuid": "u"}
    assert sent({"role": "user", "content": [{**part, **extra}]}) == {"role": "user", "content": [part]}


def test_a_url_beside_a_text_does_not_go_up() -> None:
    # vLLM takes such a part for an image and fetches the URL
    part = {"type": "text", "text": "Hi", "uuid": "u", "image_url": URL}
    assert sent({"role": "user", "content": [part]})["content"] == [{"type": "text", "text": "Hi"}]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": URL},
        {"type": "input_image", "image_url": "http://x/"},
        {"type": "input_audio", "input_audio": {}},
        {"type": "video_url", "video_url": URL},
        {"type": "file", "file": {}},
        {"type": "prompt_embeds", "data": ""},
        {"type": "shiny", "text": "Hi"},
        {"type": None, "image_url": URL},
        {"type": ["text"], "text": "Hi"},
        {"image_url": URL},
        {},
        "Hi",
        None,
    ],
)
def test_a_part_that_is_no_text_is_refused(part: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        sent({"role": "user", "content": [{"type": "text", "text": "Hi"}, part]})
    assert (caught.value.param, caught.value.code) == ("media", "field_not_allowed")


@pytest.mark.parametrize("text", [None, 5, ["Hi"], {"text": "Hi"}])
def test_a_text_that_is_no_text_is_refused_by_name(text: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        sent({"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": text}]})
    assert caught.value.param == "messages[0].content[1].text"


def test_what_an_answer_carried_besides_does_not_go_up_again() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    kept = {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "reasoning": "hm"}
    extra = {"annotations": [], "audio": None, "function_call": None, "parsed": {"a": 1}, "task": "x"}
    assert sent({**kept, **extra}) == kept


def test_a_plain_message_is_not_copied() -> None:
    message = {"role": "user", "content": "Hi", "name": "Ann"}
    assert sent(message) is message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"function_call": {"name": "f", "arguments": "{}"}}, "messages[0].function_call"),
        (
            {"tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "x"}}]},
            "messages[0].tool_calls[0].type",
        ),
    ],
)
def test_calls_that_the_policy_would_not_see_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        sent({"role": "assistant", "content": None, **fields})
    assert (caught.value.param, caught.value.code) == (param, "unsupported")


def test_an_assistants_audio_is_media() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        sent({"role": "assistant", "audio": {"id": "a1"}})
    assert caught.value.param == "media"


@pytest.mark.parametrize("messages", [None, "Hi", [5], [None], {"role": "user"}])
def test_what_is_no_list_of_messages_is_left_to_the_policy(messages: Any) -> None:
    assert text_only(messages) == messages
