import random
import sqlite3

import pytest

from corpora.errors import CorpusError
from corpora.labels import held_out, tables
from corpora.labels.rows import check_draft
from corpora.labels.store import LabelStore, label_id
from corpora.labels.types import Draft
from corpora.types import Contract, Label, Place, Question, Span

WORDS = [f"word{i}" for i in range(5000)]
LAW = "Which law governs?"


def text(seed, n_words=300):
    return " ".join(random.Random(seed).choices(WORDS, k=n_words))


def contract(contract_id, seed, changed=0):
    """Of 300 words, 3 changed leave a Jaccard similarity of about 0.9."""
    words = text(seed).split()
    for i in random.Random(1).sample(range(len(words)), changed):
        words[i] = f"changed{i}"
    return Contract(contract_id, " ".join(words))


def draft(contract_id="a", question=LAW, answer="Ohio", spans=((0, 4),), method="answer", **more):
    asked = Question(f"{contract_id}__{question}", contract_id, "Governing Law", question)
    label = Label(asked, tuple(Span(*span) for span in spans), answer)
    return Draft(label, method, more.pop("by", "local/small"), **more)


A, B, C = contract("a", 1), contract("b", 2), contract("c", 3)
NEAR_A = contract("a-amended", 1, changed=3)


@pytest.fixture
def store(tmp_path):
    with LabelStore.open(tmp_path / "labels.sqlite3") as opened:
        opened.add_contracts([A, B, C])
        yield opened


def add(store, *drafts, source="synthetic", asked=()):
    return store.add([(each, (("verbatim", ""),)) for each in drafts], source, asked)


def refused(call, *args):
    with pytest.raises(CorpusError) as caught:
        call(*args)
    return str(caught.value)


def test_what_is_kept_comes_back_whole_in_order_and_after_reopening(store, tmp_path):
    full = draft("a", prompt="9f", parents=("p1", "p2"), confidence=0.5)
    odd = draft("b", question="Née à Zürich?\n“yes”", answer=None, spans=())
    assert store.add([(full, (("verbatim", "é\n"), ("round trip", "rank 1"))), (odd, ())], "synthetic") == 2
    with LabelStore.open(tmp_path / "labels.sqlite3") as again:
        first, second = again.records()
    assert (first.draft, second.draft) == (full, odd)
    assert first.trail == (("verbatim", "é\n"), ("round trip", "rank 1")) and first.source == "synthetic"
    assert first.id == label_id(full.label, A.text) and first.at.endswith("Z")


def test_pages_of_records_lose_none(store):
    many = [draft("a", question=f"q{i}?") for i in range(1001)]
    assert add(store, *many) == 1001
    assert [record.draft for record in store.records()] == many


def test_an_id_is_of_what_the_label_says_and_not_of_what_things_are_called():
    one = label_id(draft("a").label, A.text)
    assert one == label_id(draft("other", question=f"  {LAW.replace(' ', chr(10))} ").label, A.text)
    assert len(one) == 32
    others = [draft(answer=None), draft(answer=""), draft(answer="Iowa"), draft(spans=()), draft(question="Who?")]
    ids = {label_id(each.label, A.text) for each in others} | {label_id(draft().label, B.text), one}
    assert len(ids) == 7


def test_a_label_is_stored_once_and_its_first_provenance_stays(store):
    assert add(store, draft(by="first"), draft(by="second")) == 1
    assert add(store, draft(by="third"), source="human") == 0
    (record,) = store.records()
    assert (record.draft.by, record.source) == ("first", "synthetic")
    given = store.provenance(record.id).assertions
    assert [(source, by) for source, by, _ in given] == [
        ("synthetic", "first"), ("synthetic", "second"), ("human", "third"),
    ]  # fmt: skip


def test_contracts_are_kept_once_and_an_id_has_one_text(store):
    placed = Contract("d", text(9), (Place(0, None, 1), Place(5, 2, 2)))
    store.add_contracts([A, placed, placed])
    assert store.contracts() == (A, B, C, placed)
    assert "'a'" in refused(store.add_contracts, [Contract("e", text(10)), Contract("a", "Another text.")])
    assert "'f'" in refused(store.add_contracts, [Contract("f", "One."), Contract("f", "Two.")])
    assert "'g'" in refused(store.add_contracts, [Contract("g", " \n")])
    assert "'h'" in refused(store.add_contracts, [Contract("h", "half \ud800")])
    assert len(store.contracts()) == 4


