import errno
import hashlib
import json
import os
import re
import shutil
import signal
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from corpora.cuad import read_cuad, write_cuad
from corpora.errors import CorpusError
from corpora.splits import subset
from corpora.synthetic import write_corpus
from corpora.types import Contract, Corpus
from modules.retriever import StoreError
from optimizers.errors import TrainingError
from optimizers.local_lm import load_weights
from optimizers.local_lm.training.watch import Watch
from program import compile as compile_module
from program import evaluate_run as evaluate_module
from program.compile import compile, read_split
from program.config import ConfigError
from program.evaluate_run import ask_run, evaluate_run, open_run, read_compiled
from program.recipes import Stage
from program.runs import RunError, read_run

CUAD = Path(os.environ.get("EVERGREEN_CUAD", Path(__file__).parents[3] / "shared" / "cuad" / "CUADv1_train.json"))


def _quiet(line):
    pass


def _files(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _json(path):
    return json.loads(path.read_text(encoding="utf-8"))


# -- the whole run


def test_a_run_leaves_its_whole_folder(compiled):
    run = read_run(compiled.path)
    assert run.status == "complete" and run.reason == ""
    assert run.config == asdict(compiled.config)
    assert run.versions["command"] == "evergreen compile" and run.versions["packages"]["dspy"]
    assert run.data["files"]["corpus"]["sha256"] == compiled.digest
    splits = run.data["splits"]
    assert sorted(sum(splits.values(), [])) == sorted(contract.id for contract in compiled.corpus.contracts)
    asked = {label.question.id for label in compiled.corpus.labels if label.question.contract_id in splits["test"]}
    for stage in ("base", "p", "p -> s"):
        rows = [row for row in run.rows if row["stage"] == stage]
        assert {row["question_id"] for row in rows} == asked and len(rows) == len(asked) > 0
    assert run.summary == compiled.result.summary and run.summary["chosen"] == compiled.result.recipe == "p -> s"
    assert [stage["recipe"] for stage in _json(compiled.path / "stages.json")] == ["base", "p", "p -> s"]
    (training,) = (compiled.path / "training").glob("*/training.json")
    assert _json(training)["rows"] > 0
    assert "BETTERTOGETHER" in (compiled.path / "compile.log").read_text(encoding="utf-8").upper()
    time, memory, compiling = compiled.said
    assert time.startswith("about") and "GiB" in memory and compiling.startswith("compiling 'p -> s'")


def test_nothing_is_pickled(compiled):
    names = _files(compiled.path)
    saved = [Path(name) for name in names if name.startswith("program/")]
    assert saved and all(path.suffix in (".json", ".safetensors") or path.name == "COMPLETE" for path in saved)
    assert any(re.fullmatch(r"program/adapters/sft-\w+/adapter_model\.safetensors", name) for name in names)
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".joblib"))]


def test_the_report_takes_nothing_from_a_network(compiled):
    page = (compiled.path / "report.html").read_text(encoding="utf-8")
    for stage in ("base", "p -&gt; s"):
        assert stage in page
    assert "This run is" not in page  # neither partial nor failed
    without_names = re.sub(r'xmlns(:\w+)?="http://www\.w3\.org/[^"]*"', "", page)
    assert "://" not in without_names and not re.search(r"<(link|script|iframe)|@import|src=", without_names)


def test_what_cannot_be_read_is_a_wrong_answer_and_no_failed_call(compiled):
    run = read_run(compiled.path)
    for row in run.rows:
        assert row["error"] is None and row["exact_match"] == 0.0
        assert (row["answer"], row["found"], row["quotes"]) == ("", True, [])
    for stage in run.summary["stages"]:
        assert stage["n_failed"] == 0 and stage["n_scored"] == stage["n_questions"] > 0
        assert stage["scores"]["exact_match"]["mean"] == 0.0


