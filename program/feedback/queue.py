"""What to show a reviewer next: recorded answers that nobody has judged, where the program is least sure first.

Not handled: a claim on an answer while somebody looks at it (two reviewers may be shown the same).
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from corpora.labels.rows import folded
from program.feedback.rows import same_question
from program.feedback.store import FeedbackStore, answers_of
from program.feedback.types import Answered, Correction, Event, Skip

PER_CONTRACT = 3
_UNKNOWN = 0.5


@dataclass(frozen=True, slots=True)
class Waiting:
    """An answer that waits for somebody's word; `uncertainty` in [0, 1]."""

    answered: Answered
    uncertainty: float
    skipped: bool = False


def uncertainty(answered: Answered) -> float:
    """How unsure the program is of an answer, in [0, 1]: the mean of what is known, 1 for one that cannot be read.

    1 - confidence, 0.5 where there is none; the probability, by retrieval's `p_answered`, that "found" or "not found"
    is the wrong one; the share of further samples that said something else.
    """
    if not answered.readable:
        return 1.0
    signs = [_UNKNOWN if answered.confidence is None else 1 - answered.confidence]
    if answered.p_answered is not None:
        signs.append(1 - answered.p_answered if answered.found else answered.p_answered)
    if answered.samples_agree is not None:
        signs.append(1 - answered.samples_agree)
    return sum(signs) / len(signs)


class Queue:
    """The queue of a store; answers are read once, as they come, for many calls from any thread."""

    def __init__(self, store: FeedbackStore) -> None:
        self._store, self._lock = store, threading.Lock()
        self._answers: dict[str, Answered] = {}

    def waiting(self, *, per_contract: int = PER_CONTRACT) -> list[Waiting]:
        """Of each question to a contract the last answer the program served, if nobody has judged it.

        Judged is what was rated, corrected or chosen about, an equal answer to the same question, and any answer to a
        question that was corrected. Each contract gives its `per_contract` least sure, then each the next, and so on,
        so that a walk through the queue is one through contracts; those that were skipped come behind all others.
        """
        with self._lock:
            last = next(reversed(self._answers), "")
            self._answers |= {answered.id: answered for answered in self._store.answers(after=last)}
            answers = dict(self._answers)
        judged, skipped = _said_of(self._store.events(), answers)
        served = {_question(answered): answered for answered in answers.values() if not answered.sample}
        queue = [
            Waiting(answered, uncertainty(answered), question in skipped)
            for question, answered in served.items()
            if question not in judged and (question, _words(answered)) not in judged
        ]
        queue.sort(key=lambda each: -each.uncertainty)
        return [w for skip in (False, True) for w in _in_turns([w for w in queue if w.skipped is skip], per_contract)]


def _said_of(events: Iterable[Event], answers: Mapping[str, Answered]) -> tuple[set[Any], set[Any]]:
    """What was judged (a question, or a question with an answer's words), and the questions that were skipped."""
    judged: set[Any] = set()
    skipped: set[Any] = set()
    for event in events:
        # What was answered since the answers were read is not among them.
        for answered in (answers[answer_id] for answer_id in answers_of(event) if answer_id in answers):
            question = _question(answered)
            if isinstance(event, Skip):
                skipped.add(question)
            else:
                judged.add(question if isinstance(event, Correction) else (question, _words(answered)))
    return judged, skipped


def _in_turns(ordered: Iterable[Waiting], per_contract: int) -> Iterator[Waiting]:
    """The least sure `per_contract` of each contract, then of each the next, in the order given within a turn."""
    taken: dict[str, int] = {}
    turns: dict[int, list[Waiting]] = {}
    for each in ordered:
        n = taken[each.answered.contract_id] = taken.get(each.answered.contract_id, 0) + 1
        turns.setdefault((n - 1) // per_contract, []).append(each)
    for turn in sorted(turns):
        yield from turns[turn]


def _question(answered: Answered) -> tuple[str, str, str]:
    return answered.contract_id, answered.contract_sha256, same_question(answered.question)


def _words(answered: Answered) -> str:
    return folded(answered.answer).casefold() if answered.found else ""
