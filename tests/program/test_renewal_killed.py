"""A renewal killed in the rooms that make its candidate, time after time; and its index, on both sides of the swap."""

import json
import os
import shutil
import signal
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import dspy
import numpy as np
import pytest

from corpora.cuad import read_cuad, write_cuad
from corpora.labels.store import LabelStore
from corpora.labels.types import Draft
from corpora.splits import Split, subset
from corpora.types import Label, Question, Span
from modules.retrieval_settings import RetrievalSettings
from modules.retriever import PassageIndex
from program import compile as compile_module
from program.asking import Tally
from program.failpoints import NAMES
from program.feedback.store import FeedbackStore
from program.feedback.types import Said
from program.proposals import Proposed
from program.recipes import Stage
from program.releases.store import ReleaseStore
from program.releases.view import view
from program.renewal import renew as renewing_module
from program.renewal.home import Home, renewals
from program.renewal.inputs import count_events
from program.renewal.renew import renew
from program.retrieval_tuning import ReviewRetrieval
from program.run_retrieval import read_retrieval
from program.self_instruct import SelfInstruct
from program.serve.following import following
from program.serve.session import Session
from tests.program.releases_fakes import write_run
from tests.program.test_renewal import CORPUS, Scripted, _row, files, killed_at, live, made_home, told, took  # noqa: F401

IDS = [contract.id for contract in CORPUS.contracts]
UNLABELLED = subset(CORPUS, IDS[26:28])
KILLS = (
    "train.indexed", "train.scored", "label.proposed", "label.kept", "train.tuned", "train.save.program",
    "train.save.retrieval", "train.save.logs", "run.finish.synced", "run.finish.marked", "run.finish.moved",
    "gate.decided", "release.add.file", "release.add.moved", "release.promote.noted", "release.promote.moved",
    "promote.live",
)  # fmt: skip


class Reads(dspy.Module):
    def __init__(self, index, *_, **__):
        super().__init__()
        self.retrieve = SimpleNamespace(index=index)

    def set_lm(self, lm):
        pass


@pytest.fixture
def rooms(tmp_path, monkeypatch, speaking, files):  # noqa: F811
    """`rooms.renew(home)` runs `compile` itself; models, scores and recipe are scripted, labels and folders are not."""
    paid, template = tmp_path / "paid", write_run(tmp_path / "template", 1)
    contracts = {contract.id: contract for contract in CORPUS.contracts}
    index = SimpleNamespace(contract_ids=IDS, contract=contracts.get, close=lambda: None)
    train, val, test = subset(CORPUS, IDS[12:15]), subset(CORPUS, IDS[15:16]), subset(CORPUS, IDS[:1])

    def say(prompt):
        with paid.open("a") as file:
            file.write("x")
        return "a label"

    lm = speaking(say, cache=True)

    def propose(self, labeller, trainset, unlabelled, valset, round):
        self.store.add_contracts(unlabelled)
        proposed = Proposed()
        for contract in unlabelled:
            for n in range(3):
                self.lm(f"question {n} of {contract.id}")
                question = Question(f"{contract.id}__{n}", contract.id, "Insurance", f"Question {n}?")
                draft = Draft(Label(question, (Span(20 * n, 20 * n + 15),), None), "answer", "scripted")
                proposed.add((contract.id, question.text, "answer", "scripted", "p"), draft)
        return proposed, {name: lambda drafts: [None] * len(drafts) for name in self.settings.filters}, Tally()

    def recipe(program, config, adapter, *, questions, labels, **_):
        labels.make(program, questions.train[:4], questions.unlabelled, questions.val[:2], 1)
        return [Stage("", program, 40.0), Stage("p -> s", program, 90.0)]

    def score(program, examples, stage, **_):
        share = 0.4 if stage == "base" else 0.9
        return [_row(stage, i, label, frozen, share) for i, label in enumerate(frozen.labels)]

    def keep(run, retrieve):
        shutil.copy(template / "retrieval.json", run.folder)
        shutil.copytree(template / "index", run.folder / "index", dirs_exist_ok=True)

    frozen = read_cuad(files / "frozen.json")
    scripted = {
        "read_split": lambda *_: Split(train, val, test), "_index": lambda *_: index,
        "build_lm": lambda *_: lm, "remote": lambda _: lm, "ContractReview": Reads, "LabelTeacher": Reads,
        "estimate": lambda *_: (0.1, "about a moment"), "training_memory": lambda *_: None, "score_program": score,
        "run_recipe": recipe, "keep_retrieval": keep, "write_report": lambda _: None, "version_record": lambda _: {},
        "save_program": lambda _, folder: shutil.copytree(template / "program", folder, dirs_exist_ok=True),
        "summarize": lambda *_, **__: json.loads((template / "summary.json").read_text()),
        "recipe_preferences": lambda *_: nullcontext(),
    }  # fmt: skip
    for name, one in scripted.items():
        monkeypatch.setattr(compile_module, name, one)
    monkeypatch.setattr(SelfInstruct, "propose", propose)
    monkeypatch.setattr(renewing_module, "side_by_side", took)

    def make(folder):
        folder.mkdir()
        place = made_home(folder, files)
        write_cuad(UNLABELLED, place / "contracts.json")
        toml = place / "evergreen.toml"
        toml.write_text(f'contracts = "contracts.json"\nlabeller = "{lm.model}"\nmax_calls = 6\n{toml.read_text()}')
        return place

    return SimpleNamespace(make=make, paid=lambda: len(paid.read_text()), renew=lambda home: renew(home, say=str))


