"""The loop with a scripted compile: outcomes, kills at every stage, what is kept, what waits, who may renew."""

import json
import os
import shutil
import signal
import threading
from datetime import UTC, datetime, timedelta

import dspy
import pytest

from corpora.cuad import read_cuad, write_cuad
from corpora.splits import subset
from corpora.synthetic import write_corpus
from corpora.types import Contract
from program.config import ConfigError
from program.failpoints import STAGES, VARIABLE
from program.feedback.people import salt_path
from program.feedback.store import FeedbackStore
from program.feedback.types import Said
from program.forgetting.skills import SuiteStore
from program.releases.store import ReleaseStore
from program.renewal import renew as renewing_module
from program.renewal.calls import paid_calls, remembered
from program.renewal.home import Home, RenewalError, renewals, renewing
from program.renewal.inputs import copy_feedback
from program.renewal.labelled import read_quarantine
from program.renewal.renew import renew
from program.runs import BudgetError, RunError, RunFolder
from tests.program.releases_fakes import write_run


@pytest.fixture(autouse=True, scope="module")
def timed():
    """Scripted candidates are no programs that could be timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(renewing_module, "side_by_side", took)
        yield


def took(live, candidate, corpus, *, seed):
    return {side: {label.question.id: 0.1 for label in corpus.labels} for side in ("incumbent", "candidate")}


CORPUS = write_corpus(("juniper",), 30, seed=8)
RULES = {"detectable": 0.2, "discordance": 0.5, "max_decisions": 4, "resamples": 200}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A frozen test set of 12 contracts, and a corpus of 6 that can be made to grow."""
    folder = tmp_path_factory.mktemp("files")
    ids = [contract.id for contract in CORPUS.contracts]
    write_cuad(subset(CORPUS, ids[:12]), folder / "frozen.json")
    for n in (6, 10, 14):
        write_cuad(subset(CORPUS, ids[12 : 12 + n]), folder / f"corpus{n}.json")
    return folder


@pytest.fixture
def home(tmp_path, files):
    return made_home(tmp_path, files)


def made_home(folder, files):
    place = folder / "home"
    place.mkdir()
    shutil.copy(files / "frozen.json", place / "frozen.json")
    shutil.copy(files / "corpus6.json", place / "corpus.json")
    rules = "".join(f"{key} = {value}\n" for key, value in RULES.items())
    place.joinpath("evergreen.toml").write_text(f'corpus = "corpus.json"\nfrozen = "frozen.json"\n[gate]\n{rules}')
    return place


