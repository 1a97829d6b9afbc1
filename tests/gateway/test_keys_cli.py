"""`python -m gateway keys`: every command, what it prints where, and its one-line errors."""

import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway import keys_file
from gateway.keys import Key, KeyRing, digest
from gateway.keys_cli import main
from gateway.keys_flags import LIMITS, build_parser

NOW = datetime(2026, 1, 1, 12, 0, 0, 999, tzinfo=UTC)


class Commands:
    """The commands on one keys file."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capsys = capsys

    def __call__(self, *words: str, at: datetime = NOW) -> tuple[str, str]:
        """Run one that succeeds; its standard output and error."""
        assert main([*words, "--keys", str(self.path)], now=lambda: at) == 0
        said = self._capsys.readouterr()
        return said.out, said.err

    def fail(self, *words: str, at: datetime = NOW) -> str:
        """Run one that fails as users' errors do; its one line."""
        try:
            code = main([*words, "--keys", str(self.path)], now=lambda: at)
        except SystemExit as end:
            code = int(end.code or 0)
        said = self._capsys.readouterr()
        assert (code, said.out) == (2, "")
        assert said.err.startswith("python -m gateway keys")
        assert said.err.count("\n") == 1
        return said.err

    def opens(self, secret: str, at: datetime = NOW) -> Key | None:
        """Whose secret this is."""
        return KeyRing(keys_file.read(self.path), clock=at.timestamp).find(secret.strip().encode())


@pytest.fixture
def keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    """The commands on a file that does not exist yet."""
    return Commands(tmp_path / "keys.json", capsys)


def test_create_prints_the_secret_alone_and_keeps_only_its_hash(keys: Commands) -> None:
    secret, told = keys("create", "--name", "alice")
    assert secret.startswith("sk-bonsai-")
    assert secret.count("\n") == 1
    found = keys.opens(secret)
    assert found is not None
    assert told == f"created {found.id} (alice). Its secret, shown this once:\n"
    assert (found.name, found.created, found.allowance) == ("alice", NOW.replace(microsecond=0), None)
    text = keys.path.read_text()
    assert secret.strip() not in text
    assert digest(secret.strip().encode()) in text
    assert keys.path.stat().st_mode & 0o777 == 0o600


def test_create_takes_every_limit(keys: Commands) -> None:
    limits = [word for number, name in enumerate(LIMITS, 3) for word in (_flag(name), str(10 - number))]
    words = ["create", "--name", "ci", "--model", "a", "--model", "b:c", "--expires", "90d", *limits]
    found = keys.opens(keys(*words)[0])
    assert found is not None
    assert found.models == ("a", "b:c")
    assert found.expires == NOW.replace(microsecond=0) + timedelta(days=90)
    assert [getattr(found, name) for name in LIMITS] == [7, 6, 5, 4, 3]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@pytest.mark.parametrize(
    ("text", "expires"),
    [
        ("2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)),
        ("2026-01-01T13:00:00+00:30", datetime(2026, 1, 1, 12, 30, tzinfo=UTC)),
        ("2026-01-01 12:00:01", datetime(2026, 1, 1, 12, 0, 1, tzinfo=UTC)),
        ("30m", datetime(2026, 1, 1, 12, 30, tzinfo=UTC)),
        ("12h", datetime(2026, 1, 2, 0, 0, tzinfo=UTC)),
        ("1d", datetime(2026, 1, 2, 12, 0, tzinfo=UTC)),
    ],
)
def test_when_a_key_expires(keys: Commands, text: str, expires: datetime) -> None:
    secret, _ = keys("create", "--name", "a", "--expires", text)
    assert keys.opens(secret, at=expires - timedelta(seconds=1)) is not None
    assert keys.opens(secret, at=expires) is None


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--name taken", "there is a key 'taken' already; rotate or revoke it, or take another name"),
        ("--name a/b", "--name: take letters, digits and . _ @ -"),
        ("--name key-1", "do not begin with key-"),
        (f"--name {'a' * 65}", "at most 64"),
        ("--name a --expires 2026-01-01", "--expires: is not in the future"),
        ("--name a --expires 0d", "--expires: is not in the future"),
        ("--name a --expires 999999h --max-best-of 0", "--max-best-of: Expected `int` >= 1"),
        ("--name a --expires soon", "--expires: must be a date like 2027-01-31"),
        ("--name a --tokens-per-day -1", "--tokens-per-day: Expected `int` >= 1"),
        ("--name a --tokens-per-day 1.5", "--tokens-per-day: invalid int value"),
        ("--name a --max-best-of 2 --default-best-of 3", "--default-best-of is above --max-best-of"),
        ("--name a --model ''", "--model: Expected `str` of length >= 1"),
        ("", "the following arguments are required: --name"),
        ("--name a --rpm 5", "unrecognized arguments: --rpm 5"),
    ],
)
def test_what_cannot_be_created_is_one_line(keys: Commands, words: str, complaint: str) -> None:
    keys("create", "--name", "taken")
    before = keys.path.read_bytes()
    assert complaint in keys.fail("create", *(word.strip("'") for word in words.split()))
    assert keys.path.read_bytes() == before


