"""The trainers' benchmark: its arithmetic, by hand. What it starts, test_peer_training.py tests."""

from loadtests.benches.trainers import CASES, ROWS, Case, operations_per_token
from loadtests.peer_training import Cost


def cost(tokens: int, seconds: float, cpu_s: float, peak: int) -> Cost:
    return Cost(tokens=tokens, seconds=seconds, cpu_s=cpu_s, peak_bytes=peak, losses=[])


def test_the_fastest_peer_counts() -> None:
    case = Case(algorithm="sft", size="3M", bf16=False, faster=2, memory=0.8)
    operations = operations_per_token(case)
    bonsai = cost(1000, 1.0, 2.0, 60)
    peers = [cost(1000, 4.0, 4.0, 90), cost(1000, 2.0, 8.0, 120)]
    values = case.values(bonsai, peers, flops=1e4 * operations)
    # 1000 tokens/s against 500; 60 bytes against those of the faster; 500 tokens per CPU second against 250.
    assert values == [2, 0.5, 2, 1000, 0.1, 0.05]


def test_operations_by_hand() -> None:
    # Three layers of 4 x 256 x 256 and 3 x 256 x 672 weights; DPO's reference goes forward once more.
    weights = 3 * (4 * 256 * 256 + 3 * 256 * 672)
    case = {case.algorithm: case for case in CASES if case.size == "3M"}
    assert operations_per_token(case["sft"]) == operations_per_token(case["reward"]) == 6 * weights
    assert operations_per_token(case["dpo"]) == 8 * weights


def test_every_figure_has_its_own_name() -> None:
    assert len({row.figure for row in ROWS}) == len(ROWS)