class Scripted:
    """In the place of `compile`: a run whose candidate is right on `right` of the frozen questions, the base on 0.4."""

    def __init__(self, right, number=1, fails=None):
        self.right, self.number, self.fails, self.configs = right, number, fails, []

    def __call__(self, config, *, overwrite, max_minutes, command, say):
        self.configs.append(config)
        if self.fails:
            raise self.fails
        frozen = read_cuad(config.test_corpus)
        with RunFolder.start(config.out, overwrite=overwrite) as run:
            write_run(run.folder, self.number)
            run.write_json("summary.json", json.loads((run.folder / "summary.json").read_text()))
            for stage, share in (("base", 0.4), ("p -> s", self.right)):
                rows = [_row(stage, i, label, frozen, share) for i, label in enumerate(frozen.labels)]
                with open(run.folder / "new.jsonl", "a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in rows)
            os.replace(run.folder / "new.jsonl", run.folder / "scores.jsonl")
            run.finish("complete")


def _row(stage, i, label, frozen, share):
    right = float((i * 37) % 100 < 100 * share)
    gold = label.answer or ""
    return {
        "stage": stage, "contract_id": label.question.contract_id, "question_id": label.question.id,
        "category": label.question.category, "question": label.question.text, "gold_answer": gold, "gold_quotes": [],
        "answer": "some words" if right else "other words", "quotes": [], "found": bool(label.spans),
        "confidence": 0.5, "p_answered": None, "error": None, "exact_match": right, "token_f1": right, "seconds": 0.1,
    }  # fmt: skip


def told(home, script, **options):
    return renew(home, compile=script, say=lambda line: None, **options)


def live(home):
    found = ReleaseStore.open(home / "releases").live()
    return None if found is None else ReleaseStore.open(home / "releases").verify(found.id).id


def test_the_first_release_is_promoted_and_without_a_reason_there_is_no_second(home):
    script = Scripted(0.9)
    outcome = told(home, script)
    assert outcome["outcome"] == "promoted" and outcome["recipe"] == "r -> p -> s" and live(home) == outcome["release"]
    assert script.configs[0].start_from is None and (home / "renewals/0001/gate.html").is_file()
    assert told(home, script) is None and len(script.configs) == 1
    again = told(home, Scripted(0.9, 2), by_hand="to see")
    assert again["id"] == "0002" and again["outcome"] == "promoted" and again["recipe"] == "s"


def test_a_worse_candidate_never_goes_live_and_what_is_new_waits(home, files):
    first = told(home, Scripted(0.9))["release"]
    shutil.copy(files / "corpus10.json", home / "corpus.json")
    script = Scripted(0.1, 2)
    outcome = told(home, script)
    assert outcome["outcome"] == "refused" and live(home) == first and outcome["reasons"][0].endswith("100 are enough")
    assert len(outcome["quarantine"]) == 4 and len(read_quarantine(home)) == 4
    assert script.configs[0].start_from.endswith(first)
    # What waits sets nothing off and is not learnt; what comes behind it does and is.
    assert told(home, Scripted(0.9, 3)) is None
    shutil.copy(files / "corpus14.json", home / "corpus.json")
    assert told(home, script := Scripted(0.9, 3))["outcome"] == "promoted"
    learnt = {contract.id for contract in read_cuad(script.configs[0].corpus).contracts}
    assert len(learnt) == 10 and not learnt & set(outcome["quarantine"])


def test_a_candidate_that_is_no_better_is_not_promoted_and_its_labels_do_not_wait(home, files):
    told(home, Scripted(0.9))
    shutil.copy(files / "corpus10.json", home / "corpus.json")
    outcome = told(home, Scripted(0.4, 2))
    assert outcome["outcome"] == "refused" and "quarantine" not in outcome and read_quarantine(home) == {}


def test_drift_that_lasts_is_not_renewed_for_at_each_look(home):
    began = datetime.now(UTC)
    told(home, Scripted(0.9), now=lambda: began)
    corpus, model = ("corpus", "passages moved"), ("model", "confidence fell")

    def after(days, cause, right=0.4):
        script = Scripted(right, days)
        return told(home, script, cause=cause, now=lambda: began + timedelta(days=days))

    assert after(2, corpus)["outcome"] == "refused" and after(3, corpus) is None
    assert after(4, model)["outcome"] == "refused", "that is another one"
    assert after(5, corpus) is None and after(33, corpus, 0.95)["outcome"] == "promoted"
    assert after(34, corpus)["reasons"] == ["passages moved"], "another release, another reference"


def test_on_too_few_questions_nothing_is_decided(home):
    text = (home / "evergreen.toml").read_text().replace("detectable = 0.2", "detectable = 0.01")
    (home / "evergreen.toml").write_text(text)
    outcome = told(home, Scripted(0.9))
    assert outcome["outcome"] == "undecided" and live(home) is None and "questions" in outcome["why"]


def test_where_no_step_helped_there_is_nothing_to_decide(home):
    class Kept(Scripted):
        def __call__(self, config, **options):
            super().__call__(config, **options)
            path = home / "renewals/0001/candidate/summary.json"
            path.write_text(path.read_text().replace('"p -> s"', '"base"'))

    outcome = told(home, Kept(0.9))
    assert outcome["outcome"] == "kept" and live(home) is None and ReleaseStore.open(home / "releases").list() == []


def killed_at(point, work):
    """Do the work in a process of its own, which is killed there, as by a power cut: nothing is cleaned up."""
    child = os.fork()
    if child == 0:
        os.environ[VARIABLE] = point
        try:
            work()
        finally:
            os._exit(3)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, f"it was not killed at {point}"


@pytest.fixture(scope="module")
def uninterrupted(files, tmp_path_factory):
    return told(made_home(tmp_path_factory.mktemp("whole"), files), Scripted(0.9))


# A stage begins where the one before is kept.
@pytest.mark.parametrize("point", ["made", "kept"])
@pytest.mark.parametrize("stage", [one for one in STAGES if one not in ("quarantine", "shadow", "compared", "refresh")])
def test_killed_anywhere_it_goes_on_and_ends_as_if_it_had_not_been(home, uninterrupted, stage, point):
    expected = uninterrupted
    killed_at(f"renew.{stage}.{point}", lambda: told(home, Scripted(0.9)))
    before = live(home)
    assert before is None or stage == "promote"
    script = Scripted(0.9)
    assert same(told(home, script)) == same(expected)
    assert live(home) == expected["release"] and len(renewals(Home(home))) == 1
    # The candidate is not compiled again where its run had ended.
    compiled_before = STAGES.index(stage) > STAGES.index("candidate") or (stage, point) in {
        ("candidate", "made"), ("candidate", "kept")
    }  # fmt: skip
    assert len(script.configs) == (0 if compiled_before else 1)


def same(outcome):
    """But for times."""
    left = {key: value for key, value in outcome.items() if key not in ("seconds", "ended")}
    return left | {"inputs": {key: value for key, value in left["inputs"].items() if key != "at"}}


def test_a_bound_on_memory_goes_to_what_makes_the_candidate_and_only_then(home):
    given = []

    class Bounded(Scripted):
        def __call__(self, config, *, max_memory_gib=None, **options):
            given.append(max_memory_gib)
            super().__call__(config, **options)

    toml = home / "evergreen.toml"
    toml.write_text("max_memory_gib = 6\n" + toml.read_text())
    told(home, Bounded(0.9))
    assert given == [6.0]
    toml.write_text(toml.read_text().replace("max_memory_gib = 6", "max_memory_gib = 0"))
    with pytest.raises(ConfigError, match="max_memory_gib is 0"):
        told(home, Bounded(0.9), by_hand="to see")


def test_a_full_disk_is_gone_on_with_and_another_failure_ends_it(home):
    with pytest.raises(OSError):
        told(home, Scripted(0.9, fails=OSError(28, "No space left on device")))
    assert renewals(Home(home)) == [{"id": "0001"}]
    full = RunError("the disk is full")
    full.__cause__ = OSError(28, "No space left on device")
    with pytest.raises(RunError):
        told(home, Scripted(0.9, fails=full))
    for times in (1, 2, 3):
        assert renewals(Home(home)) == [{"id": "0001"}], f"failed {times - 1} times, it is gone on with"
        with pytest.raises(ValueError):
            told(home, Scripted(0.9, fails=ValueError("labels that are none")))
    (ended,) = renewals(Home(home))
    assert ended["outcome"] == "failed" and "labels that are none" in ended["why"]
    # The same labels once more would fail once more: only somebody's word, or something new, begins another.
    assert told(home, Scripted(0.9)) is None
    assert told(home, Scripted(0.9), by_hand="mended")["id"] == "0002"


def test_one_renewal_at_a_time(home):
    held, done = threading.Event(), threading.Event()

    def hold():
        with renewing(Home(home)):
            held.set()
            done.wait(10)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(10)
    with pytest.raises(RenewalError, match="being renewed by another process"):
        told(home, Scripted(0.9))
    done.set()
    other.join()
    assert told(home, Scripted(0.9))["outcome"] == "promoted"


def test_a_release_that_went_live_meanwhile_is_not_replaced(home):
    told(home, Scripted(0.9))
    store = ReleaseStore.open(home / "releases")

    class Meddled(Scripted):
        def __call__(self, config, **options):
            super().__call__(config, **options)
            other = write_run(home / "by-hand", 7)
            store.promote(store.add(other).id, "by hand")

    with pytest.raises(RenewalError, match="went live while"):
        told(home, Meddled(0.95, 2), by_hand="to see")
    assert store.live().id.startswith("0002") or store.live().manifest["config"]["seed"] == 7


def test_the_schedule_counts_from_when_inputs_were_taken_by_the_callers_clock(home):
    began = datetime.now(UTC) + timedelta(days=900)
    ended = told(home, Scripted(0.9), now=lambda: began)
    assert datetime.fromisoformat(ended["ended"]) == began.replace(microsecond=0)
    assert told(home, Scripted(0.9, 2), now=lambda: began + timedelta(days=60)) is None
    later = told(home, Scripted(0.9, 2), now=lambda: began + timedelta(days=91))
    assert later["reasons"][0].startswith("the last renewal was")


def test_feedback_is_copied_as_it_was_with_its_people(tmp_path):
    with FeedbackStore.open(tmp_path / "feedback.db") as store:
        asked = store.ask("Which law?", Contract("c", "The law of Ohio."))
        store.rate(store.answer(asked, Said("Ohio", True, release="r")).id, thumbs="up", by="ada")
        assert copy_feedback(store.log.path, tmp_path / "copy.db")
        store.rate(store.answer(asked, Said("Ohio", True, release="r")).id, thumbs="up", by="ben")
        ada = store.pseudonym("ada")
    with FeedbackStore.open(tmp_path / "copy.db") as copy:
        assert [event.by for event in copy.events()] == [ada] and copy.pseudonym("ada") == ada
    assert salt_path(tmp_path / "copy.db").stat().st_mode & 0o077 == 0
    assert not copy_feedback(tmp_path / "none.db", tmp_path / "x.db") and not (tmp_path / "x.db").exists()


def test_what_was_paid_for_is_not_asked_again_and_the_budget_holds(tmp_path):
    before, request = dspy.cache, {"model": "openai/dear", "messages": [{"role": "user", "content": "1"}]}
    with remembered(tmp_path, paid="openai/dear", max_calls=2):
        assert dspy.cache.get(request) is None
        dspy.cache.put(request, ["said"])
        assert dspy.cache.get({**request, "model": "local/free"}) is None
    assert dspy.cache is before and paid_calls(tmp_path) == 1
    with remembered(tmp_path, paid="openai/dear", max_calls=2):  # another process, later
        assert dspy.cache.get(request) == ["said"]
        assert dspy.cache.get(request | {"temperature": 1.0}) is None
        with pytest.raises(BudgetError, match="max_calls is 2"):
            dspy.cache.get(request | {"temperature": 0.5})
        assert dspy.cache.get({**request, "model": "local/other"}) is None
    assert paid_calls(tmp_path) == 2 and not SuiteStore(tmp_path / "none").skills()