@pytest.mark.parametrize("kind", ["llama", "gemma"])  # of which the second refuses a system turn
def test_other_architectures_run_to_the_end(kind, tmp_path, word_embedder, small_corpus, tiny_model, small_config):
    small_corpus(tmp_path / "c.json")
    result = compile(small_config(tmp_path / "c.json", tiny_model(kind), tmp_path / "run"), progress=False, say=_quiet)
    run = read_run(result.path)
    assert run.status == "complete" and {row["stage"] for row in run.rows} == {"base", "p", "p -> s"}
    assert not [row for row in run.rows if row["error"]]
    assert result.recipe == "" and run.summary["chosen"] == "base"  # of equals the earliest
    assert (result.path / "report.html").is_file() and (result.path / "program" / "COMPLETE").is_file()


# -- a run put to use


def test_a_moved_run_answers(compiled):
    contract = compiled.corpus.contracts[0].id
    prediction = ask_run(compiled.path, "governing law", contract)
    assert {passage.contract_id for passage in prediction.passages} == {contract}
    assert prediction.readable is False and prediction.answer == ""
    assert ask_run(compiled.path, "What is it?", None).passages
    with open_run(compiled.path) as program:
        assert "@sft-" in program.reviewer.predict.lm.model  # the weights came along
    with pytest.raises(StoreError, match="nope"):
        ask_run(compiled.path, "governing law", "nope")


def test_a_moved_run_is_scored_on_other_contracts(compiled, tmp_path, small_corpus, monkeypatch, words_embedder):
    monkeypatch.setattr(evaluate_module, "load_embedder", words_embedder)
    corpus = small_corpus(tmp_path / "other.json", houses=("kestrel",), n_contracts=2)
    before = _files(compiled.path / "program")
    result = evaluate_run(compiled.path, tmp_path / "other.json", tmp_path / "scored", command="evergreen evaluate")
    run = read_run(result.path)
    assert run.status == "complete" and run.config["run"] == str(compiled.path)
    assert run.data["files"]["corpus"]["sha256"] == hashlib.sha256((tmp_path / "other.json").read_bytes()).hexdigest()
    assert run.data["splits"] == {"test": sorted(contract.id for contract in corpus.contracts)}
    asked = [(stage, label.question.id) for stage in ("base", "p -> s") for label in corpus.labels]
    assert [(row["stage"], row["question_id"]) for row in run.rows] == asked
    assert not [row for row in run.rows if row["error"]]
    assert (result.path / "report.html").is_file() and _files(compiled.path / "program") == before
    with pytest.raises(RunError, match="no compiled program"):
        read_compiled(result.path)  # an evaluation is a run, and nothing to ask


# -- what is refused before anything is computed


@pytest.fixture
def contracts(tmp_path, small_corpus):
    return small_corpus(tmp_path / "c.json", n_contracts=6)


def _amended(contract, contract_id):
    """The contract under another id, with a few other words: the same to a reader, near to a hash."""
    words = contract.text.split(" ")
    words[50:53] = ["as", "amended", "hereby"]
    return Contract(contract_id, " ".join(words))


def test_contracts_like_those_of_the_test_are_never_trained_on(contracts, tmp_path, small_config):
    first, second, *others = contracts.contracts
    labels = {label.question.contract_id: label for label in contracts.labels}
    held = (_amended(first, "amended-and-restated"), second)
    question = replace(labels[first.id].question, id="amended-and-restated__Insurance", contract_id=held[0].id)
    test_labels = (replace(labels[first.id], question=question, spans=()), labels[second.id])
    write_cuad(Corpus("test", held, test_labels), tmp_path / "t.json")
    config = small_config(tmp_path / "c.json", "none", tmp_path / "run", test_corpus=str(tmp_path / "t.json"))
    said = []
    split = read_split(config, said.append)
    trained = [contract.id for contract in split.train.contracts + split.val.contracts]
    assert sorted(trained) == sorted(contract.id for contract in others)
    assert [contract.id for contract in split.test.contracts] == [contract.id for contract in held]
    assert said and said[0].startswith("2 contracts")