@pytest.mark.parametrize(
    "bad",
    [
        draft("nowhere"),
        draft(spans=((0, 10**6),)),
        draft(spans=((4, 4),)),
        draft(spans=((5, 9), (0, 4))),
        draft(spans=((-2, 4),)),
        draft(confidence=1.5),
        draft(confidence=float("nan")),
        draft(question=" \n"),
        draft(answer=5),
        draft(by=None),
        draft(parents=(7,)),
        draft(answer="half \ud800"),
    ],
)
def test_a_bad_draft_is_refused_and_nothing_of_its_call_is_kept(store, bad):
    fine = draft("b")
    refused(add, store, fine, bad)
    assert list(store.records()) == []
    assert add(store, fine) == 1


def test_a_bad_trail_source_or_outcome_is_refused(store):
    refused(check_draft, draft(), [("verbatim",)], 100)
    with pytest.raises(CorpusError, match="'robot'"):
        add(store, draft(), source="robot")
    for outcome in ("dropped", ": no name", ""):
        with pytest.raises(CorpusError, match="outcome"):
            add(store, draft(), asked=[("a", LAW, "answer", "m", "p", outcome)])
    with pytest.raises(CorpusError, match="'robot'"):
        store.records(source="robot")
    with pytest.raises(CorpusError, match="'dev'"):
        store.records(side="dev")
    assert list(store.records()) == []


def test_the_ledger_knows_what_was_asked_and_counts_what_was_dropped(store):
    unit = ("a", LAW, "answer", "local/small", "p1")
    asked = [
        (*unit, "kept"),
        ("b", LAW, "answer", "local/small", "p1", "verbatim: no quote: 'x'"),
        ("c", LAW, "answer", "local/small", "p1", "verbatim: outside"),
        ("c", LAW, "write", "local/small", "p1", "round trip:"),
    ]
    assert add(store, draft(), asked=asked) == 1
    folded = ("a", f"  {LAW} ", *unit[2:])
    changed = [(*unit[:i], "other", *unit[i + 1 :]) for i in range(5)]
    assert store.was_asked([unit, folded, asked[1][:5], *changed]) == [True, True, True, *[False] * 5]
    assert store.dropped_counts() == {"verbatim": 2, "round trip": 1}
    assert store.was_asked([]) == []


def test_a_call_that_fails_anywhere_in_it_keeps_nothing(store, monkeypatch):
    insert, asked = (
        store._tables.insert,
        [("a", LAW, "answer", "m", "p", "kept"), ("b", LAW, "answer", "m", "p", "x: y")],
    )
    for failing in range(1, 7):
        calls = iter(range(1, 100))

        def insert_until(*args, at=failing, calls=calls):
            if next(calls) == at:
                raise RuntimeError("stopped")
            return insert(*args)

        monkeypatch.setattr(store._tables, "insert", insert_until)
        with pytest.raises(RuntimeError):
            add(store, draft("a"), draft("b"), asked=asked)
        monkeypatch.setattr(store._tables, "insert", insert)
        assert list(store.records()) == [] and store.dropped_counts() == {}
    assert add(store, draft("a"), draft("b"), asked=asked) == 2


def test_synthetic_labels_are_refused_on_held_out_contracts_and_their_near_duplicates(store):
    store.add_contracts([NEAR_A])
    store.hold_out([A], "test")
    store.hold_out([B], "val")
    for contract_id, side in (("a", "test"), ("a-amended", "test"), ("b", "val")):
        message = refused(add, store, draft("c"), draft(contract_id))
        assert repr(contract_id) in message and f"held out for {side}" in message
    assert "near-duplicate of 'a'" in refused(add, store, draft("a-amended"))
    assert list(store.records()) == [] and add(store, draft("c")) == 1


def test_a_near_duplicate_that_comes_later_is_held_out_too(store):
    store.hold_out([A], "test")
    store.add_contracts([NEAR_A, contract("d", 4)])
    assert "'a-amended'" in refused(add, store, draft("a-amended"))
    assert [c.id for c in store.contracts("test")] == ["a", "a-amended"]
    assert [c.id for c in store.contracts("train")] == ["b", "c", "d"]
    assert add(store, draft("d")) == 1


def test_the_same_text_under_another_id_is_held_out(store):
    store.hold_out([A], "val")
    store.add_contracts([Contract("a-copy", A.text)])
    assert "'a-copy'" in refused(add, store, draft("a-copy"))


def test_an_unlabelled_set_that_overlaps_is_refused_by_name(store):
    store.refuse_overlap([A, B])
    store.hold_out([A], "test")
    store.refuse_overlap([B, C, contract("d", 4)])
    message = refused(store.refuse_overlap, [B, NEAR_A, Contract("a-copy", A.text), Contract("x", B.text)])
    assert "2 of 4" in message and "'b'" not in message and "'x'" not in message
    assert "'a-amended' (near-duplicate of 'a', held out for test)" in message and "'a-copy' (held out for " in message


