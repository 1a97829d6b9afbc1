"""Which request fields go up to the policy, and what happens to the others.

A body that goes upstream is built from these lists and never copied: vLLM accepts unknown fields, and some
known ones reach into its engine (a Jinja template, a cache transfer, a scheduling priority, a URL to fetch).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from gateway.errors import InvalidRequestError
from gateway.parts import text_only

SAMPLING_FIELDS = frozenset(
    {
        "add_special_tokens",
        "allowed_token_ids",
        "bad_words",
        "echo",
        "frequency_penalty",
        "ignore_eos",
        "include_stop_str_in_output",
        "length_penalty",
        "logit_bias",
        "logprob_token_ids",
        "logprobs",
        "max_tokens",
        "min_p",
        "min_tokens",
        "n",
        "presence_penalty",
        "prompt_logprobs",
        "repetition_detection",
        "repetition_penalty",
        "response_format",
        "return_token_ids",
        "return_tokens_as_token_ids",
        "seed",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stop",
        "stop_token_ids",
        "stream",
        "stream_interval",
        "stream_options",
        "structured_outputs",
        "temperature",
        "thinking_token_budget",
        "top_k",
        "top_p",
        "truncate_prompt_tokens",
        "truncation_side",
        "use_beam_search",
    }
)
CHAT_FIELDS = SAMPLING_FIELDS | {
    "add_generation_prompt",
    "continue_final_message",
    "documents",
    "include_reasoning",
    "max_completion_tokens",
    "messages",
    "parallel_tool_calls",
    "reasoning_effort",
    "tool_choice",
    "tools",
    "top_logprobs",
}
COMPLETION_FIELDS = SAMPLING_FIELDS | {"prompt", "suffix"}
TOKENIZE_FIELDS = frozenset(
    {
        "add_generation_prompt",
        "add_special_tokens",
        "continue_final_message",
        "messages",
        "prompt",
        "return_token_strs",
        "tools",
    }
)
DETOKENIZE_FIELDS = frozenset({"tokens"})

# OpenAI's fields that change nothing on this stack: taken without a word, as every OpenAI client may send
# them.
NO_EFFECT_FIELDS = frozenset(
    {
        "audio",
        "metadata",
        "modalities",
        "moderation",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
        "web_search_options",
    }
)
# The gateway's own words.
OWN_FIELDS = frozenset({"alignment", "best_of", "model"})
# "media" stands for message parts that carry or point to images, audio, video or files.
ENGINE_FIELDS = frozenset(
    {
        "cache_salt",
        "chat_template",
        "chat_template_kwargs",
        "ec_transfer_params",
        "kv_transfer_params",
        "media",
        "media_io_kwargs",
        "mm_payload",
        "mm_processor_kwargs",
        "priority",
        "prompt_embeds",
        "request_id",
        "return_mm_kwargs",
        "return_prompt_text",
        "return_token_offsets",
        "routed_experts_prompt_start",
        "session_id",
        "vllm_xargs",
        "watermarking",
    }
)
# Gone from the policy, which would ignore them: an answer without the tools or the constraint that was asked
# for. The name -> what to use.
GONE_FIELDS = {
    "function_call": "tool_choice",
    "functions": "tools",
    "guided_choice": "structured_outputs",
    "guided_decoding_backend": "structured_outputs",
    "guided_grammar": "structured_outputs",
    "guided_json": "structured_outputs",
    "guided_regex": "structured_outputs",
    "guided_whitespace_pattern": "structured_outputs",
}
KNOWN_FIELDS = (
    CHAT_FIELDS | COMPLETION_FIELDS | TOKENIZE_FIELDS | DETOKENIZE_FIELDS | NO_EFFECT_FIELDS | OWN_FIELDS
)
_MAX_NAMED = 20


def forwardable(
    body: Mapping[str, Any], known: frozenset[str], allowed: frozenset[str]
) -> tuple[dict[str, Any], list[str]]:
    """Sort a request's fields: (those for upstream, the names of those that are ignored).

    `null` is absent. `known` are the endpoint's own fields, `allowed` the engine fields that the operator
    permits.

    Raises:
        InvalidRequestError: an engine field that the operator does not permit, or one that is gone.
    """
    upstream: dict[str, Any] = {}
    ignored: list[str] = []
    for name, value in body.items():
        if value is None or name in OWN_FIELDS or name in NO_EFFECT_FIELDS:
            continue
        if name in known or (name in ENGINE_FIELDS and name in allowed):
            upstream[name] = value
        elif name in ENGINE_FIELDS:
            raise refused(name)
        elif name in GONE_FIELDS:
            raise _gone(name)
        else:
            ignored.append(name)
    if "media" not in allowed and "messages" in upstream:
        upstream["messages"] = text_only(upstream["messages"])
    if upstream.get("seed") == -1:
        del upstream["seed"]  # -1 means "no seed"
    return upstream, ignored


def refused(name: str) -> InvalidRequestError:
    """The answer to a field that reaches into the engine."""
    return InvalidRequestError(
        f"`{name}` reaches into the engine and is not open to clients here."
        f" The operator can allow it with --allow-field {name}.",
        param=name,
        code="field_not_allowed",
    )


def ignored_header(names: Iterable[str]) -> str:
    """The value of `x-ignored-fields`: at most 20 names that are safe in a header, then how many more there
    are."""
    names = list(names)
    safe = [name for name in names if name.isascii() and name.replace("_", "").isalnum() and len(name) <= 64]
    shown = sorted(safe)[:_MAX_NAMED]
    more = len(names) - len(shown)
    return ", ".join([*shown, f"+{more} more"] if more else shown)


def _gone(name: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"`{name}` is no longer supported: use `{GONE_FIELDS[name]}`.", param=name, code="unsupported"
    )