def test_likes_stay_on_one_side_of_a_split_too(contracts, tmp_path, small_config):
    twins = [_amended(contract, f"{contract.id}-amended") for contract in contracts.contracts[:3]]
    write_cuad(Corpus("both", contracts.contracts + tuple(twins), contracts.labels), tmp_path / "both.json")
    split = read_split(small_config(tmp_path / "both.json", "none", tmp_path / "run"), _quiet)
    side = {contract.id: name for name in ("train", "val", "test") for contract in getattr(split, name).contracts}
    assert len(side) == 9 and all(side[twin.id] == side[twin.id.removesuffix("-amended")] for twin in twins)


@pytest.mark.parametrize(
    ("share", "alone", "with_test"), [(None, (12, 4, 4), (15, 5, 4)), (0.1, (14, 2, 4), (18, 2, 4))]
)
def test_the_share_of_contracts_that_are_chosen_on_can_be_told(tmp_path, small_config, share, alone, with_test):
    corpus = write_corpus(["juniper"], 24, seed=3)
    ids = [contract.id for contract in corpus.contracts]
    write_cuad(subset(corpus, ids[:20]), tmp_path / "c.json")
    write_cuad(subset(corpus, ids[20:]), tmp_path / "t.json")
    for test, sizes in ((None, alone), (str(tmp_path / "t.json"), with_test)):
        config = small_config(tmp_path / "c.json", "none", tmp_path / "run", test_corpus=test, val_share=share)
        split = read_split(config, _quiet)
        assert tuple(len(side.contracts) for side in (split.train, split.val, split.test)) == sizes
    with pytest.raises(ConfigError, match="val_share is 0.8"):
        small_config(tmp_path / "c.json", "none", tmp_path / "run", val_share=0.8)


def test_a_test_corpus_that_leaves_nothing_to_train_on_is_refused(contracts, tmp_path, small_config):
    config = small_config(tmp_path / "c.json", "none", tmp_path / "run", test_corpus=str(tmp_path / "c.json"))
    with pytest.raises(CorpusError, match="0 contracts are left to train on"):
        compile(config, progress=False, say=_quiet)
    assert not (tmp_path / "run").exists()


def test_wrong_recipes_and_corpora_without_questions_stop_before_the_model(contracts, tmp_path, small_config):
    with pytest.raises(ConfigError, match=r"\['q'\]"):
        compile(small_config(tmp_path / "c.json", "none", tmp_path / "run", recipe="p -> q"), say=_quiet)
    write_cuad(Corpus("mute", contracts.contracts, ()), tmp_path / "mute.json")
    with pytest.raises(CorpusError, match="no questions"):
        compile(small_config(tmp_path / "mute.json", "none", tmp_path / "run"), say=_quiet)
    assert not (tmp_path / "run").exists()


# -- what goes wrong in the middle: an earlier complete run stays byte for byte


@pytest.fixture
def earlier(compiled, tmp_path, word_embedder, small_corpus, tiny_model, small_config):
    """A config whose `out` holds a complete run, and the hashes of that run's files."""
    path = shutil.copytree(compiled.path, tmp_path / "run")
    small_corpus(tmp_path / "c.json", n_contracts=3)
    return small_config(tmp_path / "c.json", tiny_model(), path, recipe="s", sft_epochs=50.0), _files(path)


def _start(config):
    return compile(config, overwrite=True, progress=False, say=_quiet)


def _no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _only_base(program, config, adapter, **_):
    return [Stage("", program, 0.0)]


def test_a_complete_run_is_not_replaced_unasked(earlier):
    config, before = earlier
    with pytest.raises(RunError, match="overwrite"):
        compile(config, progress=False, say=_quiet)
    assert _files(Path(config.out)) == before


def test_a_disk_that_fills_at_the_summary_harms_no_earlier_run(earlier, monkeypatch, tmp_path):
    config, before = earlier
    summarize = compile_module.summarize

    def filling(*arguments, **options):
        monkeypatch.setattr(os, "fsync", _no_space)
        return summarize(*arguments, **options)

    monkeypatch.setattr(compile_module, "run_recipe", _only_base)
    monkeypatch.setattr(compile_module, "summarize", filling)
    with pytest.raises(RunError, match="earlier run there is untouched; the disk is full: free some space") as caught:
        _start(config)
    assert _files(Path(config.out)) == before
    # Not even the mark could be written: the error says where the run lies.
    assert ".run.partial" in caught.value.__notes__[0] and (tmp_path / ".run.partial" / "scores.jsonl").is_file()
    monkeypatch.undo()