def test_people_may_label_held_out_contracts_and_nothing_trains_on_them(store):
    store.add_contracts([NEAR_A])
    store.hold_out([A], "test")
    assert add(store, draft("a"), draft("a-amended"), draft("b"), source="human") == 3
    assert add(store, draft("a", answer="Iowa"), source="feedback") == 1
    assert [c.id for c in store.training().contracts] == ["b"]
    assert [label.question.contract_id for label in store.training().labels] == ["b"]
    sides = {side: [r.draft.label.question.contract_id for r in store.records(side=side)] for side in ("test", "train")}
    assert sides == {"test": ["a", "a-amended", "a"], "train": ["b"]}
    assert len(list(store.records(source="feedback", side="test"))) == 1


def test_a_contract_that_synthetic_labels_train_on_is_not_held_out_afterwards(store):
    add(store, draft("a"))
    assert "'a'" in refused(store.hold_out, [B, A], "test")
    assert "'a' (near-duplicate of 'a-amended')" in refused(store.hold_out, [NEAR_A], "test")
    assert store.contracts("test") == () and len(store.contracts()) == 3
    (record,) = store.records()
    store.retract(record.id, "ada", "the contract is for the test")
    store.hold_out([A], "test")
    assert store.contracts("test") == (A,)


def test_a_contract_that_ties_a_trained_one_to_a_held_out_one_is_refused(store):
    add(store, draft("a"))
    far = contract("a-twice-amended", 1, changed=8)
    store.hold_out([far], "test")
    assert "'a'" in refused(store.add_contracts, [contract("between", 1, changed=4)])


def test_a_contract_is_on_one_side(store):
    store.hold_out([A], "test")
    store.hold_out([A], "test")
    assert "'a'" in refused(store.hold_out, [A], "val")
    assert "'a-amended'" in refused(store.hold_out, [NEAR_A], "val")
    assert "'train'" in refused(store.hold_out, [B], "train")
    assert store.contracts("val") == ()


def test_a_person_stands_before_feedback_and_that_before_a_model_and_the_last_of_equals_counts(store):
    for source, answer in (
        ("human", "Iowa"), ("human", "Ohio"), ("feedback", "Utah"), ("synthetic", "Texas"),
    ):  # fmt: skip
        add(store, draft("a", answer=answer), source=source)
    add(store, draft("b", answer="Iowa"), source="feedback")
    add(store, draft("b", answer="Ohio", question=f" {LAW}\n"), source="synthetic")
    add(store, draft("c", answer="Iowa"), draft("c", answer="Ohio"), draft("c", question="Who?", answer="Acme"))
    corpus = store.training()
    answers = [(label.question.contract_id, label.answer) for label in corpus.labels]
    assert answers == [("a", "Ohio"), ("b", "Iowa"), ("c", "Ohio"), ("c", "Acme")]
    assert corpus.contracts == (A, B, C)


def test_a_contract_under_two_ids_has_one_label_a_question(store):
    store.add_contracts([Contract("a-copy", A.text)])
    add(store, draft("a", answer="Ohio"), source="human")
    add(store, draft("a-copy", answer="Iowa"))
    assert [label.answer for label in store.training().labels] == ["Ohio"]


def test_who_gives_a_label_again_counts_though_it_is_stored_once(store):
    add(store, draft(answer="Iowa"), source="synthetic")
    add(store, draft(answer="Iowa"), source="human")
    add(store, draft(answer="Utah"), source="feedback")
    assert store.training().labels[0].answer == "Iowa"
    add(store, draft(answer="Ohio"), source="human")
    add(store, draft(answer="Iowa"), source="human")
    assert store.training().labels[0].answer == "Iowa"


def test_a_label_taken_back_is_gone_unless_asked_for_and_the_next_best_counts(store):
    add(store, draft(answer="Iowa"), source="feedback")
    add(store, draft(answer="Ohio"), source="human")
    wrong = list(store.records())[1]
    store.retract(wrong.id, "ada", "the amendment changed it")
    assert store.training().labels[0].answer == "Iowa"
    assert [record.draft.label.answer for record in store.records()] == ["Iowa"]
    assert [record.draft.label.answer for record in store.records(retracted=True)] == ["Iowa", "Ohio"]
    ((by, why, at),) = store.provenance(wrong.id).retractions
    assert (by, why) == ("ada", "the amendment changed it") and at
    assert "'nothing'" in refused(store.retract, "nothing", "ada", "why")
    refused(store.retract, wrong.id, "ada", " ")
    refused(store.retract, wrong.id, "", "why")


