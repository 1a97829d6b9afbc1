"""How candidates are shared out over requests upstream."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.pieces import Piece, cut, regroup


def test_one_request_where_that_is_enough() -> None:
    assert cut(2, 2, 4) == [Piece(((0, 0), (0, 1), (1, 0), (1, 1)))]


def test_more_is_cut_prompt_by_prompt_into_even_pieces() -> None:
    assert [len(piece.members) for piece in cut(1, 10, 4)] == [3, 3, 4]
    assert [(piece.prompts, piece.first, piece.n) for piece in cut(2, 3, 3)] == [((0,), 0, 3), ((1,), 0, 3)]


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40))
def test_every_candidate_is_in_one_piece_and_no_piece_is_too_large(
    prompts: int, samples: int, most: int
) -> None:
    pieces = cut(prompts, samples, most)
    members = [member for piece in pieces for member in piece.members]
    assert members == [(prompt, index) for prompt in range(prompts) for index in range(samples)]
    assert max(len(piece.members) for piece in pieces) <= most
    assert all(piece.n * len(piece.prompts) == len(piece.members) for piece in pieces)


def test_lost_neighbours_share_a_piece_with_a_seed_and_all_do_without() -> None:
    lost = [(1, 0), (0, 3), (0, 1), (0, 2)]
    assert regroup(lost, seeded=True) == [Piece(((0, 1), (0, 2), (0, 3))), Piece(((1, 0),))]
    assert regroup([(0, 0), (0, 2)], seeded=True) == [Piece(((0, 0),)), Piece(((0, 2),))]
    assert regroup([(0, 0), (0, 2)], seeded=False) == [Piece(((0, 0), (0, 2)))]


def test_the_body_of_a_piece() -> None:
    chat = {"n": 8, "seed": 5, "messages": []}
    assert Piece(((0, 3), (0, 4))).body(chat) == {"n": 2, "seed": 8, "messages": []}
    assert Piece(((0, 0),)).body({"n": 8}) == {"n": 1}
    texts = {"prompt": ["a", "b"]}
    assert Piece(((1, 0), (1, 1))).body(texts)["prompt"] == "b"
    assert Piece(((0, 0), (1, 0))).body(texts)["prompt"] == ["a", "b"]
    assert Piece(((0, 0),)).body({"prompt": [1, 2]})["prompt"] == [1, 2]
    assert Piece(((1, 0),)).body({"prompt": [[1, 2], [3]]})["prompt"] == [3]
