import pytest

from modules.fusion import reciprocal_rank, weighted_sum

A = [("x", 9.0), ("y", 5.0), ("z", 1.0)]
B = [("z", 0.4), ("x", 0.2)]


def test_reciprocal_rank_by_hand():
    fused = dict(reciprocal_rank([A, B], [1.0, 2.0], constant=10))
    assert fused == pytest.approx({"x": 1 / 11 + 2 / 12, "y": 1 / 12, "z": 1 / 13 + 2 / 11})
    assert [key for key, _ in reciprocal_rank([A, B], [1.0, 2.0], constant=10)] == ["z", "x", "y"]


def test_weighted_sum_by_hand():
    assert weighted_sum([A, B], [1.0, 0.5]) == [("x", 1.0), ("y", 0.5), ("z", 0.5)]
    assert weighted_sum([[("x", 3.0), ("y", 3.0)]], [2.0]) == [("x", 2.0), ("y", 2.0)]


@pytest.mark.parametrize("fuse", [reciprocal_rank, weighted_sum])
def test_what_weighs_nothing_adds_nothing_and_nothing_fuses_to_nothing(fuse):
    assert [key for key, _ in fuse([A, [("w", 1.0)]], [1.0, 0.0])] == ["x", "y", "z"]
    assert fuse([[], []], [1.0, 1.0]) == [] == fuse([], [])
    with pytest.raises(ValueError):
        fuse([A], [1.0, 1.0])
