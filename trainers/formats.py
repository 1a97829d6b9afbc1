"""Data files and their columns: from a path to demonstrations or preference pairs.

Files are .jsonl (one object a line) or .json (one list of objects), either also .gz; a folder stands for the
files in it; any other name is taken from the Hugging Face hub, if `datasets` is installed. Columns are TRL's:

    messages                        a conversation; every assistant turn is learned
    prompt + completion             strings, or lists of messages; the completion is learned
    prompt + chosen + rejected      strings, or lists of messages (optional `margin`, a number)
    chosen + rejected               lists of messages that begin alike (the shared part is the prompt), or
                                    Anthropic's transcripts: strings of "\\n\\nHuman: " / "\\n\\nAssistant: "
                                    turns
    prompt + responses + best       several answers and the index of the best, from 0 (optional `margin`)

Preferences may say in `source` where they come from (a labeller, a policy, a data set). Other columns are
ignored. Whatever is malformed is a DataError that names the file and the line.
"""

import gzip
import hashlib
import importlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from trainers.errors import ConfigError, DataError

Message = dict[str, str]
Row = dict[str, Any]
ByteFile = gzip.GzipFile | BufferedReader
SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation of which the assistant turns from `learn_from` on are learned.

    Plain text (a tokenizer without chat template) is held as one user and one assistant turn with `is_text`
    set.
    """

    messages: list[Message]
    learn_from: int
    is_text: bool
    where: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two continuations of one prompt, the first preferred by at least `margin`."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    is_text: bool
    margin: float
    where: str
    source: str = ""
    """The column, or the name of the file."""

    def sides(self) -> list[Demonstration]:
        """Both conversations, the chosen one first."""
        start = len(self.prompt)
        return [
            Demonstration(self.prompt + side, start, self.is_text, self.where)
            for side in (self.chosen, self.rejected)
        ]


@dataclass(frozen=True, slots=True)
class Choice:
    """Several conversations that differ in their answer, the best first, by at least `margin`."""

    candidates: list[Demonstration]
    margin: float
    source: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where data came from, for alignment.json."""

    path: str
    sha256: str | None
    rows: int


def read_demonstrations(name: str) -> tuple[list[Demonstration], list[Source]]:
    """Reads conversations and prompt-completion rows."""
    rows, sources = read_rows(name)
    return [_demonstration(row, where) for row, where in rows], sources


def read_conversations(name: str) -> tuple[list[Demonstration], list[Source]]:
    """Reads whole conversations: of demonstrations, of both sides of pairs, or of `prompt` + `responses`
    (samples).
    """
    rows, sources = read_rows(name)
    return [conversation for row, where in rows for conversation in _conversations(row, where)], sources


def read_pairs(name: str) -> tuple[list[Pair], list[Source]]:
    """Reads preference pairs in any of their forms."""
    rows, sources = read_rows(name)
    return [_pair(row, where) for row, where in rows], sources


def read_choices(name: str) -> tuple[list[Choice], list[Source]]:
    """Reads choices among several answers; a pair in any of its forms is a choice of two."""
    rows, sources = read_rows(name)
    return [_choice(row, where) for row, where in rows], sources


