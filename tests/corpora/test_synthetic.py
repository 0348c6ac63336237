import re
from dataclasses import replace

import pytest

from corpora.cuad import CATEGORIES as CUAD
from corpora.cuad import read_cuad, write_cuad
from corpora.errors import CorpusError
from corpora.synthetic import CATEGORIES, house, house_names, load_house, write_corpus, writer

HELD_BACK = ("greyfriars", "juniper", "lindqvist")  # as in program/base_model/train.py, compared in its tests
ODD = '\npart = "term"\nheading = "Odd"\ntexts = ["[[<<x>>]]"]\n[clauses."Insurance"]'
MARKS = re.compile(r"\[\[|\]\](\{:[^}]*\})?|<<|>>")


@pytest.fixture(scope="module")
def corpus():
    return write_corpus(house_names(), 13 * 30, seed=0)


def _fold(text):
    return " ".join(text.split())


def _write_house(folder, monkeypatch, change):
    """A copy of a shipped house with `change` made to its text, as houses/odd.toml of a package in `folder`."""
    source = house.resources.files("corpora.synthetic") / "houses" / "ashgrove.toml"
    text = source.read_text(encoding="utf-8")
    (folder / "houses").mkdir()
    (folder / "houses" / "odd.toml").write_text(change(text), encoding="utf-8")
    monkeypatch.setattr(house.resources, "files", lambda package: folder)


def test_every_shipped_house_writes_all_that_is_asked(monkeypatch):
    assert len(house_names()) == 13 and set(HELD_BACK) < set(house_names())
    monkeypatch.setattr(writer, "_PRESENCE", dict.fromkeys(CATEGORIES, 1.0))
    labels = write_corpus(house_names(), 13 * 2, seed=1).labels
    assert len(labels) == 26 * len(CATEGORIES) and all(label.spans for label in labels)


def test_the_categories_are_cuads():
    assert len(set(CATEGORIES)) == len(CATEGORIES) >= 24
    assert set(CATEGORIES) <= {category.name for category in CUAD}


def test_every_quote_stands_in_its_contract_and_holds_its_answer(corpus):
    texts = {contract.id: contract.text for contract in corpus.contracts}
    for label in corpus.labels:
        text = texts[label.question.contract_id]
        assert list(label.spans) == sorted(label.spans, key=lambda span: span.start)
        assert all(0 <= span.start < span.end <= len(text) for span in label.spans), label
        quotes = [text[span.start : span.end] for span in label.spans]
        assert all(quote == quote.strip() for quote in quotes), label
        if quotes:
            assert label.answer.strip() and _fold(label.answer) in _fold(", ".join(quotes)), label
        else:
            assert label.answer is None


def test_contracts_are_whole_and_of_the_stated_length(corpus):
    assert len({contract.id for contract in corpus.contracts}) == len(corpus.contracts) == 390
    assert all(4000 <= len(contract.text) <= 15000 for contract in corpus.contracts)
    assert not any(MARKS.search(contract.text) or re.search(r"[{}]", contract.text) for contract in corpus.contracts)


def test_about_two_thirds_of_the_questions_have_no_answer(corpus):
    assert len(corpus.labels) == len(corpus.contracts) * len(CATEGORIES)
    absent = sum(not label.spans for label in corpus.labels) / len(corpus.labels)
    assert 0.6 <= absent <= 0.72


def test_the_same_arguments_give_the_same_corpus():
    names = ("juniper", "ashgrove")
    assert write_corpus(names, 4, seed=3) == write_corpus(names, 4, seed=3)
    one, other = write_corpus(names, 4, seed=3), write_corpus(names, 4, seed=4)
    assert not {contract.text for contract in one.contracts} & {contract.text for contract in other.contracts}


def test_a_written_corpus_is_read_back_equal(tmp_path):
    corpus = write_corpus(house_names(), 13, seed=5)
    write_cuad(corpus, tmp_path / "made.json")
    back = read_cuad(tmp_path / "made.json")
    assert back.contracts == corpus.contracts and back.labels == corpus.labels


def test_held_back_houses_share_little_wording_with_the_known():
    def five_word_runs(name):
        known = load_house(name)
        texts = [text for clause in known.clauses + known.boilerplate for text in clause.texts]
        words = [re.findall(r"[a-z']+|\{[^}]*\}", MARKS.sub("", text).lower()) for text in texts]
        return {tuple(w[i : i + 5]) for w in words for i in range(len(w) - 4)}

    known = set().union(*(five_word_runs(name) for name in house_names() if name not in HELD_BACK))
    for name in HELD_BACK:
        runs = five_word_runs(name)
        assert len(runs) > 1000 and len(runs & known) / len(runs) < 0.05, name


def test_an_unknown_house_is_named_with_those_there_are():
    with pytest.raises(CorpusError, match="'nemo'; there are: ashgrove"):
        load_house("nemo")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace('[clauses."Insurance"]', '[other."Insurance"]'), r"no clause for \['Insurance'\]"),
        (lambda text: text.replace('[clauses."Insurance"]', '[clauses."Insuranse"]' + ODD), r"for \['Insuranse'\]"),
        (lambda text: text.replace('part = "term"', 'part = "terms"', 1), "'terms' is not one of"),
    ],
)
def test_a_house_file_that_breaks_a_rule_is_refused(tmp_path, monkeypatch, change, says):
    _write_house(tmp_path, monkeypatch, change)
    with pytest.raises(CorpusError, match=says):
        load_house.__wrapped__("odd")


def test_marks_and_parts_are_checked():
    good = load_house("ashgrove")
    house._check(good)
    clause, boilerplate = good.clauses[0], good.boilerplate[0]
    unmarked = good.preamble["with_date"].replace("{:Parties}", "{:Party}")
    for broken, says in [
        (replace(good, boilerplate=(replace(boilerplate, texts=("[[It <<answers>> nothing.]]",)),)), "boilerplate"),
        (replace(good, boilerplate=(replace(boilerplate, part="annex"),)), "'annex'"),
        (replace(good, clauses=(replace(clause, texts=("No quote here.",)),)), "needs"),
        (replace(good, clauses=(replace(clause, texts=("[[A quote without an answer.]]",)),)), "needs"),
        (replace(good, clauses=(replace(clause, texts=("[[<<Two>> <<answers>>.]]",)),)), "needs"),
        (replace(good, order=good.order[:-1]), "order"),
        (replace(good, preamble=good.preamble | {"with_date": unmarked}), "preamble with_date"),
    ]:
        with pytest.raises(CorpusError, match=says):
            house._check(broken)
