"""The trainers' benchmark: its arithmetic, by hand. What it starts, test_peer_training.py tests."""

from dataclasses import replace

from loadtests.benches.trainers import BENCH, CASES, ROWS, Case, operations_per_token
from loadtests.figures import Run
from loadtests.peer_training import Cost


def cost(tokens: int, seconds: float, cpu_s: float, peak: int, episodes: int | None = None) -> Cost:
    units = tokens if episodes is None else episodes
    return Cost(units=units, tokens=tokens, seconds=seconds, cpu_s=cpu_s, peak_bytes=peak, losses=[])


def test_the_fastest_peer_counts() -> None:
    case = Case(algorithm="sft", size="3M", bf16=False, faster=2, memory=0.8)
    operations = operations_per_token(case)
    bonsai = cost(1000, 1.0, 2.0, 60)
    peers = [cost(1000, 4.0, 4.0, 90), cost(1000, 2.0, 8.0, 120)]
    values = case.values(bonsai, peers, flops=1e4 * operations)
    # 1000 tokens/s against 500; 60 bytes against those of the faster; 500 tokens per CPU second against 250.
    assert values == [2, 0.5, 2, 1000, 0.1, 0.05]


def test_episodes_count_where_tokens_do_not() -> None:
    case = Case(algorithm="ppo", size="3M", bf16=False, faster=2, memory=0.8)
    bonsai, peer = cost(1000, 2.0, 4.0, 60, episodes=10), cost(0, 5.0, 8.0, 120, episodes=10)
    values = case.values(bonsai, [peer], flops=1e4 * operations_per_token(case))
    # 5 episodes/s against 2, of 100 tokens each.
    assert values == [2.5, 0.5, 2, 5, 0.05, 0.02]
    assert [row.figure for row in case.rows if "episode" in row.figure] == [
        "ppo 3M float32: episodes/s, bonsai / TRL",
        "ppo 3M float32: CPU per episode, TRL / bonsai",
        "ppo 3M float32: episodes/s, bonsai",
    ]


def test_operations_by_hand() -> None:
    # Three layers of 4 x 256 x 256 and 3 x 256 x 672 weights; DPO's reference goes forward once more.
    weights = 3 * (4 * 256 * 256 + 3 * 256 * 672)
    case = {case.algorithm: case for case in CASES if case.size == "3M"}
    assert operations_per_token(case["sft"]) == operations_per_token(case["reward"]) == 6 * weights
    assert operations_per_token(case["dpo"]) == 8 * weights
    # A token of four epochs: 4 x (6 + 6), and 5 x 2 before them.
    assert 4 * operations_per_token(case["ppo"]) == 58 * weights


def test_what_is_not_chosen_has_no_rows() -> None:
    case = next(case for case in CASES if case.algorithm == "ppo")
    values = dict.fromkeys((row.figure for row in case.rows), 1.0)
    bench = replace(BENCH, run=lambda **_: [Run(values)])
    assert [figure.figure for figure in bench.measure(bench.defaults())] == list(values)


def test_every_figure_has_its_own_name() -> None:
    assert len({row.figure for row in ROWS}) == len(ROWS)