def test_an_expiry_beyond_all_calendars_is_one_line(keys: Commands) -> None:
    last_year = datetime(9999, 6, 1, tzinfo=UTC)
    assert "--expires: is too far off" in keys.fail(
        "create", "--name", "a", "--expires", "999d", at=last_year
    )
    keys("create", "--name", "a")
    assert "--grace: is too far off" in keys.fail("rotate", "a", "--grace", "999999999", at=last_year)


def test_a_rotated_key_has_another_secret_and_the_old_one_for_its_grace(keys: Commands) -> None:
    old, _ = keys("create", "--name", "alice", "--max-best-of", "4")
    before = keys.opens(old)
    new, told = keys("rotate", "alice", "--grace", "60")
    after = keys.opens(new)
    assert before is not None
    assert after is not None
    assert (after.id, after.name, after.max_best_of) == (before.id, "alice", 4)
    assert told.startswith(f"rotated {after.id} (alice); the old secret is good for 60 s more.")
    minute = NOW.replace(microsecond=0) + timedelta(seconds=60)
    assert keys.opens(old, at=minute - timedelta(seconds=1)) is not None
    assert keys.opens(old, at=minute) is None
    assert keys.opens(new, at=minute) is not None


def test_without_grace_the_old_secret_ends_at_once(keys: Commands) -> None:
    old, _ = keys("create", "--name", "alice")
    found = keys.opens(old)
    assert found is not None
    new, told = keys("rotate", found.id)
    assert "the old secret is good no more" in told
    assert keys.opens(old) is None
    assert keys.opens(new) is not None


def test_several_old_secrets_can_be_in_grace_and_ended_ones_are_forgotten(keys: Commands) -> None:
    first, _ = keys("create", "--name", "a")
    second, _ = keys("rotate", "a", "--grace", "100")
    third, _ = keys("rotate", "a", "--grace", "50")
    assert all(keys.opens(secret) for secret in (first, second, third))
    later = NOW + timedelta(seconds=60)
    keys("rotate", "a", "--grace", "10", at=later)
    assert [keys.opens(secret, at=later) is not None for secret in (first, second, third)] == [
        True,
        False,
        True,
    ]
    assert len(keys_file.read(keys.path)[0].retired) == 2


def test_a_revoked_key_is_out_of_force_for_good(keys: Commands) -> None:
    first, _ = keys("create", "--name", "ci")
    second, _ = keys("rotate", "ci", "--grace", "100")
    out, told = keys("revoke", "ci")
    assert out == ""
    assert told.startswith("revoked key-")
    assert keys.opens(first) is keys.opens(second) is None
    before = keys.path.read_bytes()
    assert keys("revoke", "ci", at=NOW + timedelta(days=1))[1] == told
    assert keys.path.read_bytes() == before, "again changes nothing"
    assert digest(first.strip().encode()) not in before.decode(), "secrets in grace are forgotten"
    assert "is revoked; create a new key instead" in keys.fail("rotate", "ci")
    again, _ = keys("create", "--name", "ci")
    assert keys.opens(again) is not None, "its name is free again"
    keys("revoke", "ci")
    assert keys.opens(again) is None, "the name means the one in force"


