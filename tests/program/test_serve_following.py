"""A served folder of releases: what is live answers, from the next question on, and a broken release never."""

import time
from contextlib import contextmanager
from types import SimpleNamespace

import dspy
import pytest

from corpora.types import Contract
from program.feedback.store import FeedbackStore
from program.gate.shadow_log import read_pairs
from program.gate.shadow_now import InShadow, end_shadow, put_in_shadow
from program.releases.store import ReleaseStore
from program.serve.following import following
from program.serve.run import _keeps_words
from program.serve.session import Session
from program.traces.policy import TracePolicy
from tests.program.releases_fakes import write_run

CONTRACTS = {"c": Contract("c", "The law of Ohio governs.")}


class Says(dspy.Module):
    def __init__(self, words):
        super().__init__()
        self.words = words
        self.retrieve = SimpleNamespace(index=SimpleNamespace(contents={"c": SimpleNamespace(contract=CONTRACTS["c"])}))

    def forward(self, question, contract_id):
        return dspy.Prediction(answer=self.words, quotes=[], found=True, confidence=0.5)


@pytest.fixture
def served(tmp_path):
    """A session on the first of two releases that is followed, its store of releases, and which folders are open."""
    releases, open_now, said = ReleaseStore.open(tmp_path / "releases"), [], []
    ids = [releases.add(write_run(tmp_path / f"run{n}", n)).id for n in (1, 2, 3, 4)]
    releases.promote(ids[0], "the first")

    @contextmanager
    def opened(place):
        open_now.append(place.name)
        yield Says(f"by {place.name}")
        open_now.remove(place.name)

    with FeedbackStore.open(tmp_path / "feedback.db") as store:
        session = Session(Says("by the first"), CONTRACTS, store, release=ids[0])
        with following(session, tmp_path / "releases", opened, said.append, every_s=0.02):
            yield SimpleNamespace(session=session, releases=releases, ids=ids, open_now=open_now, said=said)
        session.close()
    assert open_now == []


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    assert true()


def test_the_next_question_is_answered_by_what_is_live(served):
    assert served.session.ask("Which law?", "c").answer == "by the first"
    for release in served.ids[1:]:
        served.releases.promote(release, "better")
        until(lambda release=release: served.session.release == release)
        told = served.session.ask("Which law?", "c")
        assert (told.answer, told.release) == (f"by {release}", release)
    assert served.open_now == served.ids[2:], "the one before may still be asked, those before it are closed"
    served.releases.rollback(reason="worse after all")
    until(lambda: served.session.release == served.ids[2])
    assert served.said[-1] == f"{served.ids[2]} answers now"


def test_a_broken_release_does_not_answer_and_is_told_once(served, caplog):
    second = served.ids[1]
    served.releases.promote(second, "better")
    until(lambda: served.session.release == second)
    served.releases.promote(served.ids[2], "better")
    until(lambda: served.session.release == served.ids[2])
    broken = served.releases.get(served.ids[3]).path / "program" / "program.json"
    served.releases.promote(served.ids[3], "better")
    until(lambda: served.session.release == served.ids[3])
    broken.chmod(0o600)
    broken.write_text("{}")
    until(lambda: served.session.release == served.ids[2])  # what was live before it
    assert served.session.ask("Which law?", "c").answer == f"by {served.ids[2]}"


@pytest.fixture
def beside(tmp_path):
    """As `served`, with the second release waiting in shadow beside the first; `.put(release, beside)` changes that."""
    releases, said, closed = ReleaseStore.open(tmp_path / "releases"), [], []
    ids = [releases.add(write_run(tmp_path / f"run{n}", n)).id for n in (1, 2, 3)]
    releases.promote(ids[0], "the first")
    shadows = tmp_path / "shadow"

    @contextmanager
    def opened(place):
        program = Says(f"by {place.name}")
        yield program
        program.words = None  # as an index that is closed: whoever is asked now fails
        closed.append(place.name)

    def put(release, live, share=1.0):
        put_in_shadow(shadows, InShadow(release, live, "2031-01-01T00:00:00+00:00", share))

    def pairs(release):
        return read_pairs(shadows / f"{release}.jsonl", {})

    put(ids[1], ids[0])
    with FeedbackStore.open(tmp_path / "feedback.db") as store:
        session = Session(Says("by the first"), CONTRACTS, store, release=ids[0])
        with following(session, tmp_path / "releases", opened, said.append, shadows=shadows, every_s=0.02):
            yield SimpleNamespace(
                session=session, releases=releases, ids=ids, said=said, closed=closed, put=put, pairs=pairs,
                folder=shadows,
            )  # fmt: skip
        session.close()


def test_who_waits_in_shadow_is_asked_the_same_until_it_waits_no_more(beside):
    one, two, _ = beside.ids
    until(lambda: any("asked the same, silently" in line for line in beside.said))
    assert beside.session.ask("Which law?", "c").answer == "by the first", "people see the live answer"
    until(lambda: len(beside.pairs(two)) == 1)
    (pair,) = beside.pairs(two)
    assert (pair.live.answer, pair.candidate.answer) == ("by the first", f"by {two}")
    assert read_pairs(beside.folder / f"{two}.jsonl", {}, one) == [pair]
    assert beside.session.release == one
    end_shadow(beside.folder, "another")
    end_shadow(beside.folder, two)
    until(lambda: beside.closed == [two])
    beside.session.ask("Which term?", "c")
    assert len(beside.pairs(two)) == 1 and beside.pairs(two)[0].candidate.error is None


def test_a_promoted_candidate_answers_and_is_not_asked_beside_itself(beside):
    one, two, three = beside.ids
    until(lambda: any("silently" in line for line in beside.said))
    beside.releases.promote(two, "it lost nothing")
    until(lambda: beside.session.release == two)
    assert beside.session.ask("Which law?", "c").answer == f"by {two}"
    until(lambda: beside.closed == [two], 2)
    beside.put(three, one)
    time.sleep(0.1)
    assert not beside.pairs(three) and not any(three in line for line in beside.said), "that was beside another release"
    beside.put(three, two)
    until(lambda: any(three in line for line in beside.said))


def test_it_is_asked_no_more_than_its_share(beside):
    one, _, three = beside.ids
    beside.put(three, one, share=0.25)
    until(lambda: any(three in line for line in beside.said))
    for n in range(40):
        beside.session.ask(f"Which law, {n}?", "c")
    beside.put(three, one, share=0.5)  # another shadow: the one before is asked to its end
    until(lambda: three in beside.closed)
    assert 2 <= len(beside.pairs(three)) <= 20


def test_a_broken_candidate_is_not_asked_and_the_live_release_goes_on(beside, caplog):
    one, two, three = beside.ids
    broken = beside.releases.get(three).path / "program" / "program.json"
    broken.chmod(0o600)
    broken.write_text("{}")
    beside.put(three, one)
    until(lambda: "goes on answering" in caplog.text)
    assert beside.session.ask("Which law?", "c").answer == "by the first" and not beside.pairs(three)


def test_nobody_is_asked_silently_where_words_may_not_be_kept():
    assert _keeps_words(TracePolicy())
    assert not any(map(_keeps_words, (None, TracePolicy(inputs="hash"), TracePolicy(personal_data="mask"))))