def read_rows(name: str) -> tuple[list[tuple[Row, str]], list[Source]]:
    """Reads (row, "file, line n") for every row of a data set, and says where it came from."""
    path = Path(name)
    if not path.exists():
        if path.suffix or name.startswith((".", "/")) or name.count("/") > 1:
            raise DataError(f"{name}: no such file or folder")
        return _read_hub(name)
    rows: list[tuple[Row, str]] = []
    sources = []
    for file in _files(path):
        found = list(_read_file(file))
        rows += found
        sources.append(Source(str(file), sha256_of(file), len(found)))
    if not rows:
        raise DataError(f"{name}: no rows in it")
    return rows, sources


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def messages_of(value: Any, column: str, where: str) -> list[Message]:
    """Checks a list of messages: each with a role and a text."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: `{column}` must be a list of messages, and not empty")
    return [_message(item, column, where) for item in value]


def prompt_of(row: Row, where: str) -> tuple[list[Message], bool]:
    """The `prompt` column as messages, and whether it was plain text."""
    value = row.get("prompt")
    if isinstance(value, str):
        return [{"role": "user", "content": _text(value, "prompt", where)}], True
    return messages_of(value, "prompt", where), False


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise DataError(f"{path}: data files are {', '.join(SUFFIXES)}")
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(SUFFIXES))
    if not files:
        raise DataError(f"{path}: no {', '.join(SUFFIXES)} file in this folder")
    return files


def _read_file(path: Path) -> Iterator[tuple[Row, str]]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            lines = ".jsonl" in path.suffixes
            yield from _read_lines(file, path) if lines else _read_list(file, path)
    except PermissionError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _read_lines(file: ByteFile, path: Path) -> Iterator[tuple[Row, str]]:
    number = 0
    try:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                yield _row(_json(line, where), where), where
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}, after line {number}: the compressed file is damaged or cut off") from error


def _read_list(file: ByteFile, path: Path) -> Iterator[tuple[Row, str]]:
    try:
        content = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: the compressed file is damaged or cut off") from error
    rows = _json(content, str(path))
    if not isinstance(rows, list):
        raise DataError(f"{path}: a .json data file must hold one list of objects")
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        yield _row(row, where), where


def _json(content: bytes, where: str) -> Any:
    try:
        return json.loads(content)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not valid UTF-8") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise DataError(f"{where}: not valid JSON ({error.msg} at {place})") from error


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row must be an object with named columns")
    return value


def _read_hub(name: str) -> tuple[list[tuple[Row, str]], list[Source]]:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise ConfigError(
            f"{name}: no such file or folder; to load it from the hub, first: pip install datasets"
        ) from None
    try:
        data = datasets.load_dataset(name, split="train")
    except Exception as error:  # the library raises many kinds, all of which mean that it cannot be had
        raise DataError(f"{name}: cannot be loaded from the hub: {error}") from error
    rows = [(dict(row), f"{name}, row {number}") for number, row in enumerate(data, start=1)]
    return rows, [Source(name, None, len(rows))]


def _message(value: Any, column: str, where: str) -> Message:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise DataError(f"{where}: every message in `{column}` must be an object with a `role`")
    if not isinstance(value.get("content"), str):
        raise DataError(f"{where}: every message in `{column}` must have its text in `content`")
    return {"role": value["role"], "content": _text(value["content"], column, where)}


def _text(value: str, column: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: `{column}` holds half of a surrogate pair, which is no text") from error
    return value


def _demonstration(row: Row, where: str) -> Demonstration:
    if "messages" in row:
        messages = messages_of(row["messages"], "messages", where)
        _check_learnable(messages, "messages", where)
        return Demonstration(messages, 0, False, where)
    if "prompt" in row and "completion" in row:
        prompt, is_text = prompt_of(row, where)
        completion = _continuation(row["completion"], is_text, "completion", where)
        return Demonstration(prompt + completion, len(prompt), is_text, where)
    raise DataError(f"{where}: needs `messages`, or `prompt` and `completion`; has {_columns(row)}")


def _conversations(row: Row, where: str) -> list[Demonstration]:
    if "chosen" in row:
        return _pair(row, where).sides()
    return _responses(row, where) if "responses" in row else [_demonstration(row, where)]


def _responses(row: Row, where: str) -> list[Demonstration]:
    prompt, is_text = prompt_of(row, where)
    responses = row["responses"]
    if not isinstance(responses, list) or not responses:
        raise DataError(f"{where}: `responses` must be a list of texts, and not empty")
    answers = [_continuation(response, is_text, "responses", where) for response in responses]
    return [Demonstration(prompt + answer, len(prompt), is_text, where) for answer in answers]


def _choice(row: Row, where: str) -> Choice:
    if "chosen" in row:
        pair = _pair(row, where)
        return Choice(pair.sides(), pair.margin, pair.source)
    if "responses" not in row or "best" not in row:
        needed = "`prompt`, `responses` and `best`, or `chosen` and `rejected`"
        raise DataError(f"{where}: needs {needed}; has {_columns(row)}")
    candidates, best = _responses(row, where), row["best"]
    if isinstance(best, bool) or not isinstance(best, int) or not 0 <= best < len(candidates):
        raise DataError(f"{where}: `best` must be the index of one of the responses, counted from 0")
    ordered = [candidates[best], *candidates[:best], *candidates[best + 1 :]]
    return Choice(ordered, _margin(row, where), _source(row, where))


def _pair(row: Row, where: str) -> Pair:
    if "chosen" not in row or "rejected" not in row:
        raise DataError(f"{where}: needs `chosen` and `rejected`; has {_columns(row)}")
    prompt, chosen, rejected, is_text = _explicit(row, where) if "prompt" in row else _implicit(row, where)
    return Pair(prompt, chosen, rejected, is_text, _margin(row, where), where, _source(row, where))


def _explicit(row: Row, where: str) -> tuple[list[Message], list[Message], list[Message], bool]:
    prompt, is_text = prompt_of(row, where)
    chosen = _continuation(row["chosen"], is_text, "chosen", where)
    return prompt, chosen, _continuation(row["rejected"], is_text, "rejected", where), is_text


def _implicit(row: Row, where: str) -> tuple[list[Message], list[Message], list[Message], bool]:
    chosen, rejected = (_whole(row[column], column, where) for column in ("chosen", "rejected"))
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    # The prompt ends before an assistant turn; anything after that belongs to the compared continuations.
    while shared > 0 and chosen[shared]["role"] != "assistant":
        shared -= 1
    for column, messages in (("chosen", chosen), ("rejected", rejected)):
        _check_learnable(messages[shared:], column, where)
    return chosen[:shared], chosen[shared:], rejected[shared:], False


def _whole(value: Any, column: str, where: str) -> list[Message]:
    if isinstance(value, str):
        return parse_transcript(_text(value, column, where), column, where)
    return messages_of(value, column, where)


_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_transcript(text: str, column: str, where: str) -> list[Message]:
    """Splits Anthropic's transcript form into messages; one space around each text belongs to the form."""
    pieces = _TURN.split(text)
    if len(pieces) < 3 or pieces[0].strip():
        raise DataError(
            f"{where}: `{column}` is a string without a `prompt` column beside it, "
            'and no transcript that begins with "\\n\\nHuman:"'
        )
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    return [{"role": _ROLES[name], "content": content.strip()} for name, content in turns]


def _continuation(value: Any, is_text: bool, column: str, where: str) -> list[Message]:
    if is_text:
        if not isinstance(value, str):
            raise DataError(f"{where}: `{column}` must be a string, as `prompt` is")
        return [{"role": "assistant", "content": _text(value, column, where)}]
    if isinstance(value, str):
        return [{"role": "assistant", "content": _text(value, column, where)}]
    messages = messages_of(value, column, where)
    _check_learnable(messages, column, where)
    return messages


def _check_learnable(messages: Sequence[Message], column: str, where: str) -> None:
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(f"{where}: `{column}` has no assistant turn to learn from")


def _margin(row: Row, where: str) -> float:
    margin = row.get("margin", 0.0)
    if margin is None:
        return 0.0
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) < float("inf"):
        raise DataError(f"{where}: `margin` must be a finite number")
    return float(margin)


def _source(row: Row, where: str) -> str:
    source = row.get("source")
    if source is None:
        return Path(where.rpartition(",")[0]).name
    if not isinstance(source, str):
        raise DataError(f"{where}: `source` must be a string")
    return _text(source, "source", where)


def _columns(row: Row) -> str:
    return ", ".join(f"`{name}`" for name in row) or "no columns"
