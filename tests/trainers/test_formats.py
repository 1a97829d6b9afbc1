"""Every accepted form of data, and a named place for everything that is malformed."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainers.conftest import WriteRows, chat
from trainers.errors import ConfigError, DataError
from trainers.formats import (
    Message,
    parse_transcript,
    read_conversations,
    read_demonstrations,
    read_pairs,
    read_rows,
    sha256_of,
)


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def test_messages(write_rows: WriteRows) -> None:
    path = write_rows("a.jsonl", [chat("hi", "yo") | {"topic": "ignored"}])
    (row,), (source,) = read_demonstrations(str(path))
    assert (row.messages, row.learn_from, row.is_text) == ([user("hi"), assistant("yo")], 0, False)
    assert row.where == f"{path}, line 1"
    assert (source.path, source.sha256, source.rows) == (str(path), sha256_of(path), 1)


@pytest.mark.parametrize(
    ("prompt", "completion", "is_text"),
    [
        ("hi", "yo", True),
        ([user("hi")], [assistant("yo")], False),
        ([user("hi")], "yo", False),
    ],
)
def test_prompt_and_completion(write_rows: WriteRows, prompt: Any, completion: Any, is_text: bool) -> None:
    path = write_rows("a.jsonl", [{"prompt": prompt, "completion": completion}])
    (row,), _ = read_demonstrations(str(path))
    assert (row.messages, row.learn_from, row.is_text) == ([user("hi"), assistant("yo")], 1, is_text)


@pytest.mark.parametrize(
    ("row", "is_text"),
    [
        ({"prompt": "hi", "chosen": "a", "rejected": "b"}, True),
        ({"prompt": [user("hi")], "chosen": [assistant("a")], "rejected": [assistant("b")]}, False),
        ({"chosen": [user("hi"), assistant("a")], "rejected": [user("hi"), assistant("b")]}, False),
        (
            {
                "chosen": "\n\nHuman: hi\n\nAssistant: a",
                "rejected": "\n\nHuman: hi\n\nAssistant: b",
            },
            False,
        ),
    ],
)
def test_every_form_of_a_pair_is_the_same_pair(
    write_rows: WriteRows, row: dict[str, Any], is_text: bool
) -> None:
    (pair,), _ = read_pairs(str(write_rows("a.jsonl", [row | {"margin": 0.5}])))
    assert (pair.prompt, pair.chosen, pair.rejected) == ([user("hi")], [assistant("a")], [assistant("b")])
    assert (pair.margin, pair.is_text) == (0.5, is_text)
    assert [side.messages for side in pair.sides()] == [
        [user("hi"), assistant("a")],
        [user("hi"), assistant("b")],
    ]


def test_the_shared_prompt_ends_before_an_assistant_turn(write_rows: WriteRows) -> None:
    # Both answers are alike in their first turn; what differs begins with the second question.
    shared = [user("a"), assistant("b")]
    row = {"chosen": [*shared, user("c"), assistant("d")], "rejected": [*shared, user("x"), assistant("d")]}
    (pair,), _ = read_pairs(str(write_rows("a.jsonl", [row])))
    assert pair.prompt == [user("a")]
    assert pair.chosen == [assistant("b"), user("c"), assistant("d")]


def test_a_transcript_with_blank_lines_inside_a_turn() -> None:
    text = "\n\nHuman: one\n\ntwo\n\nAssistant: three\n\nHuman: four\n\nAssistant:"
    assert parse_transcript(text, "chosen", "here") == [
        user("one\n\ntwo"),
        assistant("three"),
        user("four"),
        assistant(""),
    ]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(str.strip)


@given(st.lists(texts.filter(lambda text: "\n\n" not in text), min_size=1, max_size=6))
def test_transcripts_come_back_as_written(contents: list[str]) -> None:
    names = ("Human", "Assistant")
    text = "".join(f"\n\n{names[n % 2]}: {content}" for n, content in enumerate(contents))
    assert [message["content"] for message in parse_transcript(text, "chosen", "here")] == contents


def test_conversations_of_samples_pairs_and_demonstrations(write_rows: WriteRows) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": [user("q")], "responses": ["a", "b"]},
        {"prompt": "q", "chosen": "c", "rejected": "d"},
        chat("q", "e"),
    ]
    conversations, _ = read_conversations(str(write_rows("a.jsonl", rows)))
    assert [row.messages[-1]["content"] for row in conversations] == list("abcde")


def test_json_lists_gzip_and_folders(tmp_path: Path) -> None:
    rows = [chat("q", str(n)) for n in range(3)]
    (tmp_path / "1.json").write_text(json.dumps(rows[:1]))
    with gzip.open(tmp_path / "2.jsonl.gz", "wt") as file:
        file.write(json.dumps(rows[1]) + "\n\n")
    with gzip.open(tmp_path / "3.json.gz", "wt") as file:
        json.dump(rows[2:], file)
    (tmp_path / "README.md").write_text("not data")
    found, sources = read_rows(str(tmp_path))
    assert [row for row, _ in found] == rows
    assert [where for _, where in found] == [
        f"{tmp_path}/1.json, row 1",
        f"{tmp_path}/2.jsonl.gz, line 1",
        f"{tmp_path}/3.json.gz, row 1",
    ]
    assert [source.rows for source in sources] == [1, 1, 1]


GOOD = json.dumps(chat("q", "a"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (GOOD[:-9], "not valid JSON"),
        ("[1]", "a row must be an object"),
        ("{}", "needs `messages`, or `prompt` and `completion`; has no columns"),
        ('{"text": "a"}', "has `text`"),
        ('{"messages": []}', "`messages` must be a list of messages"),
        ('{"messages": "hi"}', "`messages` must be a list of messages"),
        ('{"messages": ["hi"]}', "must be an object with a `role`"),
        ('{"messages": [{"role": "user"}]}', "must have its text in `content`"),
        ('{"messages": [{"role": "user", "content": "q"}]}', "`messages` has no assistant turn"),
        ('{"messages": [{"role": "assistant", "content": "\\ud800"}]}', "half of a surrogate pair"),
        ('{"prompt": "q", "completion": 5}', "`completion` must be a string, as `prompt` is"),
        ('{"prompt": 5, "completion": "a"}', "`prompt` must be a list of messages"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(DataError) as caught:
        read_demonstrations(str(path))
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "a"}, "needs `chosen` and `rejected`; has `chosen`"),
        ({"chosen": "a", "rejected": "b"}, 'no transcript that begins with "\\n\\nHuman:"'),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "x"}, "`margin` must be a finite"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("nan")},
            "`margin` must be a finite",
        ),
        ({"prompt": [user("q")], "chosen": [user("a")], "rejected": "b"}, "`chosen` has no assistant turn"),
    ],
)
def test_a_malformed_pair_is_named(write_rows: WriteRows, row: dict[str, Any], reason: str) -> None:
    path = write_rows("a.jsonl", [row])
    with pytest.raises(DataError) as caught:
        read_pairs(str(path))
    assert str(caught.value).startswith(f"{path}, line 1: ")
    assert reason in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"messages": "\xff"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not valid UTF-8"):
        read_rows(str(path))


def test_a_truncated_archive_names_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(f"{json.dumps(chat('q', str(n) * 50))}\n" for n in range(500))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz, after line \d+: .*damaged or cut off"):
        read_rows(str(path))
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="after line 0"):
        read_rows(str(path))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", "", "no rows in it"),
        ("a.json", '{"messages": []}', "one list of objects"),
        ("a.json", '[\n{"a": 1},\n{"a":', "not valid JSON .* at line 3"),
        ("a.csv", "a,b", "data files are .jsonl"),
    ],
)
def test_files_that_are_no_data(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=reason):
        read_rows(str(tmp_path / name))


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_rows(str(tmp_path / "absent.jsonl"))
    with pytest.raises(DataError, match="in this folder"):
        read_rows(str(tmp_path))


def test_a_hub_name_needs_the_datasets_package() -> None:
    with pytest.raises(ConfigError, match="pip install datasets"):
        read_rows("someone/some-data")
