"""`evergreen label`, and a compile run that labels for itself: what they leave, and what they refuse."""

import json
from dataclasses import replace

import pytest

from corpora.cuad import read_cuad, write_cuad
from corpora.errors import CorpusError
from corpora.labels import held_out
from corpora.labels.formats import read_labels
from corpora.labels.store import LabelStore
from corpora.synthetic import write_corpus
from corpora.types import Corpus
from program import label as label_module
from program.compile import compile, read_split
from program.config import CompileConfig
from program.label import estimate, label
from program.label_settings import LabelSettings
from program.runs import read_run
from program.unlabelled import keep_apart, read_unlabelled

SETTINGS = LabelSettings(answered=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """People's labels, contracts without, and those contracts' labels."""
    folder = tmp_path_factory.mktemp("files")
    people, gold = write_corpus(["juniper"], 6, seed=3), write_corpus(["juniper"], 4, seed=4)
    for name, corpus in (
        ("people", people), ("deals", Corpus("deals", gold.contracts, ())), ("gold", gold),
    ):  # fmt: skip
        write_cuad(corpus, folder / f"{name}.json")
    return folder


@pytest.fixture(scope="module")
def labelled(files, tmp_path_factory, tiny_model, words_embedder):
    out = tmp_path_factory.mktemp("labels") / "out"
    given = {"lm": str(tiny_model()), "settings": SETTINGS, "threads": 4, "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_module, "load_embedder", words_embedder)
        first = label(files / "people.json", files / "deals.json", out, gold=files / "gold.json", **given)
        before = (out / "labels.json").read_text(encoding="utf-8")
        again = label(files / "people.json", files / "deals.json", out, **given)
    return first, again, before


def test_labels_are_left_with_their_history_and_as_a_corpus(labelled, files):
    first, _, _ = labelled
    contracts, records = read_labels(first.path / "labels.json")
    made = [record for record in records if record.source == "synthetic"]
    assert made and {record.draft.method for record in made} >= {"project"}
    deals = {contract.id for contract in read_cuad(files / "deals.json").contracts}
    assert {record.draft.label.question.contract_id for record in made} <= deals
    corpus = read_cuad(first.path / "labels.cuad.json")
    assert {(la.question.contract_id, la.question.text) for la in corpus.labels} >= {
        (record.draft.label.question.contract_id, record.draft.label.question.text) for record in made
    }
    assert first.figures["precision"]["overall"]["n"] == len(made)
    assert (first.path / "label_report.html").is_file() and any("kept" in line for line in first.lines)


def test_the_same_folder_goes_on_and_loses_nothing(labelled):
    first, again, before = labelled
    kept = {record["id"] for record in json.loads(before)["labels"]}
    with LabelStore.open(again.path / "labels.db") as store:
        records = list(store.records())
        asked = [record.id for record in records]
    assert kept <= set(asked) and len(asked) == len(set(asked))
    assert first.figures["cost"]["calls"] and again.figures["rounds"][0]["round"] == 1


def test_validation_contracts_may_not_be_labelled(files, tmp_path, tiny_model, words_embedder, monkeypatch):
    monkeypatch.setattr(label_module, "load_embedder", words_embedder)
    given = {"lm": str(tiny_model()), "settings": SETTINGS, "progress": False}
    with pytest.raises(CorpusError, match="juniper-"):
        label(files / "people.json", files / "people.json", tmp_path / "out", **given)


def test_a_dry_run_writes_nothing_and_asks_no_labeller(files, tiny_model, words_embedder, monkeypatch, tmp_path):
    monkeypatch.setattr(label_module, "load_embedder", words_embedder)
    monkeypatch.chdir(tmp_path)
    told = estimate(files / "people.json", files / "deals.json", lm=str(tiny_model()), settings=SETTINGS, threads=2)
    assert "4 contracts, 28 questions" in told and "min here" in told
    priced = {"lm": str(tiny_model()), "settings": SETTINGS}
    told = estimate(files / "people.json", files / "deals.json", labeller="openai/gpt-4o-mini", **priced)
    assert "$" in told
    told = estimate(files / "people.json", files / "deals.json", labeller="openai/my-own", **priced)
    assert "no price is known" in told
    assert not list(tmp_path.iterdir())


def test_a_compile_run_labels_for_itself(files, tmp_path, tiny_model, small_config):
    config = small_config(
        files / "people.json", tiny_model(), tmp_path / "run",
        recipe="s", unlabelled=str(files / "deals.json"), label_rounds=1,
        label_settings={"filters": ["verbatim"]},
    )  # fmt: skip
    said = []
    result = compile(config, progress=False, say=said.append)
    assert any(line.startswith("labelling, round 1: ") for line in said)
    assert read_run(result.path).status == "complete"
    (report,) = json.loads((result.path / "labels.json").read_text(encoding="utf-8"))
    assert report["round"] == 1 and report["kept"] and [name for name, *_ in report["funnel"]] == ["verbatim"]
    with LabelStore.open(result.path / "labels.db") as store:
        assert len(list(store.records("synthetic"))) == sum(report["kept"].values())
        assert store.contracts("test") and store.contracts("val")
    told = (result.path / "compile.log").read_text(encoding="utf-8")
    assert "round 0: " in told and "round 1: " in told


def test_what_is_scored_on_may_not_be_labelled(files, tmp_path):
    config = CompileConfig(corpus=str(files / "people.json"))
    split = read_split(config, lambda line: None)
    keep_apart(tmp_path / "apart.db", read_unlabelled(files / "deals.json"), split)
    for side in (split.val, split.test):
        with pytest.raises(CorpusError, match=side.contracts[0].id):
            keep_apart(tmp_path / f"{side.name.replace('/', '-')}.db", side.contracts[:1], split)


def test_near_duplicates_are_searched_for_once(files, tmp_path, monkeypatch):
    split = read_split(CompileConfig(corpus=str(files / "people.json")), lambda line: None)
    unlabelled = read_unlabelled(files / "deals.json")
    path = keep_apart(tmp_path / "apart.db", unlabelled, split)
    monkeypatch.setattr(held_out, "near_duplicate_groups", lambda *_: pytest.fail("searched again"))
    with LabelStore.open(path) as store:
        store.hold_out(split.val.contracts, "val")
        store.refuse_overlap(unlabelled)
        store.add_contracts(split.train.contracts + unlabelled)
        with pytest.raises(CorpusError, match=split.test.contracts[0].id):
            store.refuse_overlap(unlabelled + split.test.contracts[:1])


def test_gold_that_cannot_judge_is_refused_before_anything_is_labelled(files, tmp_path):
    other = write_corpus(["ashgrove"], 2, seed=5)
    gold = read_cuad(files / "gold.json")
    first, *rest = gold.contracts
    changed = Corpus("changed", (replace(first, text=first.text.swapcase()), *rest), gold.labels)
    for corpus, told in (
        (other, f"none of a contract that is to be labelled, such as '{first.id}'"),
        (changed, "text"),
    ):
        write_cuad(corpus, tmp_path / "wrong.json")
        with pytest.raises(CorpusError, match=told):
            label(files / "people.json", files / "deals.json", tmp_path / "out", gold=tmp_path / "wrong.json")
    assert not (tmp_path / "out").exists()