def kept_in(home):
    """The labels of the candidate, and what its run is."""
    with LabelStore.open(home / "renewals/0001/candidate/labels.db") as store:
        return sorted(record.draft.label.question.id for record in store.records("synthetic", "train"))


def test_killed_in_every_room_in_turn_it_ends_as_if_it_had_not_been_and_pays_once(rooms, tmp_path):
    whole, home = rooms.make(tmp_path / "whole"), rooms.make(tmp_path / "killed")
    expected = rooms.renew(whole)
    assert expected["outcome"] == "promoted" and rooms.paid() == 6
    with FeedbackStore.open(home / "feedback.db") as store:
        store.rate(store.answer(store.ask("Which law?", CORPUS.contracts[0]), Said("Ohio", True)).id, thumbs="up")
    for point in KILLS:
        killed_at(point, lambda: rooms.renew(home))
        before = live(home)  # verified: whole, whichever it is
        assert before is None or KILLS.index(point) >= KILLS.index("release.promote.moved")
        assert renewals(Home(home)) == [{"id": "0001"}], point
    outcome = rooms.renew(home)
    assert rooms.paid() == 12, "six for each home: what was answered before a kill is not asked again"
    assert outcome["outcome"] == "promoted" and outcome["why"] == expected["why"] and live(home) == outcome["release"]
    assert kept_in(home) == kept_in(whole) and len(kept_in(home)) == 6
    assert len(ReleaseStore.open(home / "releases").list()) == 1
    assert count_events(home / "feedback.db") == 1, "what people said is there"
    assert rooms.renew(home) is None, "the next look finds nothing left over"


def test_there_are_forty_named_places_and_more():
    rooms_ = {name.split(".")[0] for name in NAMES}
    assert len(NAMES) >= 40 and rooms_ == {
        "release",
        "refresh",
        "label",
        "train",
        "run",
        "index",
        "gate",
        "promote",
        "serve",
        "renew",
    }


class Vectors:
    """In Chroma's place, whose own threads do not outlive a fork: one file of all vectors, replaced whole."""

    def __init__(self, folder, *_):
        folder.mkdir(exist_ok=True)
        self._path = folder / "vectors.json"
        self._rows = json.loads(self._path.read_text()) if self._path.is_file() else {}

    def close(self):
        pass

    def __len__(self):
        return len(self._rows)

    def add(self, passages, vectors_P_D):
        rows = zip(passages, vectors_P_D.tolist(), strict=True)
        self._rows |= {passage.id: [passage.contract_id, vector] for passage, vector in rows}
        self._path.write_text(json.dumps(self._rows))

    def delete_contracts(self, contract_ids):
        self._rows = {key: row for key, row in self._rows.items() if row[0] not in contract_ids}

    def delete(self, passage_ids):
        self._rows = {key: row for key, row in self._rows.items() if key not in passage_ids}

    def passage_ids(self):
        return list(self._rows)

    def of_contract(self, contract_id):
        return {key: np.array(row[1]) for key, row in self._rows.items() if row[0] == contract_id}

    def nearest(self, vector_D, n):
        scored = ((key, row[0], float(vector_D @ np.array(row[1]))) for key, row in self._rows.items())
        yield from sorted(scored, key=lambda one: -one[2])[:n]


@pytest.fixture
def vectors(monkeypatch):
    monkeypatch.setattr("modules.retriever.open_store", Vectors)


class Words:
    """Bags of words, counted; `save` leaves a folder, as an embedder that was tuned."""

    def __init__(self, words_embedder):
        self.texts, self._inner = [], words_embedder()

    def encode(self, sentences, **options):
        self.texts += sentences
        return self._inner.encode(sentences, **options)

    def save(self, folder):
        os.makedirs(folder)


@pytest.fixture
def swapping(tmp_path, monkeypatch, files, vectors, words_embedder):  # noqa: F811
    """A home whose live release has an index of two contracts, and a script whose candidate has one of three."""
    monkeypatch.setattr(renewing_module, "side_by_side", took)
    monkeypatch.setattr("program.run_retrieval.load_embedder", lambda *_: words_embedder())
    home = made_home(tmp_path, files)

    class Indexed(Scripted):
        def __call__(self, config, **options):
            super().__call__(config, **options)
            folder = home.parent / f"index{self.number}"
            contracts = CORPUS.contracts[: 1 + self.number]
            PassageIndex.build(contracts, folder=folder, embedder=words_embedder(), progress=False).close()
            run = compile_module.Path(config.out)
            shutil.rmtree(run / "index")
            shutil.copytree(folder, run / "index")
            told_ = json.loads((run / "retrieval.json").read_text()) | {
                "settings": RETRIEVAL,
                "cut": {"max_chars": 600},
            }
            (run / "retrieval.json").write_text(json.dumps(told_))

    assert told(home, Indexed(0.9))["outcome"] == "promoted"
    return home, Indexed


