"""Labels proposed for unlabelled contracts, from four sources; none of them has been checked.

"project" carries people's labels, and those kept before, over to sentences that are nearly theirs; "answer" puts the
questions people asked to other contracts; "write" makes questions about passages; "paraphrase" asks kept ones in other
words. What was answered before, by the same model under the same prompts, is not tried again; a failed call is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from corpora.labels.store import LabelStore, label_id
from corpora.labels.types import Draft
from corpora.types import Contract, Label, Passage, Question
from modules.labeler import Reword, WriteLabel, demonstrations, label_of, prompt_version, turn
from modules.projection import Pattern, Projected, pattern_of, project
from modules.signatures import WRITE_TASKS
from program.label_settings import LabelSettings

# A sentence this much like a labelled one speaks against "not in this contract", though it may not carry a label.
_SPEAKS_AGAINST = 0.4
# How the reason of a draft begins of which it was not the model that failed: it is asked again the next time.
CALL_FAILED = "call failed"
AskAll = Callable[[dspy.Module, Sequence[dict[str, Any]]], list[Any]]
Unit = tuple[str, str, str, str, str]


@dataclass
class Proposed:
    """Drafts; and `failed`, the units of work without one (contract, question, method, by, prompt, why).

    A draft's unit is what was asked for it: of a question about a passage, the passage.
    """

    drafts: list[Draft] = field(default_factory=list)
    failed: list[tuple[str, str, str, str, str, str]] = field(default_factory=list)
    units: dict[int, Unit] = field(default_factory=dict)

    def add(self, unit: Unit, draft: Draft) -> None:
        """Take a draft, made for `unit`."""
        self.drafts.append(draft)
        self.units[id(draft)] = unit

    def unit(self, draft: Draft) -> Unit:
        """What was asked for a draft that was added."""
        return self.units[id(draft)]


class Proposals:
    """The sources over one round's contracts; `people` are the labels that everything follows."""

    def __init__(
        self,
        store: LabelStore,
        teacher: dspy.Module,
        contracts: dict[str, Contract],
        people: Sequence[Label],
        settings: LabelSettings,
        round: int,
        ask: AskAll,
    ) -> None:
        self.store, self.teacher, self.contracts, self.people = store, teacher, contracts, people
        self.settings, self.ask = settings, ask
        self.rng = Random(f"{settings.seed}/{round}/propose")
        self.model = (teacher.get_lm() or dspy.settings.lm).model
        kept = [record.draft.label for record in store.records("synthetic", "train")]
        self.known = [*people, *(label for label in kept if label.question.contract_id in contracts)]
        patterns = [
            pattern_of(label, contracts[label.question.contract_id], self._id(label))
            for label in self.known
            if label.spans
        ]
        # One pattern of equal texts: what was carried over is like what it was carried from. People's come first.
        first: dict[tuple[str, str], Pattern] = {}
        for pattern in patterns:
            if pattern is not None:
                first.setdefault((pattern.question, pattern.text), pattern)
        self.patterns = list(first.values())
        self.answered = {(label.question.contract_id, label.question.text) for label in self.known}
        self._projected: dict[str, list[Projected]] = {}

    def all(self, unlabelled: Sequence[str]) -> Proposed:
        """What the settings ask for, on these contracts."""
        proposed = Proposed()
        self.project(unlabelled, proposed)
        self.answer(unlabelled, proposed)
        self.write(unlabelled, proposed)
        self.reword(proposed)
        return proposed

    def project(self, unlabelled: Sequence[str], proposed: Proposed) -> None:
        """Labels carried over; confidence is the likeness of the sentences."""
        for contract_id in unlabelled:
            for one in self._projections(contract_id):
                pattern = one.pattern
                if one.similarity < self.settings.min_similarity or (contract_id, pattern.question) in self.answered:
                    continue
                question = self._question(contract_id, pattern.category, pattern.question)
                label = Label(question, one.spans, one.answer)
                draft = Draft(label, "project", "projection", pattern.parent, (pattern.parent,), one.similarity)
                proposed.add((contract_id, pattern.question, "project", "projection", pattern.parent), draft)

    def answer(self, unlabelled: Sequence[str], proposed: Proposed) -> None:
        """The teacher's answers to questions that people asked, on contracts where none is known."""
        done = self.answered | {(d.label.question.contract_id, d.label.question.text) for d in proposed.drafts}
        asked = dict.fromkeys((label.question.category, label.question.text) for label in self.people)
        pairs = [(key, *one) for key in unlabelled for one in asked if (key, one[1]) not in done]
        self.rng.shuffle(pairs)
        prompt = prompt_version(self.teacher)
        units = self._new([(key, text, "answer", self.model, prompt) for key, _, text in pairs], self.settings.answered)
        # Prompts about one contract begin alike, and what they share is read once where they are asked together.
        units.sort()
        categories = {text: category for category, text in asked}
        inputs = [{"question": unit[1], "contract_id": unit[0]} for unit in units]
        for unit, prediction in self._usable(self.teacher, units, inputs, proposed):
            label = label_of(self._question(unit[0], categories[unit[1]], unit[1]), prediction)
            proposed.add(unit, Draft(label, "answer", self.model, prompt, (), prediction.confidence))

    def write(self, unlabelled: Sequence[str], proposed: Proposed) -> None:
        """Questions about passages: by each wording of the task, without demonstrations and with people's labels."""
        if not self.settings.written:
            return
        index = self.teacher.retrieve.index
        shown = demonstrations(
            self.people, self.contracts,
            [p for key in sorted({la.question.contract_id for la in self.people}) for p in index.passages(key)],
        )  # fmt: skip
        passages = [passage for key in unlabelled for passage in index.passages(key)]
        self.rng.shuffle(passages)
        ways = [(task, demos) for task in WRITE_TASKS[: self.settings.descriptions] for demos in ([], shown)]
        for i, (task, demos) in enumerate(ways):
            writer = WriteLabel(task)
            writer.set_lm(self.teacher.get_lm())
            writer.predict.demos = self.rng.sample(demos, min(self.settings.demonstrations, len(demos)))
            n = len(range(i, self.settings.written, len(ways)))
            self._converse(writer, passages[i :: len(ways)], n, proposed)

    def _converse(self, writer: WriteLabel, passages: Sequence[Passage], n: int, proposed: Proposed) -> None:
        """A question about each of `n` passages, and then others about those, each as the next turn."""
        begun: list[tuple[Passage, tuple[dict[str, str], ...]]] = [(passage, ()) for passage in passages]
        for number in range(1 + self.settings.follow_ups):
            prompt = prompt_version(writer) + (f"/{number}" if number else "")
            by_unit = {(one[0].contract_id, one[0].text, "write", self.model, prompt): one for one in begun}
            units = self._new(list(by_unit), n)
            inputs = [{"passage": p} | ({"before": before} if before else {}) for p, before in map(by_unit.get, units)]
            begun = []
            for unit, prediction in self._usable(writer, units, inputs, proposed):
                passage, before = by_unit[unit]
                question = self._question(unit[0], self._category(prediction.question), prediction.question)
                proposed.add(unit, Draft(label_of(question, prediction), "write", self.model, prompt))
                begun.append((passage, (*before, turn(prediction))))

    def reword(self, proposed: Proposed) -> None:
        """Labels that are kept already, asked in other words."""
        kept = [label for label in self.known if label.spans]
        self.rng.shuffle(kept)
        reword = Reword()
        reword.set_lm(self.teacher.get_lm())
        prompt = prompt_version(reword)
        by_unit = {
            (la.question.contract_id, la.question.text, "paraphrase", self.model, prompt): la for la in kept
        }  # fmt: skip
        units = self._new(list(by_unit), self.settings.reworded)
        for unit, prediction in self._usable(reword, units, [{"question": unit[1]} for unit in units], proposed):
            label = by_unit[unit]
            question = self._question(unit[0], label.question.category, prediction.question)
            draft = Draft(
                Label(question, label.spans, label.answer), "paraphrase", self.model, prompt, (self._id(label),)
            )
            proposed.add(unit, draft)

    def contradiction(self, drafts: Sequence[Draft]) -> list[str | None]:
        """A filter: "not in this contract" where a sentence of it is like one that is labelled with this question."""
        outcomes: list[str | None] = []
        for draft in drafts:
            question = draft.label.question
            like = [p for p in self._projections(question.contract_id) if p.pattern.question == question.text]
            against = not draft.label.spans and like
            outcomes.append(f"like a labelled sentence: {like[0].similarity:.2f}" if against else None)
        return outcomes

    def _usable(
        self, program: dspy.Module, units: Sequence[Unit], inputs: Sequence[dict[str, Any]], proposed: Proposed
    ) -> Iterator[tuple[Unit, dspy.Prediction]]:
        """What the program says to each unit; a unit whose answer makes no draft goes to `proposed.failed`."""
        for unit, prediction in zip(units, self.ask(program, inputs), strict=True):
            if why := _unusable(prediction):
                proposed.failed.append((*unit, why))
            else:
                yield unit, prediction

    def _projections(self, contract_id: str) -> list[Projected]:
        if contract_id not in self._projected:
            least = min(_SPEAKS_AGAINST, self.settings.min_similarity)
            self._projected[contract_id] = project(self.patterns, self.contracts[contract_id], min_similarity=least)
        return self._projected[contract_id]

    def _new(self, units: list[Unit], n: int) -> list[Unit]:
        """The first `n` units that were not asked before."""
        if n == 0:
            return []
        new = [unit for unit, asked in zip(units, self.store.was_asked(units), strict=True) if not asked]
        return new[:n]

    def _category(self, question: str) -> str:
        """The category of the known question that this one is; its own text where it is none of them."""
        known = {label.question.text: label.question.category for label in self.people}
        return known.get(question, question)

    def _question(self, contract_id: str, category: str, text: str) -> Question:
        return Question(f"{contract_id}__{text if category == text else category}", contract_id, category, text)

    def _id(self, label: Label) -> str:
        return label_id(label, self.contracts[label.question.contract_id].text)


def _unusable(prediction: Any) -> str | None:
    """Why there is no draft of what came: a failed call, what cannot be read, an answer that quotes nothing."""
    if isinstance(prediction, AdapterParseError):
        return "unreadable: no field could be read"
    if isinstance(prediction, Exception):
        return f"{CALL_FAILED}: {type(prediction).__name__}"
    if prediction.get("readable", True) is False:
        return "unreadable: no answer could be read"
    # A label without spans would say "not in this contract", whatever filters there are.
    if prediction.get("found", True) and not prediction.get("quotes", True):
        return f"no quote: {prediction.answer[:60]!r}"
    if not prediction.get("question", "x").strip():
        return "unreadable: no question could be read"
    return None
