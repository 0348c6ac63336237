"""Compiles that start from a run, and guards around step s: what is taken over, what is replayed, what is refused."""

import json
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import dspy
import pytest
from sentence_transformers import SentenceTransformer

from corpora.cuad import read_cuad, write_cuad
from corpora.errors import CorpusError
from corpora.splits import Split, subset
from corpora.types import Contract, Corpus
from modules import retriever
from modules.embedder import load_embedder
from modules.index_files import read_contracts
from optimizers import guards
from optimizers.instruct import InstructTune
from optimizers.local_lm.weights import file_sha256
from program import compile as compile_module
from program import guarding, run_retrieval
from program.compile import build_adapter, compile, read_split
from program.config import GUARDS, ConfigError, load_config
from program.evaluate_run import open_run
from program.guarding import label_rows, read_earlier, recipe_guard
from program.incumbent import read_incumbent
from program.report import terminal_table
from program.runs import RunError, read_run
from program.teacher import LabelTeacher, teaches

QUIET = partial(compile, progress=False)


def _silent(line):
    pass


def _json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bags_of_words(words_embedder):
    """Bags of words for the packaged embedder, and any other as it is."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (compile_module, run_retrieval):
            patch.setattr(module, "load_embedder", lambda name=None: load_embedder(name) if name else words_embedder())
        yield


@pytest.fixture(scope="module")
def first(tmp_path_factory, small_corpus, tiny_model, small_config, bags_of_words):
    """A run of "s" with its corpus in place, and a corpus of another house to go on with; for reading only."""
    folder = tmp_path_factory.mktemp("first")
    small_corpus(folder / "old.json", n_contracts=8)
    small_corpus(folder / "new.json", houses=("kestrel",), n_contracts=6, seed=2)
    # Enough questions, and enough passages, that some labels can be replayed.
    config = small_config(folder / "old.json", tiny_model(), folder / "one", recipe="s", k_passages=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile_module, "chosen", lambda stages: stages[-1])
        result = QUIET(config, say=_silent)
    return SimpleNamespace(folder=folder, config=config, run=result.path)


@pytest.fixture
def renew(first, tmp_path, monkeypatch):
    """`renew(**changes)` compiles on from the first run and keeps the last stage: (its folder, what it said)."""
    monkeypatch.setattr(compile_module, "chosen", lambda stages: stages[-1])

    def run(**changes):
        said = []
        given = {"corpus": str(first.folder / "new.json"), "out": str(tmp_path / "two"), "start_from": str(first.run)}
        result = QUIET(replace(first.config, **(given | changes)), say=said.append)
        return result.path, said

    return run


def _adapter(run):
    return next((run / "program" / "adapters").iterdir()).name


# -- started from a run


def test_weights_go_on_from_the_runs_and_its_program_is_the_base(first, renew):
    run, _ = renew()
    assert [stage["recipe"] for stage in _json(run / "stages.json")] == ["base", "s"]
    (training,) = (run / "training").glob("*/training.json")  # its own alone, not the incumbent's
    assert _json(training)["parent"] == _adapter(first.run) != _adapter(run) == training.parent.name
    told = read_run(run)
    assert told.config["start_from"] == str(first.run)
    assert set(told.data["files"]) == {"corpus", "start_from"}
    with open_run(run) as program:
        assert program.reviewer.predict.lm.model.endswith(_adapter(run))
        assert {contract_id.partition("-")[0] for contract_id in program.retrieve.index.contract_ids} == {"kestrel"}


def test_test_questions_are_asked_only_of_what_validation_chose_and_of_the_base_beside_it(first, monkeypatch, tmp_path):
    asked, stock = [], compile_module.score_program

    def noted(program, examples, stage, **options):
        asked.append(stage)
        return stock(program, examples, stage, **options)

    monkeypatch.setattr(compile_module, "score_program", noted)
    with pytest.raises(ConfigError, match="score_stages is 'best'; it must be all or chosen"):
        replace(first.config, score_stages="best")
    for number, scored, said in ((0, [], "base"), (1, ["base", "s"], "s")):
        monkeypatch.setattr(compile_module, "chosen", lambda stages, number=number: stages[number])
        asked.clear()
        config = replace(first.config, score_stages="chosen", out=str(tmp_path / said))
        run = read_run(QUIET(config, say=_silent).path)
        assert [stage for stage in asked if stage not in ("warm-up", "probe")] == scored
        assert [stage["stage"] for stage in run.summary["stages"]] == scored and run.summary["chosen"] == said
        assert {row["stage"] for row in run.rows} == set(scored)
        page = (run.path / "report.html").read_text(encoding="utf-8")
        for told in (page, terminal_table(run.summary)):
            assert ("and the program stays as it was" in told) == (said == "base")


def test_the_base_stage_is_the_run_and_not_the_plain_model(first, renew, monkeypatch):
    scored = {}
    stock = compile_module.score_program

    def noted(program, examples, stage, **options):
        scored.setdefault(stage, program.reviewer.predict.lm.model)
        return stock(program, examples, stage, **options)

    monkeypatch.setattr(compile_module, "score_program", noted)
    renew()
    assert scored["base"].endswith(f"@{_adapter(first.run)}") and scored["s"] != scored["base"]


def test_a_tuned_embedder_goes_with_the_run_that_starts_from_it(first, renew, monkeypatch):
    source = shutil.copytree(first.run, first.folder / "tuned")
    load_embedder().save(str(source / "embedder"))
    kept = _json(source / "retrieval.json")
    (source / "retrieval.json").write_text(json.dumps(kept | {"embedder": "embedder"}), encoding="utf-8")
    run, _ = renew(start_from=str(source))
    shutil.rmtree(source)
    assert _json(run / "retrieval.json")["embedder"] == "embedder"
    with open_run(run) as program:
        assert isinstance(program.retrieve.index.embedder, SentenceTransformer)
        assert program.retrieve.settings.k == kept["settings"]["k"]


def test_new_labels_are_learnt_before_any_that_was_learnt_before(first):
    old, new = (read_cuad(first.folder / name) for name in ("old.json", "new.json"))
    both = Split(Corpus("train", old.contracts + new.contracts, old.labels + new.labels), new, new)
    known = {contract.id for contract in old.contracts}

    def drawn(n):
        questions = compile_module._questions(replace(first.config, max_train_questions=n), both, None, known)
        return [one.contract_id in known for one in questions.train]

    assert drawn(len(new.labels) + 3) == [False] * len(new.labels) + [True] * 3
    assert drawn(2) == [False] * 2
    assert len(drawn(None)) == len(old.labels) + len(new.labels)


def test_contracts_that_it_learnt_from_are_neither_chosen_nor_scored_on(first):
    incumbent = read_incumbent(first.run, _silent)
    splits = read_run(first.run).data["splits"]
    assert {contract.id for contract in incumbent.seen} == {*splits["train"], *splits["val"]}
    old, new = (read_cuad(first.folder / name) for name in ("old.json", "new.json"))
    restated = Contract("restated", old.contracts[0].text + " Signed.")
    assert restated.text.startswith(next(c.text for c in incumbent.seen if c.id == old.contracts[0].id))
    both = Corpus("both", (*old.contracts, *new.contracts, restated), old.labels + new.labels)
    write_cuad(both, first.folder / "both.json")
    said = []
    config = replace(first.config, corpus=str(first.folder / "both.json"))
    split = read_split(config, said.append, incumbent.seen)
    seen = {contract.id for contract in incumbent.seen} | {"restated"}
    assert not seen & {contract.id for side in (split.val, split.test) for contract in side.contracts}
    assert seen <= {contract.id for contract in split.train.contracts} and f"{len(seen)} contracts" in said[0]
    with pytest.raises(CorpusError, match="test contracts, .* a score would be of memory"):
        read_split(replace(config, test_corpus=str(first.folder / "old.json")), _silent, incumbent.seen)


def test_what_only_chose_chooses_again_and_a_few_new_contracts_are_trained_on(first):
    incumbent = read_incumbent(first.run, _silent)
    splits = read_run(first.run).data["splits"]
    assert {contract.id for contract in incumbent.chosen} == set(splits["val"])
    old, new = (read_cuad(first.folder / name) for name in ("old.json", "new.json"))
    few = Corpus("few", (*old.contracts, *new.contracts[:2]), old.labels + new.labels)
    few = subset(few, [one.id for one in few.contracts if one.id not in splits["test"]])
    for name, corpus in (("few.json", few), ("test.json", subset(new, [one.id for one in new.contracts[2:]]))):
        write_cuad(corpus, first.folder / name)
    config = replace(first.config, **{k: str(first.folder / f) for k, f in
                                      (("corpus", "few.json"), ("test_corpus", "test.json"))})  # fmt: skip
    split = read_split(config, _silent, incumbent.seen, incumbent.chosen)
    assert {contract.id for contract in split.val.contracts} == set(splits["val"])
    new_ids = {contract.id for contract in new.contracts[:2]}
    assert {contract.id for contract in split.train.contracts} == set(splits["train"]) | new_ids
    with pytest.raises(CorpusError):  # with nothing that may choose again, two are too few to split
        read_split(config, _silent, incumbent.seen)


def test_what_the_whole_line_learnt_from_is_seen_as_far_as_it_is_there(first, renew, tmp_path):
    run, _ = renew()
    houses = {contract.id.partition("-")[0] for contract in read_incumbent(run, pytest.fail).seen}
    assert houses == {"juniper", "kestrel"}
    other = shutil.copytree(first.run, tmp_path / "other")
    (other / "program" / "COMPLETE").write_text("{}", encoding="utf-8")
    told = _json(run / "config.json")
    for gone in (str(tmp_path / "gone"), str(other)):  # not there, and no longer the program that it was
        (run / "config.json").write_text(json.dumps(told | {"start_from": gone}), encoding="utf-8")
        said = []
        assert {c.id.partition("-")[0] for c in read_incumbent(run, said.append).seen} == {"kestrel"}
        assert "is not known, and may be scored on" in said[0]


def test_a_run_that_is_none_and_settings_it_was_not_made_for_are_refused(first, renew, tmp_path):
    with pytest.raises(RunError, match="no run folder"):
        renew(start_from=str(tmp_path))
    with pytest.raises(ConfigError, match="k_passages is 2, and .* was compiled with 4"):
        renew(k_passages=2)
    assert not (tmp_path / "two").exists()


def test_the_config_takes_over_what_the_run_was_made_for(first, tmp_path):
    given = {"corpus": "c.json", "start_from": str(first.run)}
    config = load_config(None, given)
    assert (config.lm, config.max_tokens, config.k_passages, config.recipe) == (first.config.lm, 24, 4, "r -> p -> s")
    assert load_config(None, given | {"max_tokens": 99}).max_tokens == 99
    with pytest.raises(RunError, match="no run folder"):
        load_config(None, given | {"start_from": str(tmp_path)})


# -- guards


def test_the_configs_guards_are_those_that_one_program_can_hold():
    assert set(GUARDS) == set(guards.GUARDS) - {"zoo"}
    with pytest.raises(ConfigError, match="guard is 'ewc'"):
        load_config(None, {"corpus": "c.json", "guard": "ewc"})
    for guard in ("kl+ewc", "kl+none", "kl+kl", "kl+"):
        with pytest.raises(ConfigError, match="each once, joined by"):
            load_config(None, {"corpus": "c.json", "guard": guard})
    with pytest.raises(ConfigError, match="replay_share is 1"):
        load_config(None, {"corpus": "c.json", "replay_share": 1})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guard": "kl", "recipe": "p"}, "has no step s"),
        ({"guard": "replay_labels"}, "give --start-from, the run that learnt it, or --earlier"),
        ({"guard": "kl", "earlier": "old.json"}, "'kl' replays nothing"),
    ],
)
def test_a_guard_without_what_it_needs_is_refused_before_anything_is_made(first, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        QUIET(replace(first.config, out=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("guard", ["osf", "merge"])
def test_a_guard_that_cannot_go_on_from_the_runs_adapter_is_refused_at_once(first, renew, tmp_path, guard):
    run = shutil.copytree(first.run, tmp_path / "other")
    marker = run / "program" / "adapters" / _adapter(run) / "COMPLETE"
    told = _json(marker)
    marker.write_text(json.dumps(told | {"tuner": {"word": "bottleneck", "options": {}}}), encoding="utf-8")
    seal = _json(run / "program" / "COMPLETE")
    seal["files"][marker.relative_to(run / "program").as_posix()] = file_sha256(marker)
    (run / "program" / "COMPLETE").write_text(json.dumps(seal), encoding="utf-8")
    with pytest.raises(ConfigError, match="an adapter of kind 'bottleneck'"):
        renew(start_from=str(run), guard=guard)
    assert not (tmp_path / "two").exists()


@pytest.fixture
def replaying(first, monkeypatch):
    """Every label can be replayed: the tiny passages of these runs seldom hold a whole quote."""
    monkeypatch.setattr(guarding, "teaches", lambda example, prediction, trace=None: True)
    return first


def test_labels_of_the_run_are_replayed_under_its_prompts_at_the_share_asked_for(replaying, renew):
    run, _ = renew(guard="replay_labels", replay_share=0.5)
    told = read_run(run)
    splits = told.data["splits"]
    trained = set(read_run(replaying.run).data["splits"]["train"])
    assert set(splits["earlier"]) and set(splits["earlier"]) <= trained
    (line,) = [one for one in (run / "compile.log").read_text().splitlines() if "guarded: Guarded(" in one]
    assert "ReplayLabels" in line
    (training,) = (run / "training").glob("*/training.json")
    own = int(line.partition("n_rows=")[2].partition(",")[0])
    extra = int(line.partition("n_extra=")[2].partition(",")[0])
    assert own == extra and _json(training)["rows"] == own + extra
    # The next one replays what this one learnt, and what this one replayed.
    config = load_config(None, {"corpus": str(replaying.folder / "third.json"), "start_from": str(run),
                                "guard": "replay_labels"})  # fmt: skip
    now = Corpus("now", (), ())
    again = read_earlier(replace(config, max_train_questions=None), read_incumbent(run, pytest.fail), now)
    assert {c.id for c in again.contracts} == trained | set(splits["train"])


def test_labels_that_are_learnt_anyway_are_not_replayed_and_a_changed_file_is_refused(first, tmp_path):
    config = replace(first.config, start_from=str(first.run), guard="replay_labels", max_train_questions=None)
    incumbent = read_incumbent(first.run, _silent)
    trained = read_run(first.run).data["splits"]["train"]
    old = read_cuad(first.folder / "old.json")
    one = subset(old, trained[:1])
    left = read_earlier(config, incumbent, one)
    assert {contract.id for contract in left.contracts} == set(trained[1:])
    assert {label.question.contract_id for label in left.labels} == set(trained[1:])
    with pytest.raises(CorpusError, match="learnt again anyway"):
        read_earlier(config, incumbent, old)
    write_cuad(one, tmp_path / "given.json")
    given = read_earlier(replace(config, earlier=str(tmp_path / "given.json")), incumbent, Corpus("now", (), ()))
    assert [contract.id for contract in given.contracts] == trained[:1]
    moved = replace(incumbent.line[0], config=incumbent.line[0].config | {"corpus": str(tmp_path / "given.json")})
    with pytest.raises(ConfigError, match="no longer in .* as --earlier"):
        read_earlier(config, replace(incumbent, line=(moved,)), Corpus("now", (), ()))


def test_the_other_guards_make_whole_runs(first, renew, tmp_path):
    run, _ = renew(guard="merge", out=str(tmp_path / "merged"))
    assert _adapter(run).startswith("merge-")
    merged = _json(run / "program" / "adapters" / _adapter(run) / "training.json")["merged"]
    assert merged["incumbent"] == _adapter(first.run) and merged["rank"] <= 2 * first.config.rank
    (training,) = (run / "training").glob("*/training.json")  # the average was no training
    assert training.parent.name == merged["tuned"]
    for beta in (None, 2.5):
        run, _ = renew(guard="kl", kl_beta=beta, out=str(tmp_path / f"held{beta}"))
        (training,) = (run / "training").glob("*/training.json")
        assert _json(training)["settings"]["kl_beta"] == (beta or 1)
    plain, _ = renew(out=str(tmp_path / "plain"))
    run, _ = renew(guard="low_rate", out=str(tmp_path / "low"))
    rates = [_json(*(each / "training").glob("*/training.json"))["settings"]["learning_rate"] for each in (plain, run)]
    assert rates[1] == pytest.approx(0.2 * rates[0])


def test_answers_of_its_own_to_earlier_questions_are_replayed(first, monkeypatch, tmp_path):
    # A random model's answers never end; the bundled one's do.
    monkeypatch.setattr(compile_module, "chosen", lambda stages: stages[-1])
    config = replace(
        first.config, corpus=str(first.folder / "new.json"), earlier=str(first.folder / "old.json"),
        lm="evergreen-base", guard="replay_self", max_tokens=128, out=str(tmp_path / "replayed"),
    )  # fmt: skip
    run = QUIET(config, say=_silent).path
    (line,) = [one for one in (run / "compile.log").read_text().splitlines() if "guarded: Guarded(" in one]
    own, extra = (int(line.partition(f"{name}=")[2].partition(",")[0]) for name in ("n_rows", "n_extra"))
    (training,) = (run / "training").glob("*/training.json")
    assert "ReplaySelf" in line and extra > own > 0 and _json(training)["rows"] == own + extra


def test_guards_stand_together_around_one_step(replaying, renew):
    run, _ = renew(guard="replay_labels+kl", replay_share=0.5)
    (line,) = [one for one in (run / "compile.log").read_text().splitlines() if "guarded: Guarded(" in one]
    own, extra = (int(line.partition(f"{name}=")[2].partition(",")[0]) for name in ("n_rows", "n_extra"))
    (training,) = (run / "training").glob("*/training.json")
    assert "ReplayLabels+KLPenalty" in line and own == extra and read_run(run).data["splits"]["earlier"]
    assert _json(training)["rows"] == own + extra and _json(training)["settings"]["kl_beta"] == 0.3


def test_osf_goes_on_from_osf(first, renew, tmp_path):
    config = replace(first.config, guard="osf", out=str(tmp_path / "one"))
    one = QUIET(config, say=_silent).path
    run, _ = renew(start_from=str(one), guard="osf", out=str(tmp_path / "osf"))
    (training,) = (run / "training").glob("*/training.json")
    assert _json(training)["settings"]["tuner"] == "osf" and _json(training)["parent"] == _adapter(one)


def test_a_guard_is_made_anew_for_each_compile_of_its_step(monkeypatch):
    made, asked = [], []
    monkeypatch.setattr(InstructTune, "compile", lambda self, student, trainset: asked.append(self.finetune_lms) or 1)
    tune = guarding.guarded(InstructTune(), lambda student: made.append(student) or guards.guard_from("none"))
    assert [tune.compile("a", []), tune.compile("b", [])] == [1, 1]
    assert made == ["a", "b"] and asked[0] is not asked[1]
    # One wrapper around the stock training, not two.
    assert asked[1].__closure__ and InstructTune.finetune_lms in [cell.cell_contents for cell in asked[1].__closure__]


def test_rows_are_labels_under_the_programs_own_prompts_and_guards_get_what_they_ask_for(world, speaking):
    program = LabelTeacher(world.index, world.train)
    program.set_lm(speaking(lambda prompt: world.say(prompt)[0]))
    program.reviewer.predict.demos = [dspy.Example(passages="[1] x", question="Demo?", quotes="none", answer="y")]
    rows = label_rows(program, world.train, build_adapter(), threads=2)
    kept = [e for e in world.train if teaches(e, LabelTeacher(world.index, world.train)(**e.inputs()))]
    assert 0 < len(rows) == len(kept)
    for row, example in zip(rows, kept, strict=True):
        assert example.question in row["messages"][-2]["content"] and "Demo?" in str(row["messages"])
        assert " ".join(example.answer.split()) in row["messages"][-1]["content"]
        assert row["group"] == example.contract_id
    config = load_config(None, {"corpus": "c.json", "recipe": "s", "start_from": None, "seed": 3, "threads": 2})

    def guard(word):
        return recipe_guard(replace(config, guard=word), program, world.train, build_adapter())

    earlier = guard("replay_labels").earlier
    assert len(earlier) == len(rows) and "Demo?" not in str(earlier)  # step s serves without demonstrations
    assert guard("replay_self").prompts == [row["messages"][:-1] for row in earlier]
    assert guard("low_rate").seed == 3 and guard("merge").rank == 32 and guard("kl").beta > 0
    assert guard("replay_labels").share == config.replay_share


def test_contracts_that_stand_in_the_runs_index_are_not_embedded_again(first, words_embedder, tmp_path, monkeypatch):
    embedded = []

    class Counted(words_embedder):
        def encode(self, sentences, **options):
            embedded.extend(sentences)
            return super().encode(sentences, **options)

    monkeypatch.setattr(compile_module, "load_embedder", Counted)
    incumbent = read_incumbent(first.run, _silent)
    known = tuple(stored.contract for stored in read_contracts(incumbent.retrieval.index))
    new = replace(known[0], id="new", text="A new agreement. " + known[0].text)
    run = SimpleNamespace(folder=tmp_path)
    index = compile_module._index(first.config, run, incumbent, (*known, new), False, _silent)
    try:
        own = {index.embedded_text(passage) for passage in index.passages("new")}
        there = {index.embedded_text(p) for one in known for p in index.passages(one.id)}
        assert set(embedded) - own <= {retriever._PROBE} and not set(embedded) & (there - own)
        assert index.repair() == () and len(index.contract_ids) == len(known) + 1
    finally:
        index.close()
