"""What `InstructTune` asks of a contract review that labels for itself: propose, filter, keep.

    labels = SelfInstruct(store, LabelSettings(answered=600), lm=teacher)
    tune = InstructTune(metric=teaches, labels=labels, score=score, ...)

Where labels come from is in `program.proposals`. Labels that are kept stand in the store; training rows say "not in
this contract" of passages, too, from which those of a kept label were left out.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any

import dspy
import numpy as np

from corpora.errors import CorpusError
from corpora.labels.rows import folded
from corpora.labels.store import LabelStore
from corpora.labels.types import Draft
from corpora.sentences import sentences
from corpora.types import Contract, Corpus, Label, Question, Span
from modules.label_checks import agreement, judged, round_trip
from modules.label_filters import (
    Filter,
    Filtered,
    apply_filters,
    confident,
    count_reasons,
    difficulty_weights,
    fit_confidence,
    quota,
    verbatim,
)  # fmt: skip
from modules.label_novelty import label_text, novel, unlike
from modules.label_wording import plausible
from modules.labeler import Check
from modules.personal_data import masked, pii
from modules.signatures import NOT_FOUND
from program.asking import Tally, ask_all, resampled
from program.examples import to_examples
from program.failpoints import reach
from program.label_precision import kind_of
from program.label_settings import LabelSettings
from program.metrics import exact_match, review_correct
from program.proposals import CALL_FAILED, Proposals, Proposed
from program.teacher import LabelTeacher

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What became of a round's drafts: (filter, in, out) in order, and (filter, kind of reason, how many)."""

    round: int
    proposed: dict[str, int]
    funnel: tuple[tuple[str, int, int], ...]
    reasons: tuple[tuple[str, str, int], ...]
    kept: dict[str, int]
    tally: Tally