def test_an_expired_key_is_not_rotated(keys: Commands) -> None:
    keys("create", "--name", "a", "--expires", "1d")
    assert "is expired" in keys.fail("rotate", "a", at=NOW + timedelta(days=1))


@pytest.mark.parametrize("command", ["rotate", "revoke"])
def test_a_key_that_is_not_there_is_one_line(keys: Commands, command: str) -> None:
    assert "no such file; `python -m gateway keys create --keys" in keys.fail(command, "eve")
    keys("create", "--name", "alice")
    assert "there is no key 'e?ve'" in keys.fail(command, "e\nve")


@pytest.mark.parametrize("grace", ["-1", "1.5", "soon", "1e3", ""])
def test_grace_is_a_number_of_seconds(keys: Commands, grace: str) -> None:
    keys("create", "--name", "a")
    assert "--grace" in keys.fail("rotate", "a", f"--grace={grace}")


def test_list_shows_what_keys_may_do_and_no_hash(keys: Commands) -> None:
    secret, _ = keys(
        "create", "--name", "alice", "--model", "[red]m", "--expires", "1d", "--tokens-per-day", "1000000"
    )
    keys("create", "--name", "bob")
    keys("revoke", "bob")
    table, _ = keys("list")
    header, alice, bob = table.splitlines()
    assert header.split()[:3] == ["id", "name", "created"]
    assert (
        alice.split()[1:] == "alice 2026-01-01 12:00 2026-01-02 12:00 [red]m - - - - 1000000 active".split()
    )
    assert bob.split()[1:] == "bob 2026-01-01 12:00 - all - - - - - revoked".split()
    rows = json.loads(keys("list", "--json")[0])
    assert [(row["name"], row["state"], row["models"]) for row in rows] == [
        ("alice", "active", ["[red]m"]),
        ("bob", "revoked", []),
    ]
    assert rows[0]["tokens_per_day"] == 1_000_000
    assert rows[0]["expires"] == "2026-01-02T12:00:00Z"
    for text in (table, json.dumps(rows)):
        assert digest(secret.strip().encode()) not in text
    assert json.loads(keys("list", "--json", at=NOW + timedelta(days=1))[0])[0]["state"] == "expired"


def test_a_file_that_others_can_read_is_warned_of(keys: Commands) -> None:
    keys("create", "--name", "alice")
    assert keys("list")[1] == ""
    keys.path.chmod(0o644)
    assert keys("list")[1] == f"warning: {keys.path} is open to other users; chmod 600 closes it\n"
    keys("revoke", "alice")
    assert keys("list")[1] == "", "what is written anew is closed"


def test_a_file_that_is_none_is_one_line(keys: Commands) -> None:
    keys.path.write_text('{"keys": [{"id": 5}]}')
    for words in (["list"], ["create", "--name", "a"], ["revoke", "a"]):
        assert f"{keys.path}: keys[0].id: Expected `str`, got `int`" in keys.fail(*words)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """The command as a process."""
    command = [sys.executable, "-m", "gateway", "keys", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_it_is_a_command_of_the_gateway(tmp_path: Path) -> None:
    done = run("create", "--keys", str(tmp_path / "keys.json"), "--name", "alice")
    assert (done.returncode, done.stdout[:10]) == (0, "sk-bonsai-")
    for words in ([], ["frobnicate"], ["list"]):
        failed = run(*words)
        assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (2, "", 1)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = capsys.readouterr().out
    assert not end.value.code
    for command in ("create", "list", "rotate", "revoke"):
        assert f"python -m gateway keys {command} " in text


def examples(text: str) -> list[str]:
    """The commands in a help text."""
    return [
        line.split("keys ", 1)[1]
        for line in text.replace("\\\n", "").splitlines()
        if line.startswith("  python")
    ]


def test_the_examples_in_the_help_run(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.json")
    commands: Sequence[str] = examples(build_parser().epilog or "")
    assert len(commands) == 5
    for command in commands:
        assert main(command.replace("keys.json", path).split()) == 0
