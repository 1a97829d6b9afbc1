"""From rows to token ids, with the tokens that are to be learned.

What is learned of a conversation is each assistant turn up to its end-of-turn token, and nothing else. The
prompt is tokenised exactly as a server will see it at generation time: the ids of the conversation so far
with the generation prompt must begin the ids of the answered conversation, or the data is refused. Plain text
(where the tokenizer has no chat template) is prompt and completion joined, cut where their ids part, closed
by the end token.
"""

from collections.abc import Iterator, Sequence

from trainers.chat import ChatEncoder, Rendering
from trainers.data import ChoiceTokens, PairTokens, Tokens
from trainers.errors import ConfigError, DataError
from trainers.formats import Choice, Demonstration, Pair
from trainers.packing import common_prefix


def tokenize_pairs(pairs: Sequence[Pair], encoder: ChatEncoder) -> list[PairTokens]:
    """Both sides of each pair for a policy: the targets are the continuation's assistant turns."""
    sides = [side for pair in pairs for side in pair.sides()]
    return _join_sides(pairs, tokenize_demonstrations(sides, encoder))


def tokenize_reward_pairs(pairs: Sequence[Pair], encoder: ChatEncoder) -> list[PairTokens]:
    """Both sides of each pair for a reward model: whole conversations, no targets."""
    sides = [side for pair in pairs for side in pair.sides()]
    return _join_sides(pairs, tokenize_conversations(sides, encoder))


def tokenize_choices(choices: Sequence[Choice], encoder: ChatEncoder) -> list[ChoiceTokens]:
    """All candidates of each choice, as whole conversations; those in the best one's tokens are left out."""
    rows = iter(tokenize_conversations([side for choice in choices for side in choice.candidates], encoder))
    found = []
    for choice in choices:
        best, *others = [next(rows) for _ in choice.candidates]
        different = [other for other in others if other.ids != best.ids]
        found.append(ChoiceTokens([best, *different], choice.margin, choice.source))
    return found


def tokenize_conversations(conversations: Sequence[Demonstration], encoder: ChatEncoder) -> list[Tokens]:
    """Whole conversations, as a reward model reads them."""
    if _without_template(conversations, encoder):
        return [Tokens(full, []) for _, full in _encode_plain(conversations, encoder)]
    renderings = [Rendering(item.messages, False, item.where) for item in conversations]
    return [Tokens(ids, []) for ids in encoder.encode(renderings)]


def tokenize_demonstrations(conversations: Sequence[Demonstration], encoder: ChatEncoder) -> list[Tokens]:
    """Conversations with their assistant turns as targets, ended after the last target."""
    if _without_template(conversations, encoder):
        return [
            Tokens(full, list(range(max(1, common_prefix(prompt, full)), len(full))))
            for prompt, full in _encode_plain(conversations, encoder)
        ]
    renderings = []
    for item in conversations:
        for turn in _learned_turns(item):
            renderings.append(Rendering(item.messages[:turn], True, item.where))
            renderings.append(Rendering(item.messages[: turn + 1], False, item.where))
    encoded = iter(encoder.encode(renderings))
    end_tokens = encoder.control_ids
    return [_mark_targets(item, encoded, end_tokens) for item in conversations]


def _learned_turns(item: Demonstration) -> list[int]:
    indices = range(item.learn_from, len(item.messages))
    return [index for index in indices if item.messages[index]["role"] == "assistant"]


def _mark_targets(item: Demonstration, encoded: Iterator[list[int]], end_tokens: frozenset[int]) -> Tokens:
    ids: list[int] = []
    targets: list[int] = []
    for _ in _learned_turns(item):
        prompt, answered = next(encoded), next(encoded)
        if answered[: len(prompt)] != prompt or answered[: len(ids)] != ids or not prompt:
            raise DataError(
                f"{item.where}: with this chat template the tokens of the prompt do not begin those of "
                "prompt and answer, so training would not match serving; use a template that renders "
                "earlier turns unchanged and ends its generation prompt in a control token or line break"
            )
        end = max(
            (at for at in range(len(prompt), len(answered)) if answered[at] in end_tokens), default=None
        )
        if end is None:
            raise ConfigError(
                "the chat template does not close assistant turns with a control token, so the model would "
                "never learn to stop; pass another with --chat_template_path"
            )
        ids = answered[: end + 1]
        targets += range(len(prompt), end + 1)
    return Tokens(ids, targets)


def _without_template(conversations: Sequence[Demonstration], encoder: ChatEncoder) -> bool:
    if encoder.tokenizer.chat_template:
        return False
    if all(item.is_text for item in conversations):
        return True
    raise ConfigError(
        "the data holds conversations, and the tokenizer has no chat template that tells the roles apart: "
        "pass --chat_template_path FILE, or --chat_template_path simple for the built-in one"
    )


def _encode_plain(
    conversations: Sequence[Demonstration], encoder: ChatEncoder
) -> Iterator[tuple[list[int], list[int]]]:
    """Plain prompt and completion: the ids of the prompt, and of both joined, closed by the end token."""
    prompts = encoder.encode_plain([item.messages[0]["content"] for item in conversations])
    joined = encoder.encode_plain(["".join(m["content"] for m in item.messages) for item in conversations])
    end = encoder.tokenizer.eos_token_id
    if end is None:
        raise ConfigError("the tokenizer has no end token (eos_token), so nothing could be taught to stop")
    for prompt, full in zip(prompts, joined, strict=True):
        yield prompt, full if full[-1:] == [end] else [*full, end]


def _join_sides(pairs: Sequence[Pair], sides: Sequence[Tokens]) -> list[PairTokens]:
    return [
        PairTokens(sides[2 * index], sides[2 * index + 1], pair.margin, index, pair.source)
        for index, pair in enumerate(pairs)
    ]
