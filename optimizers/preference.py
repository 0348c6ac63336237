"""Preference tuning as a DSPy optimizer: DPO and its kin on what people and judges preferred, in rounds if wanted.

    tune = PreferenceTune(preferences=pairs, score=score)                                     # a list: one round
    tune = PreferenceTune(preferences=JudgedRollouts(judge, …), score=score, rounds=3,        # on-policy: fresh pairs
                          train_kwargs={"max_steps": 30})
    program = tune.compile(program, trainset, valset=val)

Where preferences come from is told by `preferences`; `program.pairs` has this project's.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import dspy
from dspy.clients.utils_finetune import infer_data_format
from dspy.teleprompt.teleprompt import Teleprompter

from optimizers.errors import TrainingError
from optimizers.finetuning import Score, tuned_copy, validating
from optimizers.local_lm.provider import LocalProvider
from optimizers.local_lm.training.reference import Known, with_reference
from optimizers.preference_pairs import Check, Curated, PairCaps, curate, write_preferences
from optimizers.preference_people import Person, check_people
from optimizers.preference_policy import kl_from_incumbent, mean_length
from optimizers.preference_rows import PAIRED, anchored, balance, fitting, lm_of, preference_rows
from optimizers.preference_types import Preference

__all__ = ["Preference", "PreferenceRound", "PreferenceTune", "Preferences", "preference_rows"]
logger = logging.getLogger(__name__)
METHODS = (*PAIRED, "kto")
REFERENCES = ("incumbent", "base")


class Preferences(Protocol):
    """What PreferenceTune asks for pairs; the program that it is given is not changed."""

    def make(
        self, program: dspy.Module, trainset: Sequence[dspy.Example], valset: Sequence[dspy.Example], round: int
    ) -> list[Preference]:
        """Preferences for this round, counted from 1, of which `program` is the policy; in the order of their making.

        `valset` is there to keep apart from, and to fit thresholds on; none of its contracts may be in a preference.
        """


@dataclass(frozen=True, slots=True)
class PreferenceRound:
    """One round: what it learnt from, what was dropped and why, and how far it went; round 0 is the incumbent.

    `n_pairs` counts preferences, answers that are good by themselves among them.
    `kl` is in nats per token from the incumbent, `length_ratio` the mean length of its answers over the incumbent's;
    None where that is not measured. `refused` says which bound it broke, "" where it was accepted.
    """

    number: int
    n_pairs: int
    dropped: dict[str, int]
    score: float
    kl: float | None
    length_ratio: float | None
    refused: str
    models: tuple[str, ...]


class PreferenceTune(Teleprompter):
    """Direct preference optimization (Rafailov et al. 2023) of a program's weights, and KTO, ORPO, CPO, SimPO.

    Each round: preferences are made with the best program so far (or given, as a list, for one round), curated
    (preference_pairs.py), laid into exactly the prompts that the program is served with, learnt from, and the result is
    accepted if its validation score does not fall below the best so far and it keeps within the bounds: KL from the
    incumbent per token, and the length of its answers. The first round that is refused is the last. The best program is
    returned, the student itself where none was accepted. People who disagree beyond chance with `check` (a preference
    -> right, wrong, not known) or with everybody else are left out, and named in `people`.
    """

    def __init__(
        self,
        preferences: Preferences | Sequence[Preference] | None = None,
        *,
        score: Score,
        method: str = "dpo",
        nll_weight: float = 1.0,
        anchors: float = 1.0,
        rounds: int = 1,
        reference: str = "incumbent",
        caps: PairCaps | None = None,
        check: Check | None = None,
        max_kl: float | None = 0.5,
        max_length_ratio: float | None = 1.5,
        patience: int = 1,
        train_kwargs: Mapping[str, Any] | None = None,
        adapter: dspy.Adapter | None = None,
        num_threads: int = 8,
        seed: int = 0,
        out: str | Path | None = None,
    ) -> None:
        """`score` of a program on examples: higher is better. `train_kwargs`: of the method (training/settings.py).

        `nll_weight`: of the likelihood of the chosen answer beside DPO's loss (Pang et al. 2024, eq. 1), where
        `train_kwargs` name no `loss_type`. `anchors`: for each pair, how many answers that were called good by
        themselves (thumbs up) are learnt by likelihood beside it, so that what was right stays; 0 where the loss has no
        such term. `reference`: "incumbent", the weights that the program comes in with, or
        "base", without any adapter. `patience` as in InstructTune, within a training. `out`: a folder for
        preferences.jsonl, with what was learnt from. Raises TrainingError for numbers out of range.
        """
        super().__init__()
        _check_options(method, reference, rounds, nll_weight, max_kl, max_length_ratio, patience)
        if not 0 <= anchors < math.inf:
            raise TrainingError(f"anchors={anchors!r} must be 0 or more answers for each pair")
        self.preferences, self.score, self.method, self.nll_weight = preferences, score, method, nll_weight
        self.anchors = anchors if _has_likelihood(method, nll_weight, train_kwargs or {}) else 0.0
        self.rounds, self.reference, self.caps, self.check = rounds, reference, caps, check
        self.max_kl, self.max_length_ratio, self.patience = max_kl, max_length_ratio, patience
        self.train_kwargs, self.adapter = dict(train_kwargs or {}), adapter
        self.num_threads, self.seed, self.out = num_threads, seed, out
        self.log: list[PreferenceRound] = []
        self.people: list[Person] = []
        self.curated: list[Curated] = []
        self._known: Known = {}

    def compile(
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        *,
        valset: list[dspy.Example],
        teacher: dspy.Module | None = None,
        preferences: Preferences | Sequence[Preference] | None = None,
    ) -> dspy.Module:
        """The tuned program; the student is not changed. `preferences` here go before those of the constructor.

        `teacher` is not used: BetterTogether passes one to all. Preferences about a `contract_id` of the valset are
        dropped. `log` tells the rounds, `curated` what each learnt from. Raises TrainingError.
        """
        source = self.preferences if preferences is None else preferences
        self._check_given(student, source, valset)
        self.log, self.curated, self.people, self._known = [], [], [], {}
        length = self._length(student, valset)
        self.log.append(PreferenceRound(0, 0, {}, self.score(student, valset), None, None, "", _models(student)))
        best, best_score = student, self.log[0].score
        for number in range(1, self.rounds + 1):
            given = source.make(best, trainset, valset, number) if hasattr(source, "make") else list(source)
            curated = self._curate(given, valset, number)
            if not curated.kept:
                break
            tuned = self._tuned(best, student, curated, valset, number)
            told = self._measured(number, curated, tuned, student, valset, best_score, length)
            self.log.append(told)
            logger.info("round %d: score %.3f, %s", number, told.score, told.refused or "accepted")
            if told.refused:
                break
            best, best_score = tuned, told.score
        return best

    def _check_given(self, student: dspy.Module, source: Any, valset: Sequence[dspy.Example]) -> None:
        if source is None or not valset:
            raise TrainingError("PreferenceTune needs `preferences` and a valset; give both")
        if self.rounds > 1 and not hasattr(source, "make"):
            raise TrainingError(
                f"rounds={self.rounds} are rounds of fresh preferences; a list is learnt once: set rounds=1, or give "
                "something with a method `make`"
            )
        if self.method == "kto" and (self.rounds > 1 or self.reference == "base"):
            raise TrainingError(
                "method 'kto' has the weights that it starts from as its reference: one round, reference='incumbent'"
            )
        if any(predictor.lm is None for predictor in student.predictors()):
            raise TrainingError("every predictor needs an LM of its own to tune; call program.set_lm(lm) first")

    def _curate(self, given: list[Preference], valset: Sequence[dspy.Example], number: int) -> Curated:
        apart = {example.contract_id for example in valset if "contract_id" in example}
        before = {person.by: person for person in self.people if person.left_out}
        people = {person.by: person for person in check_people(given, self.check)}
        self.people = [*({person.by: person for person in self.people} | people | before).values()]
        left_out = {person.by for person in self.people if person.left_out}
        for who in sorted(left_out - set(before)):
            logger.warning("preferences of %s disagree beyond chance and are left out", who)
        fit, unfit = fitting(given, self.method, anchors=self.anchors > 0)
        curated = curate(fit, self.caps, check=self.check, left_out=left_out, groups_apart=apart, seed=self.seed)
        curated = Curated(len(given), curated.kept, curated.dropped | unfit)
        if self.method in PAIRED:
            curated = anchored(curated, self.anchors)
        self.curated.append(curated)
        if self.out is not None:
            write_preferences(Path(self.out) / "preferences.jsonl", self.curated)
        if not curated.kept and number == 1:
            raise TrainingError(
                f"nothing to learn from: of {len(given)} preferences none was kept; dropped: {curated.dropped}"
            )
        if not curated.kept:
            logger.warning("round %d: no preference was kept of %d: %s", number, len(given), curated.dropped)
        return curated

    def _tuned(
        self, current: dspy.Module, student: dspy.Module, curated: Curated, valset: list[dspy.Example], number: int
    ) -> dspy.Module:
        """A copy of `current` whose LMs were tuned, each on the preferences about its own predictors."""
        adapter = self.adapter or dspy.settings.adapter or dspy.ChatAdapter()
        kept = [one.preference for one in curated.kept]
        jobs = {}
        for key, lm in {id(p.lm): p.lm for p in current.predictors()}.items():
            rows = preference_rows(current, [one for one in kept if lm_of(current, one) is lm], self.method, adapter)
            if not rows:
                continue
            if not getattr(lm.provider, "finetunable", False):
                raise TrainingError(f"{lm.model!r} cannot be tuned here; give the predictor an LM of local_lm(...)")
            rows = self._referred(current, student, lm, rows)
            jobs[key] = {
                "lm": lm, "train_data": rows, "train_data_format": infer_data_format(adapter),
                "train_kwargs": self._kwargs(current, lm, rows, valset, adapter, number),
            }  # fmt: skip
        return tuned_copy(current, jobs)

    def _referred(
        self, current: dspy.Module, student: dspy.Module, lm: dspy.LM, rows: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The rows with the reference's log probabilities, where training starts from something else."""
        if self.method != "dpo" or not isinstance(lm.provider, LocalProvider):
            return rows
        before = next(
            old.lm for old, new in zip(student.predictors(), current.predictors(), strict=True) if new.lm is lm
        )
        reference = before.model if self.reference == "incumbent" else lm.engine.model_string()
        if reference == lm.model:
            return rows
        return with_reference(lm.engine, reference, rows, self._known, bf16=self.train_kwargs.get("bf16"))

    def _kwargs(
        self,
        current: dspy.Module,
        lm: dspy.LM,
        rows: Sequence[Mapping[str, Any]],
        valset: list[dspy.Example],
        adapter: dspy.Adapter,
        number: int,
    ) -> dict[str, Any]:
        told: dict[str, Any] = {"method": self.method, "name": self.method, "seed": self.seed + number}
        if self.method == "dpo" and self.nll_weight > 0:
            told |= {"loss_type": ("sigmoid", "sft"), "loss_weights": (1.0, self.nll_weight)}
        if self.method == "kto":
            told |= balance(rows)
        if self.patience:
            told |= {"validate": validating(current, lm, self.score, valset, adapter), "patience": self.patience}
        if "loss_type" in self.train_kwargs:
            told.pop("loss_weights", None)
        return told | self.train_kwargs

    def _measured(
        self,
        number: int,
        curated: Curated,
        tuned: dspy.Module,
        student: dspy.Module,
        valset: list[dspy.Example],
        best_score: float,
        length: float | None,
    ) -> PreferenceRound:
        score, kl, ratio = self.score(tuned, valset), None, None
        if self.max_kl is not None:
            kl = kl_from_incumbent(tuned, student, valset, threads=self.num_threads, seed=self.seed)
        if length is not None:
            ratio = self._length(tuned, valset) / max(length, 1.0)
        told = []
        if not score >= best_score:
            told.append(f"validation score {score:.4f} is below the best so far, {best_score:.4f}")
        if kl is not None and not kl <= self.max_kl:
            told.append(f"KL {kl:.3f} nats per token from the incumbent is above max_kl={self.max_kl}")
        if ratio is not None and not 1 / self.max_length_ratio <= ratio <= self.max_length_ratio:
            told.append(f"answers are {ratio:.2f} times as long, beyond max_length_ratio={self.max_length_ratio}")
        return PreferenceRound(
            number, len(curated.kept), curated.dropped, score, kl, ratio, "; ".join(told), _models(tuned)
        )

    def _length(self, program: dspy.Module, valset: list[dspy.Example]) -> float | None:
        return None if self.max_length_ratio is None else mean_length(program, valset, threads=self.num_threads)