@dataclass
class SelfInstruct:
    """`SelfLabels` of a `ContractReview`; every contract has to be in its index.

    `lm` is the teacher, None for the labelling program's own. `reports` has one RoundReport a round.
    """

    store: LabelStore
    settings: LabelSettings = field(default_factory=LabelSettings)
    lm: dspy.LM | None = None
    threads: int = 32
    progress: bool = True
    reports: list[RoundReport] = field(default_factory=list)

    def make(
        self,
        labeller: dspy.Module,
        trainset: Sequence[dspy.Example],
        unlabelled: Sequence[Contract],
        valset: Sequence[dspy.Example],
        round: int,
    ) -> list[dspy.Example]:
        """As `SelfLabels.make`. Raises CorpusError for a contract that is held out, LabelingError where calls fail.

        What is labelled is on the disk when this returns, and all or nothing; failed calls are made again the next
        time.
        """
        proposed, filters, tally = self.propose(labeller, trainset, unlabelled, valset, round)
        filtered = apply_filters(proposed.drafts, {name: filters[name] for name in self.settings.filters})
        reach("label.proposed")
        self._keep(filtered, proposed)
        reach("label.kept")
        self._report(round, proposed, filtered, tally)
        people = [human_label(example) for example in trainset]
        # On contracts of earlier sets too, as far as there is something to retrieve of them.
        here = set(labeller.retrieve.index.contract_ids)
        return self.rows(people, {c.id: c for c in self.store.contracts("train") if c.id in here}, round)

    def propose(
        self,
        labeller: dspy.Module,
        trainset: Sequence[dspy.Example],
        unlabelled: Sequence[Contract],
        valset: Sequence[dspy.Example],
        round: int,
    ) -> tuple[Proposed, dict[str, Filter], Tally]:
        """The drafts of a round, every filter of FILTERS for them, the count of calls; nothing of it is kept yet.

        People's labels and all contracts are in the store afterwards. Raises as `make`.
        """
        index = labeller.retrieve.index
        if both := sorted({e.contract_id for e in trainset} & {e.contract_id for e in valset}):
            raise CorpusError(f"trainset and valset both ask of {both}; confidences are fitted on contracts apart")
        people = [human_label(example) for example in trainset]
        ids = {*(label.question.contract_id for label in people), *(contract.id for contract in unlabelled)}
        contracts = {key: index.contract(key) for key in sorted(ids)}
        self.store.hold_out([index.contract(key) for key in sorted({e.contract_id for e in valset})], "val")
        self.store.refuse_overlap(unlabelled)
        self.store.add_contracts(contracts.values())
        self.store.add(((Draft(label, "human", "people"), ()) for label in people), "human")
        teacher = labeller.deepcopy()
        if self.lm is not None:
            teacher.set_lm(self.lm)
        tally = Tally()
        proposals = Proposals(self.store, teacher, contracts, people, self.settings, round, self._ask(tally))
        proposed = proposals.all([contract.id for contract in unlabelled])
        return proposed, self._filters(labeller, teacher, proposals, valset, tally), tally

    def teacher(self, student: dspy.Module, examples: Sequence[dspy.Example]) -> dspy.Module:
        """As `SelfLabels.teacher`."""
        teacher = LabelTeacher(student.retrieve.index, examples)
        teacher.set_lm(student.get_lm())
        return teacher

    def rows(self, people: Sequence[Label], contracts: dict[str, Contract], round: int) -> list[dspy.Example]:
        """The examples to train on beside people's: a draw of the labels kept so far, and near misses of those.

        Only labels on `contracts`, by id; a question that people answered is left to them.
        """
        asked = {(label.question.contract_id, label.question.text) for label in people}
        kept = {
            (r.draft.label.question.contract_id, r.draft.label.question.text): r.draft
            for r in self.store.records("synthetic", "train")
        }
        drafts = [draft for key, draft in kept.items() if key not in asked and key[0] in contracts]
        rng = Random(f"{self.settings.seed}/{round}")
        if len(drafts) > self.settings.max_rows:
            weights = difficulty_weights([0.5 if d.confidence is None else d.confidence for d in drafts])
            chosen = np.random.default_rng(rng.getrandbits(32)).choice(
                len(drafts), self.settings.max_rows, replace=False, p=weights
            )
            drafts = [drafts[i] for i in sorted(chosen)]
        labels = [draft.label for draft in drafts]
        found = [label for label in labels if label.spans]
        n_absent = len(labels) - len(found)
        wanted = max(0, int(self.settings.near_misses * len(found) + 0.5) - n_absent)
        if not labels:
            return []
        made = to_examples(Corpus("made", tuple(contracts.values()), tuple(labels)))
        near = (near_miss(label, contracts[label.question.contract_id]) for label in rng.sample(found, len(found)))
        return made + list(islice((example for example in near if example is not None), wanted))

    def _ask(self, tally: Tally) -> Any:
        def ask(program: dspy.Module, inputs: Sequence[dict[str, Any]]) -> list:
            return ask_all(program, inputs, tally, threads=self.threads, progress=self.progress)

        return ask

    def _filters(
        self,
        labeller: dspy.Module,
        teacher: dspy.Module,
        proposals: Proposals,
        valset: Sequence[dspy.Example],
        tally: Tally,
    ) -> dict[str, Filter]:
        settings, ask = self.settings, self._ask(tally)
        texts = {contract.id: contract.text for contract in self.store.contracts()}  # of what was kept before, too
        kept = [record.draft for record in self.store.records("synthetic", "train")]

        def reviewed(program: dspy.Module) -> Any:
            return lambda pairs: ask(program, [{"question": q, "contract_id": c} for q, c in pairs])

        def sampled(pairs: Sequence[tuple[str, str]], k: int) -> list[list]:
            by_sample = [reviewed(resampled(teacher, i))(pairs) for i in range(1, k + 1)]
            return [list(of_one) for of_one in zip(*by_sample, strict=True)]

        def retrieved(pairs: Sequence[tuple[str, str]]) -> list[dspy.Prediction]:
            return [labeller.retrieve(question=q, contract_id=c) for q, c in pairs]

        def judge(drafts: Sequence[Draft]) -> list:
            check = Check()
            check.set_lm(teacher.get_lm())
            said = ask(check, [_to_check(draft, texts) for draft in drafts])
            return [one if isinstance(one, Exception) else one.faithful and one.answerable for one in said]

        def confidence(drafts: Sequence[Draft]) -> list[str | None]:
            if all(draft.confidence is None for draft in drafts):
                logger.warning("the labeller gives no log probabilities: let samples of it agree instead (agreement)")
                return [None] * len(drafts)
            return confident(*self._thresholds(reviewed(teacher), valset))(drafts)

        return {
            "verbatim": verbatim(texts),
            "plausible": plausible(),
            # What is masked is masked when it is kept: "verbatim" has to see the words of the contract.
            "pii": pii("keep" if settings.pii == "mask" else settings.pii, texts),
            "novelty": novel([draft.label.question.text for draft in kept]),
            "contradiction": only(("answer",), proposals.contradiction),
            "confidence": only(("answer",), confidence),
            "agreement": only(("answer", "write"), agreement(sampled, exact_match, k=max(1, settings.samples))),
            "round trip": only(
                ("write", "paraphrase"), round_trip(reviewed(labeller)), ("project",),
                round_trip(retrieved, span=False),
            ),
            "judge": only(("answer", "write", "paraphrase"), judged(judge)),
            "near-duplicate": unlike(kept, label_text(texts), copies=settings.copies),
            "quota": quota(settings.per_category, settings.per_contract, kept),
        }  # fmt: skip

    def _thresholds(self, ask: Any, valset: Sequence[dspy.Example]) -> tuple[float, float]:
        """The confidence from which on found and absent answers are right often enough, by people's labels."""
        said = ask([(example.question, example.contract_id) for example in valset])
        pairs = [
            (p, e)
            for p, e in zip(said, valset, strict=True)
            if not isinstance(p, Exception) and p.confidence is not None
        ]
        return tuple(
            fit_confidence(
                [p.confidence for p, _ in pairs if p.found == found],
                [review_correct(p.answer, p.found, e.answer) for p, e in pairs if p.found == found],
                self.settings.precision,
            )
            for found in (True, False)
        )

    def _keep(self, filtered: Filtered, proposed: Proposed) -> None:
        asked = [(*proposed.unit(draft), "kept") for draft, _ in filtered.kept]
        asked += [
            (*proposed.unit(draft), f"{name}: {why}")
            for draft, name, why in filtered.dropped
            if not why.startswith(CALL_FAILED)
        ]
        asked += [unit for unit in proposed.failed if not unit[-1].startswith(CALL_FAILED)]
        mask = masked if self.settings.pii == "mask" else (lambda draft: draft)
        self.store.add([(mask(draft), trail) for draft, trail in filtered.kept], "synthetic", asked)

    def _report(self, round: int, proposed: Proposed, filtered: Filtered, tally: Tally) -> None:
        reasons = tuple((name, why, n) for (name, why), n in count_reasons(filtered).most_common())
        kept = [draft for draft, _ in filtered.kept]
        self.reports.append(
            RoundReport(round, _by_method(proposed.drafts), filtered.funnel, reasons, _by_method(kept), tally)
        )


