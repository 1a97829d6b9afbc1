"""The strings that tokenizers take for control tokens: a policy's own where known, else the common ones.

vLLM renders a chat into one text and tokenises that, so that such a string inside a user's message becomes a
control token: the end of a turn, the start of another role.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

ESCAPE = "\\"
"""What breaks a string; see `gateway.control_text`."""

# Shapes that tokenizers use for nothing else, by their first character: <|...|> of ChatML, Llama 3, Phi and
# gpt-oss, <|...> of Gemma 4, DeepSeek's full-width bars and what looks like them, [|...|] of EXAONE.
_INNER = r"[^\s<>|＜＞｜\[\]]{1,64}"
_ANGLE = rf"[|｜]{_INNER}[|｜]?[>＞]"
SHAPES = {"<": _ANGLE, "＜": _ANGLE, "[": rf"\|{_INNER}\|\]"}
SHAPES_BEGIN = ("<|", "<｜", "＜|", "＜｜", "[|")

MARKS = frozenset({"<think>", "</think>", "<tool_call>", "</tool_call>"})
"""What models write into their own turns, to part thoughts and calls from text. Clients send such turns back,
or begin one (`<think>` with `continue_final_message`), so an assistant's turn may hold them."""
COMMON = MARKS | frozenset(
    (
        # Llama 2, Mistral, Gemma and many more
        "<s> </s> <unk> <pad> <bos> <eos> [INST] [/INST] <<SYS>> <</SYS>> [SYSTEM_PROMPT] [/SYSTEM_PROMPT]"
        " [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [ARGS] [CALL_ID] [TOOL_CONTENT]"
        " [TOOL_RESULTS] [/TOOL_RESULTS] [THINK] [/THINK] [IMG] [IMG_BREAK] [IMG_END]"
        " [PREFIX] [MIDDLE] [SUFFIX] <start_of_turn> <end_of_turn> <start_of_image> <end_of_image>"
        " <turn|> <channel|> <tool|> <tool_call|> <tool_response|>"
        # Qwen, Command R, GLM
        " <tool_response> </tool_response> <BOS_TOKEN> <EOS_TOKEN> <PAD_TOKEN> [gMASK] [sMASK] <sop> <eop>"
    ).split()
)
# Gemma's tokenizers list these among their added tokens, where they are text.
_HTML = re.compile(
    r"</?(?:a|b|blockquote|br|caption|code|div|em|h[1-6]|i|li|ol|p|pre|s|span|strong|sub|sup"
    r"|table|tbody|td|tfoot|th|thead|tr|u|ul)>"
)
_BRACKETED = re.compile(r"[<＜\[]\S+[>＞\]]")


def special_tokens(info: Mapping[str, Any]) -> frozenset[str]:
    """The special tokens in vLLM's answer to GET /tokenizer_info: `tokenizer_config.json`, tokens as texts.

    Its `added_tokens_decoder` does not say which of its tokens are special, so of these the bracketed ones
    are taken, without HTML's elements.
    """
    named = {
        token
        for name, value in info.items()
        if name.endswith(("_token", "_tokens"))
        for token in _texts(value)
    }
    decoder = info.get("added_tokens_decoder")
    added = _texts(decoder) if isinstance(decoder, Mapping) else ()
    return frozenset(named | {t for t in added if _BRACKETED.fullmatch(t) and not _HTML.fullmatch(t)})


def breakable(tokens: Collection[str]) -> frozenset[str]:
    """Those of the tokens that can be told from text and broken: no single characters, white space or plain
    words, and none that holds the very character that breaks them."""
    return frozenset(
        token
        for token in tokens
        if len(token) > 1 and token.strip() and not token.isalnum() and ESCAPE not in token
    )


def pattern(words: Collection[str]) -> str:
    """A regular expression for the first character of every shape and word, wherever one of them stands.

    Only that character is consumed, so that overlapping ones are all found; each alternative begins with a
    literal, so that text without any is skipped fast.
    """
    tails: dict[str, list[str]] = {first: [shape] for first, shape in SHAPES.items()}
    for first, rest in _by_first(words).items():
        tails.setdefault(first, []).append(_one_of(rest))
    return "|".join(f"{re.escape(first)}(?={'|'.join(tail)})" for first, tail in tails.items())


def _one_of(words: Collection[str]) -> str:
    """A regular expression for any of these words, factored by their beginnings, so that its time does not
    grow with their number."""
    branches = [
        re.escape(first) + (_one_of(rest) if len(rest) > 1 else re.escape(rest[0]))
        for first, rest in _by_first(word for word in words if word).items()
    ]
    return f"(?:{'|'.join(branches)}){'?' if '' in words else ''}"


def _by_first(words: Iterable[str]) -> dict[str, list[str]]:
    """What follows the first character, by that character."""
    groups: dict[str, list[str]] = {}
    for word in sorted(words):
        groups.setdefault(word[0], []).append(word[1:])
    return groups


def _texts(value: Any) -> Iterator[str]:
    """Every text in a token, a list of tokens, or tokens by name or id."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