def test_a_disk_that_fills_in_training_says_so(earlier, monkeypatch):
    config, before = earlier

    def fail(*_, **__):
        # What safetensors says; it is no OSError.
        cause = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
        raise TrainingError("recipe 's' stopped") from cause

    monkeypatch.setattr(compile_module, "run_recipe", fail)
    with pytest.raises(RunError, match="untouched; the disk is full"):
        _start(config)
    assert _files(Path(config.out)) == before
    left = read_run(Path(f"{config.out}.partial"))
    assert left.status == "failed" and {row["stage"] for row in left.rows} == {"base"}


def test_a_report_that_cannot_be_written_leaves_no_complete_run_without_one(earlier, monkeypatch):
    config, before = earlier
    monkeypatch.setattr(compile_module, "run_recipe", _only_base)
    monkeypatch.setattr(compile_module, "write_report", _no_space)
    with pytest.raises(RunError, match="the disk is full"):
        _start(config)
    assert _files(Path(config.out)) == before
    assert read_run(Path(f"{config.out}.partial")).status == "failed"


def test_ctrl_c_between_stages_keeps_what_was_scored(earlier, monkeypatch):
    config, before = earlier

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(compile_module, "run_recipe", stop)
    with pytest.raises(KeyboardInterrupt):
        _start(config)
    assert _files(Path(config.out)) == before
    left = read_run(Path(f"{config.out}.partial"))
    assert (left.status, left.reason) == ("partial", "stopped with Ctrl-C")
    assert {row["stage"] for row in left.rows} == {"base"} and left.config["seed"] == config.seed


def test_ctrl_c_in_training_ends_the_training_too(earlier, monkeypatch):
    config, before = earlier
    stopped = []

    def interrupt(watch, args, state, control, **_):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)  # as the terminal does; the main thread waits for this one
            stopped.append(watch.stop.wait(timeout=20))
        stopped.append(state.global_step)

    monkeypatch.setattr(Watch, "on_step_end", interrupt)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts us with it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            _start(config)
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert stopped == [True, 1]
    assert _files(Path(config.out)) == before
    assert read_run(Path(f"{config.out}.partial")).status == "partial"
    assert not [thread for thread in threading.enumerate() if "thread_function_wrapper" in thread.name]
    weights = load_weights(config.lm)
    assert weights.tuning is None and not weights.model.training and weights.lock.acquire(timeout=1)
    weights.lock.release()


# -- real contracts


@pytest.mark.slow
@pytest.mark.skipif(not CUAD.is_file(), reason=f"no CUAD at {CUAD}; set EVERGREEN_CUAD to CUADv1.json to run this")
def test_real_contracts_run_to_the_end(tmp_path, tiny_model, small_config):
    whole = read_cuad(CUAD)
    longest = max(whole.contracts, key=lambda contract: len(contract.text))
    contracts = (longest, *[contract for contract in whole.contracts if contract.id != longest.id][:3])
    labels = []
    for contract in contracts:
        own = [label for label in whole.labels if label.question.contract_id == contract.id]
        labels += [label for label in own if label.spans][:2] + [label for label in own if not label.spans][:1]
    write_cuad(Corpus("real", contracts, tuple(labels)), tmp_path / "real.json")
    config = small_config(tmp_path / "real.json", tiny_model(), tmp_path / "run", max_chars=600)
    run = read_run(compile(config, progress=False, say=_quiet).path)
    assert run.status == "complete" and {row["stage"] for row in run.rows} == {"base", "p", "p -> s"}
    assert not [row for row in run.rows if row["error"]]
    ids = {contract.id for contract in contracts}
    assert set(sum(run.data["splits"].values(), [])) == ids and longest.id in ids