def only(methods: tuple[str, ...], one: Filter, others: tuple[str, ...] = (), other: Filter | None = None) -> Filter:
    """A filter of drafts made by `methods`, another of those made by `others`; all else passes."""

    def keep(drafts: Sequence[Draft]) -> list[str | None]:
        outcomes: list[str | None] = [None] * len(drafts)
        for names, each in ((methods, one), (others, other)):
            places = [i for i, draft in enumerate(drafts) if draft.method in names]
            if places and each is not None:
                for i, outcome in zip(places, each([drafts[i] for i in places]), strict=True):
                    outcomes[i] = outcome
        return outcomes

    return keep


def human_label(example: dspy.Example) -> Label:
    """The label that `to_examples` made the example of."""
    question = Question(example.question_id, example.contract_id, example.category, example.question)
    spans = tuple(Span(*span) for span in example.spans)
    return Label(question, spans, example.answer if spans else None)


def near_miss(label: Label, contract: Contract) -> dspy.Example | None:
    """A label's question put to its contract without the sentences that answer it: "not in this contract".

    None where a quote stands elsewhere too, as names of parties do: then the rest may answer it.
    """
    of_contract = sentences(contract.text)
    around = [
        (min(span.start, s.start), max(span.end, s.end))
        for span in label.spans
        for s in of_contract
        if s.start < span.end and span.start < s.end
    ]
    rest = folded(_outside(contract.text, around)).casefold()
    if any(folded(contract.text[span.start : span.end]).casefold() in rest for span in label.spans):
        return None
    question = label.question
    return dspy.Example(
        question=question.text, contract_id=contract.id, without=tuple(around),
        question_id=f"{question.id}__without", category=question.category,
        answer=NOT_FOUND, quotes=[], found=False, spans=[],
    ).with_inputs("question", "contract_id", "without")  # fmt: skip


def _outside(text: str, stretches: Sequence[tuple[int, int]]) -> str:
    """The text without these stretches, of which nothing runs on over the gap."""
    left, at = [], 0
    for start, end in sorted(stretches):
        left.append(text[at:start])
        at = max(at, end)
    return "\0".join([*left, text[at:]])


def _to_check(draft: Draft, texts: dict[str, str]) -> dict[str, Any]:
    text = texts[draft.label.question.contract_id]
    quotes = [text[span.start : span.end] for span in draft.label.spans]
    return {
        "question": draft.label.question.text, "quotes": quotes,
        "answer": draft.label.answer or ", ".join(quotes) or NOT_FOUND,
    }  # fmt: skip


def _by_method(drafts: Sequence[Draft]) -> dict[str, int]:
    return dict(sorted(Counter(f"{draft.method}, {kind_of(draft.label)}" for draft in drafts).items()))
