"""What spans say, by OpenTelemetry's semantic conventions for generative AI, and under `bonsai.` what those
have no word for. Numbers and names only: prompts and answers never stand in a trace.

https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

from collections.abc import Mapping
from typing import Any

from gateway.best_of_n import Outcome
from gateway.intake import Job
from gateway.tracing import Value

_SAMPLING = {
    "gen_ai.request.max_tokens": ("max_completion_tokens", "max_tokens"),
    "gen_ai.request.temperature": ("temperature",),
    "gen_ai.request.top_p": ("top_p",),
    "gen_ai.request.top_k": ("top_k",),
    "gen_ai.request.seed": ("seed",),
    "gen_ai.request.frequency_penalty": ("frequency_penalty",),
    "gen_ai.request.presence_penalty": ("presence_penalty",),
}


def asked(job: Job, request_id: str) -> dict[str, Value | None]:
    """Of a request: what is asked for."""
    named: dict[str, Value | None] = {
        name: next(
            (number for field in fields if (number := _number(job.upstream_body, field)) is not None), None
        )
        for name, fields in _SAMPLING.items()
    }
    return named | {
        "gen_ai.request.choice.count": job.n if job.n > 1 else None,
        "gen_ai.request.stream": bool(job.request.stream),
        "gen_ai.response.model": job.route.model,
        "bonsai.best_of": job.best_of,
        "bonsai.prompts": max(len(job.prompts), 1),
        "bonsai.bypass": job.bypass,
        "bonsai.request_id": request_id,
    }


def usage(prompt: int, completion: int) -> dict[str, Value | None]:
    """Of a request: what it cost in tokens, all candidates together."""
    return {"gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": completion}


def chosen(outcome: Outcome) -> dict[str, Value | None]:
    """Of a best-of-N request: what came of it; over several prompts together."""
    answers = [candidate for selection in outcome.selections for candidate in selection.chosen]
    rewards = [reward for selection in outcome.selections for reward in selection.rewards]
    first = outcome.selections[0]
    return {
        "gen_ai.response.finish_reasons": [str(answer.finish_reason) for answer in answers],
        "bonsai.reward.model": first.reward_model,
        "bonsai.reward.version": first.reward_model_version,
        "bonsai.reward.chosen": [answer.reward for answer in answers if answer.reward is not None],
        "bonsai.reward.mean": sum(rewards) / len(rewards) if rewards else None,
        "bonsai.degraded": next((s.degraded for s in outcome.selections if s.degraded), None),
    }


def _number(body: Mapping[str, Any], field: str) -> int | float | None:
    """The protocol has seen to it that it is one of 64 bits: others would cost a whole batch of spans."""
    value = body.get(field)
    return value if isinstance(value, int | float) else None