RETRIEVAL = {name: getattr(RetrievalSettings(), name) for name in RetrievalSettings.__dataclass_fields__}


def found_in(home):
    """Ids of the contracts in what is served, after a search in its vectors."""
    release, refused = ReleaseStore.open(home / "releases").servable()
    assert refused == ()
    with view(release.path) as place:
        index = read_retrieval(place).open()
        try:
            assert index.repair(thorough=True) == () and len(index.search("the law of the state", 3)) == 3
            return index.contract_ids
        finally:
            index.close()


@pytest.mark.parametrize(
    ("point", "n_served"),
    [("release.add.synced", 2), ("release.promote.beside", 2), ("release.promote.moved", 3), ("promote.live", 3)],
)
def test_a_new_index_goes_live_whole_or_not_at_all(swapping, point, n_served):
    home, script = swapping
    assert len(found_in(home)) == 2
    cause = ("corpus", "passage_embedding: moved")
    killed_at(point, lambda: told(home, script(0.95, 2), cause=cause))
    assert len(found_in(home)) == n_served
    outcome = told(home, script(0.95, 2))
    assert outcome["outcome"] == "promoted" and outcome["recipe"] == "r" and len(found_in(home)) == 3


class Answers(dspy.Module):
    def __init__(self, index):
        super().__init__()
        self.retrieve = SimpleNamespace(index=index)

    def forward(self, question, contract_id):
        ids = ", ".join(self.retrieve.index.contract_ids)
        return dspy.Prediction(answer=ids, quotes=[], found=True, confidence=0.5)


@pytest.mark.parametrize("point", ["serve.swap.opened", "serve.swap.moved"])
def test_a_server_killed_at_the_swap_serves_the_new_index_when_it_is_back(swapping, point, tmp_path):
    home, script = swapping
    root = home / "releases"
    before = ReleaseStore.open(root).live().id

    @contextmanager
    def opened(place):
        with view(place) as seen:
            index = read_retrieval(seen).open()
            yield Answers(index)
            index.close()

    def serve(until):
        release = ReleaseStore.open(root).servable()[0]
        with FeedbackStore.open(home / "feedback.db") as store, opened(release.path) as program:
            session = Session(program, {CORPUS.contracts[0].id: CORPUS.contracts[0]}, store, release=release.id)
            said = [session.ask("Which?", CORPUS.contracts[0].id).answer.count("juniper")]
            with following(session, root, opened, str, every_s=0.02):
                until(session)
                said.append(session.ask("Which?", CORPUS.contracts[0].id).answer.count("juniper"))
            session.close()
            return said

    assert told(home, script(0.95, 2), by_hand="to see")["outcome"] == "promoted"
    after = ReleaseStore.open(root).live().id

    def as_the_pointer_moves():
        # It was opened on the release before, as a server is that runs while `renew` moves the pointer.
        store = ReleaseStore.open(root)
        store.rollback(before, "to serve it")
        serve(lambda session: (store.promote(after, "again"), signal.pause()))

    killed_at(point, as_the_pointer_moves)
    with FeedbackStore.open(home / "feedback.db") as store:
        assert [answer.release for answer in store.answers()] == [before], "what was answered is kept"
    assert serve(lambda session: None) == [3, 3]


def test_a_tuned_index_is_built_beside_and_a_kill_leaves_the_old_one(tmp_path, vectors, words_embedder):
    embedder = Words(words_embedder)
    old = PassageIndex.build(CORPUS.contracts[:1], folder=tmp_path / "old", embedder=embedder, progress=False)
    old.close()
    tuning = ReviewRetrieval(tmp_path / "new", progress=False)

    def tuned():
        index = PassageIndex.open(tmp_path / "old", embedder)
        swapped = []
        retrieve = SimpleNamespace(index=index, settings=None, swap=lambda *given: swapped.append(given))
        program = SimpleNamespace(retrieve=retrieve)
        program.deepcopy = lambda: program
        tuning.reindexed(program, embedder, [])
        ((new, _),) = swapped
        return new

    for number, point in enumerate(("index.swap.built", "index.swap.taken"), start=1):
        killed_at(point, tuned)
        index = PassageIndex.open(tmp_path / "old", embedder)
        assert index.repair() == () and len(index.search("the law", 2)) == 2
        index.close()
        assert len(list((tmp_path / "new").iterdir())) == number
    new = tuned()
    assert new.folder != tmp_path / "old" and new.contract_ids == tuple(IDS[:1])
    new.close()
