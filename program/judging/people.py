"""What people chose between two answers, as pairs that a judge is held against or compiled on."""

from collections.abc import Iterator

from corpora.types import Passage
from modules.judge import Candidate, Case
from modules.signatures import NOT_FOUND
from program.feedback.store import FeedbackStore
from program.feedback.types import Answered
from program.judging.types import JudgedPair

_WINNERS = {"left": "A", "right": "B", "tie": "tie"}


def people_pairs(store: FeedbackStore) -> Iterator[JudgedPair]:
    """One pair per choice that stands in the store, A on the left as it was shown; comments are not read.

    The case has the passages that either answer was given over. Answers that could not be read are left out.
    """
    for choice in store.events("choice"):
        left, right = store.answered(choice.left_id), store.answered(choice.right_id)
        if not (left.readable and right.readable):
            continue
        passages = {**_passages(store, left), **_passages(store, right)}
        case = Case(left.question, tuple(sorted(passages.values(), key=lambda p: (p.contract_id, p.start, p.end))))
        yield JudgedPair(
            id=" ".join(sorted((left.id, right.id))),
            contract_id=left.contract_id,
            case=case,
            a=_candidate(left),
            b=_candidate(right),
            winner=_WINNERS[choice.chosen],
            kind="choice",
            by=choice.by,
        )


def _candidate(said: Answered) -> Candidate:
    return Candidate(said.answer if said.found else NOT_FOUND, tuple(quote.text for quote in said.quotes))


def _passages(store: FeedbackStore, said: Answered) -> dict[str, Passage]:
    text = store.contract_text(said)
    return {p.id: Passage(p.id, p.contract_id, p.start, p.end, text[p.start : p.end]) for p in said.passages}