def _models(program: dspy.Module) -> tuple[str, ...]:
    return tuple(dict.fromkeys(predictor.lm.model for predictor in program.predictors()))


def _has_likelihood(method: str, nll_weight: float, train_kwargs: Mapping[str, Any]) -> bool:
    """Whether the loss has a term that learns the chosen answer by itself, as ORPO's and CPO's (not SimPO's) have."""
    if method == "dpo":
        return "sft" in train_kwargs["loss_type"] if "loss_type" in train_kwargs else nll_weight > 0
    simple = train_kwargs.get("loss_type") == "simpo"
    return method == "orpo" or (method == "cpo" and not simple and train_kwargs.get("cpo_alpha", 1.0) > 0)


def _check_options(
    method: str, reference: str, rounds: int, nll_weight: float, max_kl: Any, max_length_ratio: Any, patience: int
) -> None:
    for name, value, known in (("method", method, METHODS), ("reference", reference, REFERENCES)):
        if value not in known:
            raise TrainingError(f"{name}={value!r} is not known; use one of {known}")
    if rounds < 1 or patience < 0 or not 0 <= nll_weight < math.inf:
        raise TrainingError(
            f"rounds={rounds!r} must be 1 or more, patience={patience!r} and nll_weight={nll_weight!r} 0 or more"
        )
    if max_kl is not None and not max_kl > 0:
        raise TrainingError(f"max_kl={max_kl!r} must be above 0 nats per token, or None to go without")
    if max_length_ratio is not None and not max_length_ratio > 1:
        raise TrainingError(f"max_length_ratio={max_length_ratio!r} must be above 1, or None to go without")
