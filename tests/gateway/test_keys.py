"""Keys: what a secret opens, and for how long."""

import hashlib
import re
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.allowance import Allowance
from gateway.keys import (
    Key,
    KeyRing,
    KeysError,
    Retired,
    check_distinct,
    clean,
    digest,
    find_by_name,
    new_id,
    new_secret,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def key(secret: str = "s", **fields: object) -> Key:
    """A key that a secret opens."""
    defaults = {"id": new_id(), "name": "alice", "sha256": digest(secret.encode()), "created": NOW}
    return msgspec.convert({**defaults, **fields}, Key)


def ring(*keys: Key, now: datetime = NOW) -> KeyRing:
    """A ring at a moment."""
    return KeyRing(keys, clock=now.timestamp)


def test_a_secret_is_256_random_bits_and_known_by_its_sha256() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert re.fullmatch(r"sk-bonsai-[A-Za-z0-9_-]{43}", first), "43 letters of base64 hold 32 bytes"
    assert digest(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_only_the_whole_secret_opens() -> None:
    secret = new_secret()
    mine = key(secret)
    found = ring(mine, key("other", name="bob"))
    assert found.find(secret.encode()) is mine
    for wrong in (
        b"",
        secret[:-1].encode(),
        secret.encode() + b" ",
        secret.upper().encode(),
        mine.sha256.encode(),
    ):
        assert found.find(wrong) is None
    assert KeyRing().find(secret.encode()) is None


@given(st.binary(max_size=400))
def test_no_secret_is_a_bug_of_ours(secret: bytes) -> None:
    assert ring(key("never drawn, being longer than zero bytes of chance")).find(secret) is None


def test_a_megabyte_is_no_secret_and_is_not_hashed() -> None:
    longest = "x" * 256
    assert ring(key(longest)).find(longest.encode()) is not None
    assert ring(key(longest + "x")).find(longest.encode() + b"x") is None
    assert ring(key()).find(b"\xff" * 2**20) is None


@pytest.mark.parametrize(("seconds", "opens"), [(-1, True), (0, False), (1, False)])
def test_a_key_ends_when_it_expires(seconds: int, opens: bool) -> None:
    expiring = key(expires=NOW)
    at = NOW + timedelta(seconds=seconds)
    assert (ring(expiring, now=at).find(b"s") is expiring) is opens
    assert expiring.state(at) == ("active" if opens else "expired")


def test_a_revoked_key_opens_nothing() -> None:
    revoked = key(revoked=NOW, retired=(Retired(sha256=digest(b"old"), until=NOW + timedelta(days=1)),))
    assert ring(revoked).find(b"s") is None
    assert ring(revoked).find(b"old") is None
    assert revoked.state(NOW) == "revoked"


@pytest.mark.parametrize(("seconds", "opens"), [(59, True), (60, False)])
def test_a_replaced_secret_opens_during_its_grace(seconds: int, opens: bool) -> None:
    rotated = key("new", retired=(Retired(sha256=digest(b"old"), until=NOW + timedelta(seconds=60)),))
    found = ring(rotated, now=NOW + timedelta(seconds=seconds))
    assert found.find(b"new") is rotated
    assert (found.find(b"old") is rotated) is opens


def test_grace_ends_with_the_key() -> None:
    old = Retired(sha256=digest(b"old"), until=NOW + timedelta(days=9))
    assert ring(key("new", expires=NOW, retired=(old,))).find(b"old") is None


def test_other_keys_can_take_the_place_of_all() -> None:
    found = ring(key("a"))
    found.replace([key("b")])
    assert found.find(b"a") is None
    assert found.find(b"b") is not None


def test_the_allowance_is_what_admission_holds_a_key_to() -> None:
    assert key().allowance is None
    assert key(max_best_of=4).allowance is None
    limits = {"requests_per_minute": 1, "max_concurrent_candidates": 2, "tokens_per_day": 3}
    assert key(**limits).allowance == Allowance(**limits)


def test_neither_secret_nor_hash_is_in_what_gets_printed() -> None:
    secret = new_secret()
    mine = key(secret)
    for text in (repr(mine), str(mine), f"{[mine]}", repr(ring(mine))):
        assert secret not in text
        assert mine.sha256 not in text
    assert repr(mine) == f"Key({mine.id}, alice)"


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "key-ring"},
        {"name": ""},
        {"name": "a" * 65},
        {"name": "a b"},
        {"name": "a\n"},
        {"id": "key-1"},
        {"sha256": "00"},
        {"sha256": "A" * 64},
        {"models": [""]},
        {"max_best_of": 0},
        {"max_best_of": 1, "default_best_of": 2},
        {"created": datetime(2026, 1, 1)},  # no zone
        {"surprise": 1},
    ],
)
def test_what_no_key_can_be(fields: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        key(**fields)


def test_the_default_may_be_the_maximum() -> None:
    assert key(max_best_of=2, default_best_of=2).default_best_of == 2


def test_ids_secrets_and_names_in_force_are_unique() -> None:
    one = key("a", id="key-000000000001")
    check_distinct([one, key("b", name="bob"), key("c", revoked=NOW), key("d", revoked=NOW)])
    old = Retired(sha256=one.sha256, until=NOW)
    for other, mark in (
        (key("b", name="bob", id=one.id), "id"),
        (key("b"), "name"),
        (key("a", name="bob"), "sha256"),
        (key("b", name="bob", retired=(old,)), "sha256"),
    ):
        with pytest.raises(KeysError, match=f"key-000000000001.*share a `{mark}`"):
            check_distinct([one, other])


def test_a_key_is_found_by_id_or_name_and_in_force_before_revoked() -> None:
    gone, mine, bob = key("a", revoked=NOW), key("b"), key("c", name="bob", revoked=NOW)
    keys = [gone, mine, bob]
    assert find_by_name(keys, "alice") is mine
    assert find_by_name(keys, gone.id) is gone
    assert find_by_name(keys, "bob") is bob
    with pytest.raises(KeysError, match=r"no key 'eve\?'"):
        find_by_name(keys, "eve\n")


def test_clean_text_is_one_short_line() -> None:
    assert clean("a\x1b[31m\nb\u202e") == "a?[31m?b?"
    assert len(clean("x" * 10_000)) == 200
