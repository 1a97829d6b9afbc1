"""Do the servers behind the gateway answer, and do they take the same conversations?

A policy whose template knows system turns, beside a reward model whose template does not, answers chats that
best-of-N then cannot judge: better said at the start than found out request by request. `python -m gateway
check` prints all of this; a starting gateway logs what is wrong, and learns the policies' own control tokens.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from gateway.candidates import judged_messages
from gateway.catalog import ServedPolicy
from gateway.control_tokens import special_tokens
from gateway.errors import GatewayError, InvalidRequestError, NotFoundError, UpstreamError
from gateway.policy import Call
from gateway.rewards import Question
from gateway.runtime import Judge, Runtime, name_of
from gateway.upstream import UNREADABLE, token_count

AGAIN_S = 1.0
"""Between looks at servers that do not answer yet; it doubles each time, because looking costs rewards."""
LONGEST_PAUSE_S = 60.0
RESPONSE = "It is a river."
QUESTION = {"role": "user", "content": "What is the Rhine?"}
CALLS = [{"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"of": "Rhine"}'}}]
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [QUESTION],
    "several turns": [QUESTION, {"role": "assistant", "content": RESPONSE}, QUESTION],
    "a system turn": [{"role": "system", "content": "Be brief."}, QUESTION],
    "a tool's answer": [
        QUESTION,
        {"role": "assistant", "content": "", "tool_calls": CALLS},
        {"role": "tool", "tool_call_id": "c1", "content": RESPONSE},
    ],
}
logger = logging.getLogger("gateway")


@dataclass(frozen=True)
class Finding:
    """What was seen of one server."""

    level: Literal["ok", "warning", "error"]
    subject: str
    text: str


async def examine(runtime: Runtime) -> list[Finding]:
    """Ask every policy and every judge about every kind of conversation."""
    policies = await asyncio.gather(*(_policy_takes(policy) for policy in runtime.policies))
    judges = await asyncio.gather(*(_judge_takes(judge) for judge in runtime.judges))
    takers = [*zip(map(_policy_name, runtime.policies), policies, strict=True)]
    takers += [*zip(map(_judge_name, runtime.judges), judges, strict=True)]
    findings = [_seen(name, takes) for name, takes in takers]
    for policy, taken in zip(runtime.policies, policies, strict=True):
        for judge, judged in zip(runtime.judges, judges, strict=True):
            if isinstance(taken, dict) and isinstance(judged, dict):
                findings += _compare(_policy_name(policy), taken, _judge_name(judge), judged)
    return findings


async def examine_at_start(runtime: Runtime) -> None:
    """Learn the policies' control tokens and log what is wrong, as soon as everybody answers."""
    await asyncio.gather(*(learn_control_tokens(policy) for policy in runtime.policies))
    pause_s = AGAIN_S
    findings = await examine(runtime)
    while any(finding.level == "error" for finding in findings):
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        findings = await examine(runtime)
    for finding in findings:
        if finding.level == "warning":
            logger.warning("%s: %s", finding.subject, finding.text)


async def learn_control_tokens(policy: ServedPolicy) -> None:
    """Ask until the policy answers; one that does not tell (404) leaves the common tokens in force."""
    while True:
        try:
            status, answer = await policy.client.get("/tokenizer_info")
            break
        except GatewayError:
            await asyncio.sleep(AGAIN_S)
    try:
        tokens = special_tokens(msgspec.json.decode(answer, type=dict[str, Any])) if status == 200 else None
    except UNREADABLE:
        tokens = None
    if tokens:
        policy.control_text.learn(tokens)


Taken = dict[str, int | None] | GatewayError
"""Tokens by kind of conversation, None where the kind is refused; or why nothing could be asked."""


async def _policy_takes(policy: ServedPolicy) -> Taken:
    try:
        cards = await policy.client.models()
        if not cards:
            return UpstreamError("it lists no model")
        model = policy.config.model or policy.config.name or cards[0]["id"]
        if all(card["id"] != model for card in cards):
            return InvalidRequestError(f"it does not serve {model}; it lists other models")
        return {kind: await _count(policy, model, messages) for kind, messages in CONVERSATIONS.items()}
    except NotFoundError:
        return {}  # no /tokenize: not vLLM, or one that keeps it closed
    except GatewayError as error:
        return error


async def _count(policy: ServedPolicy, model: str, messages: Sequence[dict[str, Any]]) -> int | None:
    turns = [*messages, {"role": "assistant", "content": RESPONSE}]
    body = {"model": model, "messages": turns, "add_generation_prompt": False}
    call = Call(path="/tokenize", body=body, request_id="check", work=0)
    try:
        answer = await policy.client.fetch(call)
        return token_count(msgspec.json.decode(answer.content, type=dict[str, Any]).get("count"))
    except (InvalidRequestError, *UNREADABLE):
        return None


async def _judge_takes(judge: Judge) -> Taken:
    try:
        return {kind: await _judge(judge, messages) for kind, messages in CONVERSATIONS.items()}
    except GatewayError as error:
        return error


async def _judge(judge: Judge, messages: Sequence[dict[str, Any]]) -> int | None:
    question = Question(messages=judged_messages(messages), responses=(RESPONSE,))
    try:
        return (await judge.client.score(question)).tokens
    except InvalidRequestError:
        return None


def _seen(name: str, takes: Taken) -> Finding:
    if isinstance(takes, GatewayError):
        return Finding("error", name, takes.message)
    refused = [kind for kind, tokens in takes.items() if tokens is None]
    if not takes:
        return Finding("ok", name, "answers, and does not say which conversations it takes")
    if "one question" in refused:
        return Finding("error", name, "refuses even one question: is this the right model?")
    taken = ", ".join(f"{kind} ({tokens} tokens)" for kind, tokens in takes.items() if tokens is not None)
    return Finding("ok", name, f"takes {taken}" + (f"; refuses {', '.join(refused)}" if refused else ""))


def _compare(
    policy: str, taken: dict[str, int | None], judge: str, judged: dict[str, int | None]
) -> list[Finding]:
    both = {kind: (tokens, judged[kind]) for kind, tokens in taken.items() if tokens is not None}
    findings = [
        Finding("warning", judge, f"cannot judge conversations with {kind}, which {policy} answers")
        for kind, (_, tokens) in both.items()
        if tokens is None
    ]
    counts = [pair for pair in both.values() if all(pair)]
    if counts and any(read != judged_as for read, judged_as in counts):
        findings.append(
            Finding(
                "ok",
                judge,
                f"reads the same text as other tokens than {policy}: another template or tokenizer",
            )
        )
    return findings


def _policy_name(policy: ServedPolicy) -> str:
    return f"policy {name_of(policy.config)}"


def _judge_name(judge: Judge) -> str:
    return f"reward model {name_of(judge.config)}"
