"""A whole run whose recipe tunes the retriever: what it keeps, and what is used of it later."""

import json
from dataclasses import replace
from functools import partial

import pytest

from corpora.cuad import write_cuad
from corpora.synthetic import write_corpus
from modules.retriever import PassageIndex
from optimizers.embedder import EmbedderSettings
from program import compile as compile_module
from program import recipes
from program.compile import compile
from program.evaluate_run import evaluate_run, open_run
from program.run_retrieval import read_retrieval
from program.runs import RunError, read_run


def openings(n_contracts, seed):
    """Generated contracts as far as their first 3,000 characters: the embedder here is the packaged one."""
    whole = write_corpus(["juniper"], n_contracts, seed=seed)
    contracts = tuple(replace(contract, text=contract.text[:3000]) for contract in whole.contracts)
    labels = []
    for label in whole.labels:
        spans = tuple(span for span in label.spans if span.end <= 3000)
        labels.append(replace(label, spans=spans, answer=label.answer if spans else None))
    return replace(whole, contracts=contracts, labels=tuple(labels))


@pytest.fixture(scope="module")
def tuned_run(tmp_path_factory, tiny_model, small_config):
    """One run, for reading only; its corpus, its result and what it said."""
    folder, said = tmp_path_factory.mktemp("tuned"), []
    corpus = openings(5, seed=3)
    write_cuad(corpus, folder / "c.json")
    config = small_config(folder / "c.json", tiny_model(), folder / "run", recipe="r -> s", k_passages=3)
    with pytest.MonkeyPatch.context() as patch:
        # A random model answers everything wrong, so that of equal stages the first would be kept.
        patch.setattr(compile_module, "chosen", lambda stages: stages[-1])
        patch.setattr(recipes, "EmbedderSettings", partial(EmbedderSettings, max_steps=2, batch_size=4, validations=1))
        return corpus, compile(config, progress=False, say=said.append), said


def test_a_tuned_retriever_is_kept_and_used_by_what_comes_after(tuned_run, tmp_path):
    corpus, result, said = tuned_run
    assert result.recipe == "r -> s" and read_run(result.path).status == "complete"
    assert [stage["recipe"] for stage in json.loads((result.path / "stages.json").read_text())] == [
        "base",
        "r",
        "r -> s",
    ]
    kept = read_retrieval(result.path)
    assert kept.index.is_relative_to(result.path / "retriever") and kept.embedder.is_dir()
    assert kept.settings.k <= 3 and kept.settings.answers is not None
    stated = [row["p_answered"] for row in read_run(result.path).rows if row["stage"] == "r -> s"]
    assert stated and all(0 <= p <= 1 for p in stated)
    assert "Does retrieval know what is not there?" in (result.path / "report.html").read_text(encoding="utf-8")
    with open_run(result.path) as program:
        assert program.retrieve.index.folder == kept.index.resolve() and program.retrieve.settings == kept.settings
        assert program("Which law governs?", corpus.contracts[0].id).p_answered is not None
    assert any("min here" in line for line in said)


def test_other_contracts_are_embedded_by_the_tuned_embedder(tuned_run, tmp_path, monkeypatch):
    _, result, _ = tuned_run
    built = []
    build = PassageIndex.build.__func__

    def noted(cls, contracts, **options):
        built.append(options["embedder"])
        return build(cls, contracts, **options)

    monkeypatch.setattr(PassageIndex, "build", classmethod(noted))
    write_cuad(openings(2, seed=9), tmp_path / "other.json")
    evaluate_run(result.path, tmp_path / "other.json", tmp_path / "scored")
    assert len(built) == 2 and built[0] is not built[1]
    rows = read_run(tmp_path / "scored").rows
    assert {row["stage"]: row["p_answered"] is None for row in rows} == {"base": True, "r -> s": False}


def test_a_run_that_does_not_say_what_it_retrieves_with_is_refused(tmp_path):
    with pytest.raises(RunError, match="Compile it again"):
        read_retrieval(tmp_path)
