"""What best-of-N answers: the body, the `alignment` record, the headers, and the same as a stream of
chunks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.best_of_n import Outcome, Selection, kl_bound_nats
from gateway.candidates import Candidate
from gateway.policy import ChoiceDelta


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What all chunks of an answer have in common."""

    id: str
    created: int
    model: str
    chat: bool

    def envelope(self, *, chunk: bool) -> dict[str, Any]:
        """The head of a body or chunk."""
        kind = "chat.completion" if self.chat else "text_completion"
        if chunk and self.chat:
            kind += ".chunk"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the request wanted, as far as the answer depends on it."""

    best_of: int
    reward_model: str | None
    return_candidates: bool
    include_usage: bool
    is_list: bool
    """Several prompts came in: `alignment` is a list."""
    queue_s: float = 0.0
    """How long the request waited for its candidate slots."""


def body(identity: Identity, outcome: Outcome, asked: Asked) -> dict[str, Any]:
    """The answer that is not streamed."""
    whole = identity.envelope(chunk=False)
    whole["choices"] = [
        _choice(identity, index, candidate) for index, candidate in enumerate(_chosen(outcome))
    ]
    whole["usage"] = usage(outcome)
    if outcome.system_fingerprint is not None:
        whole["system_fingerprint"] = outcome.system_fingerprint
    whole["alignment"] = alignment(identity, outcome, asked)
    return whole


def chunks(
    identity: Identity, outcome: Outcome, asked: Asked, *, role_sent: bool
) -> Iterator[dict[str, Any]]:
    """The answer as chunks: per choice its role and its text as the policy streamed it; `alignment` on the
    last chunk with a finish_reason; then usage, if asked for."""
    chosen = _chosen(outcome)
    for index, candidate in enumerate(chosen):
        if identity.chat and not (role_sent and index == 0):
            yield role_chunk(identity, index)
        pieces = [piece for piece in candidate.deltas if _says_something(piece)]
        for position, piece in enumerate(pieces):
            chunk = _piece_chunk(identity, index, piece)
            if index == len(chosen) - 1 and position == len(pieces) - 1:
                chunk["alignment"] = _timed(alignment(identity, outcome, asked), outcome, asked)
            yield chunk
    if asked.include_usage:
        yield {**identity.envelope(chunk=True), "choices": [], "usage": usage(outcome)}


def role_chunk(identity: Identity, index: int) -> dict[str, Any]:
    """The first chunk of a choice; for completions, which know no roles, an empty text."""
    start = {"delta": {"role": "assistant", "content": ""}} if identity.chat else {"text": ""}
    choice = {"index": index, **start, "logprobs": None, "finish_reason": None}
    return {**identity.envelope(chunk=True), "choices": [choice]}


def heartbeat_chunk(identity: Identity) -> dict[str, Any]:
    """A chunk that says nothing: clients reset their timers on chunks, not on comments."""
    nothing: dict[str, Any] = {"delta": {}} if identity.chat else {"text": ""}
    choice = {"index": 0, **nothing, "logprobs": None, "finish_reason": None}
    return {**identity.envelope(chunk=True), "choices": [choice]}


def usage(outcome: Outcome) -> dict[str, Any]:
    """Token counts: the prompt once, every token of every candidate."""
    prompt, completion = outcome.usage.prompt_tokens, outcome.usage.completion_tokens or 0
    counts: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if outcome.usage.prompt_tokens_details is not None:
        counts["prompt_tokens_details"] = outcome.usage.prompt_tokens_details
    return counts


def alignment(identity: Identity, outcome: Outcome, asked: Asked) -> dict[str, Any] | list[dict[str, Any]]:
    """The `alignment` record; for list prompts one per prompt."""
    records = [_record(identity, selection, asked) for selection in outcome.selections]
    return records if asked.is_list else records[0]


def headers(outcome: Outcome, asked: Asked) -> dict[str, str]:
    """The best-of-N headers of an answer that is not streamed. With several prompts: the sum of the scored,
    and the first reason to be degraded."""
    degraded = next((selection.degraded for selection in outcome.selections if selection.degraded), None)
    return {
        "x-best-of": str(asked.best_of),
        "x-best-of-scored": str(sum(len(selection.rewards) for selection in outcome.selections)),
        "server-timing": _timing(outcome, asked),
        **({"x-alignment-degraded": degraded} if degraded else {}),
    }


def _timing(outcome: Outcome, asked: Asked) -> str:
    return server_timing(asked.queue_s, outcome.generate_s, outcome.reward_s)


def _timed(
    records: dict[str, Any] | list[dict[str, Any]], outcome: Outcome, asked: Asked
) -> dict[str, Any] | list[dict[str, Any]]:
    """With what an answer that is not streamed has in its headers, which a stream has sent long before."""
    for record in records if isinstance(records, list) else [records]:
        record["server_timing"] = _timing(outcome, asked)
    return records


def server_timing(queue_s: float, generate_s: float, reward_s: float) -> str:
    """The `server-timing` header, in milliseconds; reward is what did not overlap with generation."""
    parts = {"queue": queue_s, "generate": generate_s, "reward": reward_s}
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in parts.items())


def _chosen(outcome: Outcome) -> list[Candidate]:
    return [candidate for selection in outcome.selections for candidate in selection.chosen]


def _choice(identity: Identity, index: int, candidate: Candidate) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index}
    choice |= {"message": candidate.message} if identity.chat else {"text": candidate.text}
    choice |= {"logprobs": candidate.logprobs, "finish_reason": candidate.finish_reason}
    choice["stop_reason"] = candidate.stop_reason
    if (token_ids := candidate.token_ids) is not None:
        choice["token_ids"] = token_ids
    return choice


def _says_something(piece: ChoiceDelta) -> bool:
    said = {
        name: value
        for name, value in (piece.delta or {}).items()
        if name != "role" and value not in (None, "")
    }
    return bool(said or piece.text or piece.logprobs or piece.finish_reason or piece.token_ids)


def _piece_chunk(identity: Identity, index: int, piece: ChoiceDelta) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index}
    if identity.chat:
        choice["delta"] = {name: value for name, value in (piece.delta or {}).items() if name != "role"}
    else:
        choice["text"] = piece.text or ""
    choice |= {"logprobs": piece.logprobs, "finish_reason": piece.finish_reason}
    if piece.finish_reason is not None:
        choice["stop_reason"] = piece.stop_reason
    if piece.token_ids is not None:
        choice["token_ids"] = piece.token_ids
    return {**identity.envelope(chunk=True), "choices": [choice]}


def _record(identity: Identity, selection: Selection, asked: Asked) -> dict[str, Any]:
    rewards = selection.rewards
    record: dict[str, Any] = {
        "method": "best_of_n",
        "best_of": asked.best_of,
        "finished": selection.finished,
        "scored": len(rewards),
        "reward_model": asked.reward_model or selection.reward_model,
        "reward_model_version": selection.reward_model_version,
        "rewards": [candidate.reward for candidate in selection.chosen],
        "reward_mean": sum(rewards) / len(rewards) if rewards else None,
        "kl_bound_nats": kl_bound_nats(len(rewards)),
        "usage": {
            "selected_completion_tokens": _tokens(selection.chosen),
            "all_completion_tokens": _all_tokens(selection.candidates),
            "reward_tokens": selection.reward_tokens,
        },
        "degraded": selection.degraded,
    }
    if any(candidate.out_of_distribution is not None for candidate in selection.candidates):
        record["out_of_distribution"] = [candidate.out_of_distribution for candidate in selection.chosen]
    if asked.return_candidates:
        record["candidates"] = [_candidate(identity, candidate) for candidate in selection.candidates]
    return record


def _tokens(candidates: Sequence[Candidate]) -> int | None:
    """None where the policy does not count per candidate."""
    if any(candidate.finished and candidate.completion_tokens is None for candidate in candidates):
        return None
    return sum(candidate.completion_tokens or 0 for candidate in candidates)


def _all_tokens(candidates: Sequence[Candidate]) -> int | None:
    """With those that were lost with a server, as in the answer's `usage`."""
    received = _tokens(candidates)
    return None if received is None else received + sum(candidate.lost_tokens for candidate in candidates)


def _candidate(identity: Identity, candidate: Candidate) -> dict[str, Any]:
    said = {"message": candidate.message} if identity.chat else {"text": candidate.text}
    return {
        "index": candidate.index,
        "reward": candidate.reward,
        "finish_reason": candidate.finish_reason,
        "completion_tokens": candidate.completion_tokens,
        **said,
    }
