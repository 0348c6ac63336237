import random
import subprocess
import sys

import pytest

from corpora.errors import CorpusError
from corpora.splits import near_duplicate_groups, sample_contracts, split_corpus, subset
from corpora.types import Contract, Corpus, Label, Question

WORDS = [f"word{i}" for i in range(5000)]


def text(seed, n_words=400):
    return " ".join(random.Random(seed).choices(WORDS, k=n_words))


def amended(original, n_changed, seed=0):
    """The text with `n_changed` words replaced: of 400 words 5 leave a Jaccard similarity of about 0.88, 40 of 0.4."""
    words = original.split()
    for i in random.Random(seed).sample(range(len(words)), n_changed):
        words[i] = f"changed{seed}-{i}"
    return " ".join(words)


def corpus(contracts):
    labels = tuple(Label(Question(f"{c.id}__Parties", c.id, "Parties", "Who?"), ()) for c in contracts)
    return Corpus("made", tuple(contracts), labels)


def ids(part):
    return {contract.id for contract in part.contracts}


def test_sides_are_disjoint_cover_all_and_carry_their_own_labels():
    whole = corpus([Contract(f"c{i:02}", text(i)) for i in range(20)])
    split = split_corpus(whole)
    assert [len(part.contracts) for part in (split.train, split.val, split.test)] == [12, 4, 4]
    assert ids(split.train) | ids(split.val) | ids(split.test) == ids(whole)
    for part in (split.train, split.val, split.test):
        assert {label.question.contract_id for label in part.labels} == ids(part)
    assert split.test.name == "made/test"


def test_same_seed_same_split_whatever_the_order_and_another_seed_another():
    contracts = [Contract(f"c{i:02}", text(i)) for i in range(20)]
    first = split_corpus(corpus(contracts), seed=3)
    assert ids(split_corpus(corpus(contracts[::-1]), seed=3).test) == ids(first.test)
    assert ids(split_corpus(corpus(contracts), seed=4).test) != ids(first.test)


def test_groups_are_the_same_in_another_process():
    code = (
        "from corpora.splits import _shingles; import hashlib;"
        "print(hashlib.sha256(_shingles('a b c d e f g').tobytes()).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env={"PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout != b""


def test_near_duplicates_are_on_one_side():
    chain = [Contract("amendment 0", text(0))]
    for i in range(1, 6):
        chain.append(Contract(f"amendment {i}", amended(chain[-1].text, 5, seed=i)))
    whole = corpus([*chain, *(Contract(f"c{i}", text(i)) for i in range(1, 12))])
    for seed in range(5):
        split = split_corpus(whole, seed=seed)
        sides = [len(ids(part) & ids(corpus(chain))) for part in (split.train, split.val, split.test)]
        assert sorted(sides) == [0, 0, 6]


def test_groups_are_chains_of_pairs_above_the_threshold():
    original = text(0)
    near, far = Contract("near", amended(original, 4)), Contract("far", amended(original, 40))
    contracts = [Contract("own", original), near, far, Contract("other", text(1)), Contract("short", "two words")]
    assert near_duplicate_groups(contracts, 0.8) == [("far",), ("near", "own"), ("other",), ("short",)]
    assert near_duplicate_groups(contracts, 0.3) == [("far", "near", "own"), ("other",), ("short",)]


def test_a_pair_just_below_the_threshold_is_not_one_group():
    pairs = [(Contract(f"{n}", text(n)), Contract(f"{n} changed", amended(text(n), 11))) for n in range(6)]
    assert len(near_duplicate_groups([contract for pair in pairs for contract in pair], 0.8)) == 12


def test_every_side_has_a_contract_however_unequal_the_groups():
    original = text(0)
    big = [Contract(f"a{i}", amended(original, 1 + i)) for i in range(8)]
    split = split_corpus(corpus([*big, Contract("b", text(1)), Contract("c", text(2))]))
    assert sorted(len(part.contracts) for part in (split.train, split.val, split.test)) == [1, 1, 8]
    groups = [[Contract(f"{n}-{i}", amended(text(n), i)) for i in range(size)] for n, size in enumerate((4, 3, 3))]
    split = split_corpus(corpus([contract for group in groups for contract in group]))
    assert sorted(len(part.contracts) for part in (split.train, split.val, split.test)) == [3, 3, 4]
    with pytest.raises(CorpusError, match="2 groups of near-duplicates"):
        split_corpus(corpus([*big, Contract("b", text(1))]))


@pytest.mark.parametrize("fractions", [(0.8, 0.2, 0.0), (0.6, 0.2, 0.1), (1.2, -0.1, -0.1)])
def test_refuses_fractions_that_leave_a_side_empty_or_do_not_sum_to_1(fractions):
    with pytest.raises(CorpusError, match="fractions"):
        split_corpus(corpus([Contract(str(i), text(i)) for i in range(9)]), fractions=fractions)


def test_refuses_thresholds_and_ids_that_mean_nothing():
    for jaccard in (0.0, 1.1):
        with pytest.raises(CorpusError, match="Jaccard"):
            near_duplicate_groups([Contract("a", "text")], jaccard)
    with pytest.raises(CorpusError, match="'a' stands twice"):
        near_duplicate_groups([Contract("a", "one"), Contract("a", "two")], 0.8)


def test_sample_and_subset_keep_the_order_and_refuse_what_is_not_there():
    whole = corpus([Contract(f"c{i}", "text") for i in (3, 1, 2, 0)])
    assert [c.id for c in subset(whole, ["c0", "c3"]).contracts] == ["c3", "c0"]
    assert len(sample_contracts(whole, 2, seed=0).labels) == 2
    assert sample_contracts(whole, 2, seed=5) == sample_contracts(whole, 2, seed=5)
    with pytest.raises(CorpusError, match="no contract 'c9'; near it: c"):
        subset(whole, ["c9"])
    for n in (0, 5):
        with pytest.raises(CorpusError, match=f"{n} contracts"):
            sample_contracts(whole, n, seed=0)