def test_only_a_person_brings_back_a_label_that_was_taken_back(store):
    add(store, draft())
    (record,) = store.records()
    store.retract(record.id, "ada", "wrong")
    for source in ("synthetic", "feedback"):
        assert add(store, draft(), source=source) == 0
        assert list(store.records()) == []
    add(store, draft(), source="human")
    assert len(list(store.records())) == len(store.training().labels) == 1
    store.retract(record.id, "ada", "wrong after all")
    assert list(store.records()) == []


def test_provenance_goes_to_the_parents(store):
    add(store, draft("a"), source="human")
    (parent,) = store.records()
    add(store, draft("b", method="project", parents=(parent.id, "elsewhere")))
    child = list(store.records(source="synthetic"))[0]
    assert store.provenance(child.id).parents == (parent,)
    assert "'nothing'" in refused(store.provenance, "nothing")


def test_rows_are_neither_changed_nor_deleted(store, tmp_path):
    add(store, draft(), asked=[("a", LAW, "answer", "m", "p", "kept")])
    db = sqlite3.connect(tmp_path / "labels.sqlite3", isolation_level=None)
    for statement in ("DELETE FROM labels", "UPDATE labels SET answer = 'x'", "DELETE FROM ledger"):
        with pytest.raises(sqlite3.IntegrityError, match="only added to"):
            db.execute(statement)
    db.close()


def test_a_closed_store_is_one_file_on_the_disk_in_full(tmp_path):
    with LabelStore.open(tmp_path / "labels.sqlite3") as store:
        store.add_contracts([A])
        assert tuple(store._tables.rows("PRAGMA synchronous")[0]) == (2,)
        assert tuple(store._tables.rows("PRAGMA journal_mode")[0]) == ("wal",)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.sqlite3"]
    assert "closed" in refused(store.contracts)


def test_a_file_that_is_no_label_store_is_refused_and_left_as_it_is(tmp_path):
    plain, other, newer = tmp_path / "plain", tmp_path / "other", tmp_path / "newer"
    plain.write_bytes(b"not a database, but long enough to be looked at " * 20)
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE files (path TEXT)")
    db.close()
    LabelStore.open(newer).close()
    db = sqlite3.connect(newer)
    db.execute("PRAGMA user_version = 99")
    db.close()
    for path, says in ((plain, "label store"), (other, "no label store"), (newer, "version 99")):
        before = path.read_bytes()
        message = refused(LabelStore.open, path)
        assert says in message and str(path) in message and path.read_bytes() == before
    assert "Make the folder" in refused(LabelStore.open, tmp_path / "none" / "labels.sqlite3")
    (tmp_path / "empty").touch()
    LabelStore.open(tmp_path / "empty").close()


def test_the_lock_that_sqlite_does_not_wait_for_is_waited_for(monkeypatch):
    """Of six processes that open a new file at once, one in a hundred is told that it is locked."""
    answers = iter(["database is locked", "database is locked", None])

    class Busy:
        def execute(self, sql):
            if fault := next(answers):
                raise sqlite3.OperationalError(fault)

    tables._use_wal(Busy())
    assert list(answers) == []
    monkeypatch.setattr(tables, "_BUSY_S", 0.0)
    answers = iter(["database is locked"] * 3)
    with pytest.raises(sqlite3.OperationalError):
        tables._use_wal(Busy())


def test_a_store_that_is_damaged_says_so(tmp_path):
    path = tmp_path / "labels.sqlite3"
    with LabelStore.open(path) as store:
        store.add_contracts([contract(f"c{i}", i) for i in range(20)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusError, match="labels.sqlite3"):
        with LabelStore.open(path) as store:
            store.contracts()


def test_the_search_for_near_duplicates_is_once_a_call_and_not_where_nothing_is_new(store, monkeypatch):
    calls = []
    monkeypatch.setattr(held_out, "_groups", lambda texts, search=held_out._groups: calls.append(1) or search(texts))
    store.hold_out([A, B], "test")
    assert len(calls) == 1
    add(store, *(draft("c", question=f"q{i}") for i in range(20)))
    store.add_contracts([A, B, C])
    store.hold_out([A, B], "test")
    assert len(calls) == 1
    store.add_contracts([contract("d", 4), contract("e", 5)])
    assert len(calls) == 2


def test_a_search_that_another_process_overtakes_is_made_again(store, tmp_path, monkeypatch):
    """The other holds out what this one's contract is near to, after this one has looked."""
    search = held_out._newly_held
    store.hold_out([B], "val")

    def overtaken(*args):
        found = search(*args)
        monkeypatch.setattr(held_out, "_newly_held", search)
        with LabelStore.open(tmp_path / "labels.sqlite3") as other:
            other.hold_out([A], "test")
        return found

    monkeypatch.setattr(held_out, "_newly_held", overtaken)
    store.add_contracts([NEAR_A])
    assert "'a-amended'" in refused(add, store, draft("a-amended"))
