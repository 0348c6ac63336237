"""The suite as a command: rounds of runs, skills that are frozen once, what is refused before anything is scored."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest

from corpora.cuad import read_cuad, write_cuad
from corpora.errors import CorpusError
from corpora.splits import subset
from modules.index_files import StoreError
from program import cli
from program.forgetting import rounds as rounds_module
from program.forgetting import run as run_module
from program.forgetting import suite as suite_module
from program.forgetting.abilities import ABILITIES
from program.forgetting.costs import TrainingCost, cost_of, training_cost
from program.forgetting.rounds import rounds_of
from program.forgetting.run import run_forgetting
from program.forgetting.skills import SuiteStore, _digest
from program.runs import RunError


def _silent(line):
    pass


@pytest.fixture(scope="module")
def setting(tmp_path_factory, compiled, small_corpus, words_embedder):
    """Two runs of one base, three test sets that neither has seen, and the suite scored on all of it; to read."""
    folder, said = tmp_path_factory.mktemp("suite"), []
    runs = [shutil.copytree(compiled.path, folder / name) for name in ("one", "two")]
    for name, house in (("known", "ashgrove"), ("first", "kestrel"), ("second", "marlowe")):
        small_corpus(folder / f"{name}.json", houses=(house,), n_contracts=2, seed=5)
    given = {"ability_contracts": 2, "kl_prompts": 2, "threads": 4, "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds_module, "load_embedder", words_embedder)
        result = run_forgetting(
            runs, [folder / "first.json", folder / "second.json"], folder / "skills", folder / "out",
            known=[folder / "known.json"], say=said.append, **given,
        )  # fmt: skip
        yield SimpleNamespace(folder=folder, runs=runs, result=result, said=said, given=given)


def test_every_round_is_scored_on_every_skill_and_the_page_stands(setting):
    figures = setting.result.figures
    assert figures["skills"] == ["known", "first", "second", *sorted(ABILITIES)]
    assert list(figures["learnt"].values()) == [0, 1, 2, 0, 0, 0, 0] and figures["n_rounds"] == 3
    assert figures["kl_skill"] == "second" and figures["kl"]["mean"] > 0 and figures["kl"]["n"] == 2
    assert figures["n_left_out"] == 0
    assert (setting.folder / "out" / "forgetting.html").is_file()
    told = json.loads((setting.folder / "out" / "forgetting.json").read_text())
    assert told["names"] == ["base", "one", "two"] and told["frozen"].keys() == figures["frozen"].keys()
    assert any("against its time" in line for line in setting.result.lines)


def test_a_skill_is_frozen_with_the_score_of_the_run_that_learnt_it(setting):
    frozen = {skill.name: skill for skill in SuiteStore(setting.folder / "skills").skills()}
    assert {name: skill.release.rpartition(" ")[0] for name, skill in frozen.items()} == {
        "known": "base", "first": "one", "second": "two", **dict.fromkeys(ABILITIES, "base"),
    }  # fmt: skip
    base = rounds_of(setting.runs)[0]
    assert frozen["known"].release == base.release == frozen["judge"].release
    corpus = read_cuad(setting.folder / "second.json")
    assert frozen["second"].question_ids == tuple(label.question.id for label in corpus.labels)
    items = {key for name in ABILITIES if name != "chat format" for key in frozen[name].question_ids}
    assert set(frozen["chat format"].question_ids) == items


def test_rounds_are_told_with_what_they_cost(setting):
    costs = setting.result.figures["costs"]
    assert [cost["name"] for cost in costs] == ["base", "one", "two"]
    assert costs[0]["training"]["tokens"] == 0 < costs[1]["training"]["tokens"] == costs[2]["training"]["tokens"]
    n = sum(len(skill.question_ids) for skill in SuiteStore(setting.folder / "skills").skills())
    assert {cost["marks"] for cost in costs} == {n}
    assert [line.partition(":")[0] for line in setting.said] == [
        "known", "first", "second", "round 0 of 2, base", "round 1 of 2, one", "round 2 of 2, two",
    ]  # fmt: skip
    assert "it had trained" in setting.said[-1] and "it had trained" not in setting.said[3]


def test_a_later_run_is_scored_on_all_that_is_frozen(setting, tmp_path):
    store = shutil.copytree(setting.folder / "skills", tmp_path / "skills")
    again = {**setting.given, "say": _silent, "abilities": False}
    figures = run_forgetting([setting.runs[1]], [], store, tmp_path / "out", **again).figures
    # What a run that is not given learnt was known before; the verdict is against its own time.
    assert figures["learnt"] == {"first": 0, "known": 0, "second": 1}
    assert [row["kept"] for row in figures["non_inferiority"]] == [True, True, True]
    (path,) = store.glob("first-*/skill.json")
    told = json.loads(path.read_text())
    told.pop("sha256")
    best = told | {"marks": dict.fromkeys(told["marks"], 1.0), "score": 1.0}
    path.write_text(json.dumps(best | {"sha256": _digest(best)}))
    figures = run_forgetting([setting.runs[1]], [], store, tmp_path / "out", **again).figures
    assert {row["skill"]: row["kept"] for row in figures["non_inferiority"]}["first"] is False


@pytest.fixture
def refused(setting, tmp_path, monkeypatch):
    """`refused(error, words, **changes)`: the suite raises this, and scores nothing."""
    store = shutil.copytree(setting.folder / "skills", tmp_path / "skills")

    def scored(*_, **__):
        raise AssertionError("a program was scored")

    monkeypatch.setattr(run_module, "marks_on", scored)
    monkeypatch.setattr(run_module, "score_suite", scored)

    def run(error, words, runs=None, skills=(), known=(), suite=store, **options):
        with pytest.raises(error, match=words):
            given = {**setting.given, "say": _silent, **options}
            run_forgetting(
                setting.runs if runs is None else runs, skills, suite, tmp_path / "out", known=known, **given
            )
        assert not (tmp_path / "out").exists()

    return run


def test_a_test_set_that_was_changed_is_refused_before_anything_is_scored(setting, refused, tmp_path):
    corpus = read_cuad(setting.folder / "first.json")
    write_cuad(subset(corpus, [corpus.contracts[0].id]), tmp_path / "first.json")
    refused(StoreError, "not the test set that skill 'first' was frozen with", skills=[tmp_path / "first.json"])
    (path,) = (tmp_path / "skills").glob("second-*/test.json")
    path.write_text(path.read_text().replace("marlowe", "Marlowe", 1))
    refused(StoreError, "not the frozen one")


def test_a_test_contract_that_a_run_learnt_from_is_refused(setting, compiled, refused, tmp_path):
    ids = json.loads((compiled.path / "data.json").read_text())["splits"]
    write_cuad(subset(compiled.corpus, ids["train"][:1]), tmp_path / "new.json")
    refused(CorpusError, f"learnt from 1 contracts of skill 'new', '{ids['train'][0]}'", known=[tmp_path / "new.json"])


KNOWN, FIRST, SECOND = "known.json", "first.json", "second.json"


@pytest.mark.parametrize(
    ("error", "words", "runs", "given"),
    [
        (RunError, "3 skills are given and 2 runs", ["one", "two"], {"skills": [KNOWN, FIRST, SECOND]}),
        (RunError, "no run is given", [], {}),
        (RunError, "stands twice", ["one", "one"], {}),
        (RunError, "no run folder", ["skills"], {}),
        (RunError, "compiled on 2 bases", ["one", "other"], {}),
        (StoreError, "'first' is taken", ["one"], {"skills": [FIRST], "known": [FIRST]}),
        (StoreError, "'judge' is taken", ["one"], {"known": ["judge.json"]}),
        (StoreError, "no skill is given", ["one"], {"suite": "empty"}),
        (StoreError, "labelled_by is 'model'", ["one"], {"labelled_by": "model"}),
    ],
)
def test_skills_and_runs_that_do_not_fit_are_refused(setting, refused, tmp_path, error, words, runs, given):
    places = {run.name: run for run in setting.runs} | {"skills": setting.folder / "skills"}
    if "other" in runs:
        places["other"] = shutil.copytree(setting.runs[0], tmp_path / "other")
        spec = places["other"] / "program" / "local_lm.json"
        spec.write_text(json.dumps(json.loads(spec.read_text()) | {"digest": "x"}))
    files = {key: [setting.folder / name for name in value] for key, value in given.items() if isinstance(value, list)}
    files |= {"suite": tmp_path / "empty"} if "suite" in given else {}
    refused(error, words, runs=[places[name] for name in runs], **(given | files))


def test_a_failed_call_is_made_again_before_a_skill_is_frozen(setting, monkeypatch):
    corpus = read_cuad(setting.folder / "first.json")
    asked = []

    def score(program, examples, stage, **_):
        asked.append(len(examples))
        row = {"exact_match": 1.0, "found": True, "answer": "x", "error": None}
        rows = [row | {"question_id": e.question_id, "contract_id": e.contract_id} for e in examples]
        if len(asked) == 1:
            rows[0] |= {"exact_match": None, "error": "ServerError: down"}
        return rows

    monkeypatch.setattr(suite_module, "score_program", score)
    marks = suite_module.marks_on(None, "first", corpus, 1)
    assert asked == [len(corpus.labels), 1] and len(marks) == len(corpus.labels)


def test_costs_are_those_of_the_trainings(compiled, tmp_path):
    (path,) = (compiled.path / "training").glob("*/training.json")
    told = json.loads(path.read_text())
    last = told["history"][-1]
    assert training_cost(compiled.path) == TrainingCost(told["seconds"], last["step"], told["rows"], last["tokens"])
    (tmp_path / "merged.json").write_text(json.dumps({"merged": {"weight": 0.5}}))
    assert cost_of([path, path, tmp_path / "merged.json"]).steps == 2 * last["step"]


def test_the_command_hands_over_what_it_is_given(setting, monkeypatch, capsys, tmp_path):
    given = []

    def noted(*args, **kwargs):
        given.append((args, kwargs))
        return setting.result

    monkeypatch.setattr(run_module, "run_forgetting", noted)
    runs = [str(run) for run in setting.runs]
    paths = [str(setting.folder / f"{name}.json") for name in ("first", "second", "known")]
    words = ["--skill", paths[0], "--skill", paths[1], "--known", paths[2], "--no-abilities", "--margin", "1"]
    monkeypatch.setattr(sys, "argv", ["evergreen", "forgetting", *runs, *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0 and "report: " in capsys.readouterr().out
    ((told_runs, skills, *_), options) = given[0]
    assert [list(map(str, each)) for each in (told_runs, skills, options["known"])] == [runs, paths[:2], paths[2:]]
    assert options["abilities"] is False and options["margin"] == 0.01
    for words, code in ((["nope"], 1), ([*runs, "--skill", "nope.json"], 2)):
        monkeypatch.setattr(sys, "argv", ["evergreen", "forgetting", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == code and capsys.readouterr().err.count("\n") == 1
