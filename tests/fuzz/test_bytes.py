"""Mutated bytes: whatever comes in, an answer or an error in the envelope goes out, and never a 5xx."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.fuzz.drive import drive
from tests.fuzz.mutate import Case, corpus, make_case

QUICK_CASES = 3000
ALL_CASES = 100_000
SEEDS = corpus()


def test_the_bodies_that_it_starts_from_are_served(gateway: tuple[str, Path]) -> None:
    url, _ = gateway
    cases = [Case(number, seed.name, seed.path, b"", seed.body) for number, seed in enumerate(SEEDS)]
    tally = asyncio.run(drive(url, iter(cases)))
    assert tally.faults == []
    assert tally.statuses == {200: len(SEEDS)}


def test_a_case_is_a_function_of_its_seed_and_number() -> None:
    cases = [make_case(SEEDS, 1, number) for number in range(500)]
    assert cases == [make_case(SEEDS, 1, number) for number in range(500)]
    assert cases != [make_case(SEEDS, 2, number) for number in range(500)]
    assert {case.path for case in cases} == {seed.path for seed in SEEDS}


@pytest.mark.parametrize("count", [QUICK_CASES, pytest.param(ALL_CASES, marks=pytest.mark.slow)])
def test_mutated_bodies_are_answered_or_refused(gateway: tuple[str, Path], count: int) -> None:
    url, log = gateway
    seed = time.time_ns() % 2**31
    tally = asyncio.run(drive(url, (make_case(SEEDS, seed, number) for number in range(count))))
    print(tally.report(seed))
    assert not tally.faults, "\n".join([f"python -m tests.fuzz.mutate {seed} NUMBER", *tally.faults[:20]])
    assert tally.cases == count
    assert "Traceback" not in log.read_text()
