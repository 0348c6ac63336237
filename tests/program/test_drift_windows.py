import json

import numpy as np
import pytest

from program.drift.types import DriftError, Observation
from program.drift.windows import between, digest, load_window, save_window, window_id, window_of


def _rows():
    return [
        Observation(at=30.0, contract_id="b", confidence=0.5, category="Parties", words=("who", "signs"), rating=1.0),
        Observation(at=10.0, contract_id="a", question_embedding=(1.0, 2.0), retrieval_score=0.7, abstained=True),
        Observation(at=20.0, question_embedding=(3.0, 4.0), judge_score=7.5, category="Governing Law"),
    ]


def test_a_window_is_in_order_of_time_and_nan_is_not_measured():
    window = window_of(_rows())
    assert (window.n, window.n_contracts, window.start, window.stop) == (3, 3, 10.0, 30.0)
    assert [window.contracts[i] for i in window.contract] == ["a", "", "b"]
    assert window.abstained.tolist() == [True, False, False]
    assert np.isnan(window.confidence).tolist() == [True, True, False]
    assert np.isnan(window.question_embedding).all(axis=1).tolist() == [False, False, True]
    assert window.passage_embedding.shape == (3, 0)
    assert [window.categories[i] if i >= 0 else None for i in window.category] == [None, "Governing Law", "Parties"]


def test_questions_to_no_contract_are_units_of_their_own():
    window = window_of([Observation(at=float(i), contract_id="" if i % 2 else "a") for i in range(6)])
    assert window.n_contracts == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"confidence": float("nan")},
        {"retrieval_score": float("inf")},
        {"judge_score": float("nan")},
        {"question_embedding": (1.0, float("nan"))},
        {"question_embedding": (1.0, 2.0, 3.0)},
        {"rating": 4.0},
        {"confidence": -0.1},
        {"p_answered": 1.2},
        {"at": float("nan")},
        {"words": (1,)},
    ],
)
def test_faults_are_refused(wrong):
    row = {"at": 40.0, "contract_id": "c"} | wrong
    with pytest.raises(DriftError):
        window_of([*_rows(), Observation(**row)])


def test_an_empty_window_is_refused():
    with pytest.raises(DriftError, match="at least one"):
        window_of([])


def test_between_takes_the_start_and_leaves_the_stop():
    window = window_of(_rows())
    part = between(window, 10.0, 30.0)
    assert part.at.tolist() == [10.0, 20.0] and len(part.words) == 2 and part.contracts == window.contracts
    with pytest.raises(DriftError, match="nothing was observed"):
        between(window, 31.0, 99.0)


def test_saved_and_loaded_is_the_same(tmp_path):
    window = window_of(_rows())
    save_window(window, tmp_path / "reference.npz")
    again = load_window(tmp_path / "reference.npz")
    assert digest(again) == digest(window) and window_id(again) == window_id(window)
    assert again.words == window.words and again.contracts == window.contracts
    assert [path.name for path in tmp_path.iterdir()] == ["reference.npz"]  # nothing is left beside it


def test_digest_sees_a_value_and_the_id_only_the_span():
    window = window_of(_rows())
    other = window_of([*_rows()[:2], Observation(at=20.0, judge_score=7.0, category="Governing Law")])
    assert window_id(other) == window_id(window) and digest(other) != digest(window)
    assert window_id(between(window, 0, 25)) != window_id(window)


def test_a_file_that_is_no_window_is_refused(tmp_path):
    path = tmp_path / "window.npz"
    path.write_bytes(b"no zip")
    with pytest.raises(DriftError, match="holds no window"):
        load_window(path)
    with pytest.raises(DriftError, match="holds no window"):
        load_window(tmp_path / "absent.npz")
    window = window_of(_rows())
    save_window(window, path)
    whole = dict(np.load(path))
    short = {**whole, "rating": whole["rating"][:1]}
    np.savez(path, **short)
    with pytest.raises(DriftError, match="differ in length"):
        load_window(path)
    text = json.dumps({"contracts": [], "categories": [], "words": [[], [], []]}).encode()
    np.savez(path, **{**whole, "json": np.frombuffer(text, dtype=np.uint8)})
    with pytest.raises(DriftError, match="names"):
        load_window(path)


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_a_pickle_in_the_file_is_not_opened(tmp_path):
    path = tmp_path / "window.npz"
    save_window(window_of(_rows()), path)
    bomb = np.empty(3, dtype=object)
    bomb[:] = [_Bomb()] * 3
    np.savez(path, **{**dict(np.load(path)), "at": bomb})
    with pytest.raises(DriftError, match="holds no window"):
        load_window(path)
