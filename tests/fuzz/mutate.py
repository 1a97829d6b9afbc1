"""Valid JSON bodies made wrong, byte by byte and token by token: what a serialiser would never write.

Each case is a function of a seed and a number, so that one line of a report brings it back:

    python -m tests.fuzz.mutate SEED NUMBER
"""

import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
}
CANARY = b"canary-7f3a"
"""In the corpus's texts: no error may repeat it."""
VALUES = [
    *(b"-1", b"0", b"1", b"2", b"16", b"17", b"1.0", b"1e-400", b"9223372036854775808", b"-0.0", b"1e300"),
    *(b"true", b"false", b"null", b"{}", b"[]", b"[[]]", b'[{"type":[]}]', b'{"type":{}}', b"[null]", b"[1]"),
    *(b'""', b'"x"', b'"\\u0000"', b'"\\u202e\\ud83d\\ude00"', b'"tiny:best-of-999"', b'"{{7*7}}"'),
    *(b'"<|im_start|>system"', b'"../../etc/passwd\\n"', b'"none"', b'"' + b"x" * 20_000 + b'"'),
]
"""JSON that fits the grammar and nothing else."""
BROKEN = [
    *(b"NaN", b"-Infinity", b"1e400", b"0x10", b"9" * 5000, b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\x"'),
    *(b"\0", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"[" * 65, b'{"a":' * 65, b"//", b","),
    *(b"'x'", b'"n":1,"n":9,', b'"best_of":4,', b'"stream":true,', b'"chat_template":"{{7*7}}",', b""),
]
"""What a serialiser does not write, and pieces of members."""
HEADERS = [
    *(b"X-Best-Of", b"X-Request-Id", b"X-Request-Timeout", b"X-Stainless-Read-Timeout", b"Traceparent"),
    *(b"Content-Type", b"Content-Encoding", b"Authorization", b"Accept", b"Cookie", b"Origin"),
]
HEADER_VALUES = [
    *(
        b"",
        b"NaN",
        b"-1",
        b"0",
        b"16",
        b"1e400",
        b"9" * 400,
        b"\xff\xfe",
        b"Bearer",
        b"Bearer \xe4",
        b"x" * 4000,
    ),
    *(
        b"application/json; charset=utf-16",
        b"gzip",
        b"multipart/form-data",
        b"*/*;q=nan",
        b"00-0-0-00",
        b"null",
    ),
]
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|\w+|[\[\]{}:,]')
VALUE = re.compile(rb'(?<=[:,\[])\s*("(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|\w+)(?=\s*[,}\]])')


@dataclass(frozen=True)
class Seed:
    """A valid body."""

    name: str
    path: str
    body: bytes


@dataclass(frozen=True)
class Case:
    """A request to send."""

    number: int
    seed: str
    path: str
    header: bytes
    """A line, or nothing."""
    body: bytes


def corpus() -> list[Seed]:
    """Every valid body in the folder, by name."""
    return [
        Seed(file.stem, PATHS[file.stem.partition("-")[0]], file.read_bytes())
        for file in sorted(CORPUS.glob("*.json"))
    ]


def make_case(seeds: list[Seed], seed: int, number: int) -> Case:
    """Case `number` of a run."""
    rng = random.Random(seed * 2**32 + number)
    chosen = rng.choice(seeds)
    body = chosen.body
    mutations = rng.choice(((_replace_value,), MUTATIONS))  # still JSON, or most likely not
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        body = rng.choice(mutations)(body, rng)
    header = b""
    if rng.random() < 0.1:
        header = rng.choice(HEADERS) + b": " + rng.choice(HEADER_VALUES) + b"\r\n"
    return Case(number, chosen.name, chosen.path, header, body)


def _flip(body: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :]


def _cut(body: bytes, rng: random.Random) -> bytes:
    start, end = sorted((rng.randrange(len(body) + 1), rng.randrange(len(body) + 1)))
    return rng.choice((body[:start], body[end:], body[:start] + body[end:]))


def _repeat(body: bytes, rng: random.Random) -> bytes:
    start, end = sorted((rng.randrange(len(body) + 1), rng.randrange(len(body) + 1)))
    return body[:start] + body[start:end] * rng.choice((2, 3, 20)) + body[end:]


def _insert(body: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + rng.choice(BROKEN) + body[at:]


def _replace_value(body: bytes, rng: random.Random) -> bytes:
    values = list(VALUE.finditer(body))
    if not values:
        return body
    found = rng.choice(values)
    return body[: found.start(1)] + rng.choice(VALUES) + body[found.end(1) :]


def _replace_token(body: bytes, rng: random.Random) -> bytes:
    tokens = list(TOKEN.finditer(body))
    if not tokens:
        return body
    found = rng.choice(tokens)
    return body[: found.start()] + rng.choice((*BROKEN, found[0] * 2)) + body[found.end() :]


def _swap_tokens(body: bytes, rng: random.Random) -> bytes:
    tokens = list(TOKEN.finditer(body))
    if len(tokens) < 2:
        return body
    one, two = sorted(rng.sample(tokens, 2), key=re.Match.start)
    return body[: one.start()] + two[0] + body[one.end() : two.start()] + one[0] + body[two.end() :]


MUTATIONS = (_flip, _cut, _repeat, _insert, _replace_value, _replace_token, _replace_token, _swap_tokens)


if __name__ == "__main__":
    found = make_case(corpus(), int(sys.argv[1]), int(sys.argv[2]))
    print(found.path, found.seed, found.header, found.body, sep="\n")
