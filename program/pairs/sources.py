"""What step `a` of a recipe learns from: people's feedback, and pairs of the judge's, which is measured first."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dspy

from corpora.errors import CorpusError
from corpora.splits import Split, nearly_among
from corpora.types import Contract, Corpus
from modules.degenerate import Guarded
from modules.judge import JudgeError
from optimizers.preference import Preferences
from optimizers.preference_types import Preference
from program.config import CompileConfig
from program.contract_review import ContractReview
from program.feedback.store import FeedbackStore
from program.judging.cases import cases_for
from program.judging.kinds import make_judge
from program.judging.report import judge_report, write_judge_report
from program.judging.trust import TrustedJudge
from program.pairs.contrast import Contrasted
from program.pairs.from_feedback import FeedbackPreferences
from program.pairs.rollouts import JudgedRollouts

logger = logging.getLogger(__name__)
_PAIRS = 200


@dataclass
class RecipePreferences:
    """`Preferences` of `feedback`, but for contracts `apart`, and of the judge named `judge` (judging/kinds.py).

    The judge is measured once, on the program that comes in and the labels of `choosing`; its report is left in
    `folder`/judge. One that may not train, or cannot be measured on so few labels, is passed over, with a warning,
    where there is feedback; else JudgeError or CorpusError.
    """

    choosing: Corpus
    folder: Path
    feedback: Preferences | None = None
    judge: str | None = None
    apart: frozenset[str] = frozenset()
    threads: int = 32
    seed: int = 0
    _rollouts: JudgedRollouts | None = field(default=None, init=False)

    def make(
        self, program: dspy.Module, trainset: Sequence[dspy.Example], valset: Sequence[dspy.Example], round: int
    ) -> list[Preference]:
        """As `Preferences.make`."""
        made: list[Preference] = []
        if self.feedback is not None:
            said = self.feedback.make(program, trainset, valset, round)
            made = [one for one in said if one.group not in self.apart]
            if len(made) < len(said):
                logger.info("%d preferences are about contracts held out, and are left out", len(said) - len(made))
        if self.judge is not None and self._rollouts is None:
            self._measure(program)
        if self._rollouts is not None:
            made += self._rollouts.make(program, trainset, valset, round)
        return made

    def _measure(self, program: ContractReview) -> None:
        told = {"threads": self.threads, "seed": self.seed, "corpus": self.choosing.name}
        judge = Guarded(make_judge(self.judge, program.deepcopy()))
        try:
            report = judge_report(judge, *cases_for(program, self.choosing, _PAIRS, _PAIRS, self.seed), **told)
            write_judge_report(self.folder / "judge", report)
            trusted = TrustedJudge(judge, report)
        except (JudgeError, CorpusError) as error:  # the latter where there are too few labels to measure it on
            if self.feedback is None:
                raise
            logger.warning("the judge makes no pairs: %s", error)
            self.judge = None
            return
        self._rollouts = JudgedRollouts(trusted, threads=self.threads, seed=self.seed)


@contextmanager
def recipe_preferences(
    config: CompileConfig, split: Split, folder: Path, adapter: dspy.Adapter
) -> Iterator[RecipePreferences]:
    """What a config's step `a` learns from; open as long as the block lasts.

    Nothing is learnt of contracts that choices or scores are made on, near-duplicates included.
    """
    made = RecipePreferences(split.val, folder, judge=config.judge, threads=config.threads, seed=config.seed)
    if config.feedback is None:
        yield made
        return
    held_out = Corpus("held out", split.val.contracts + split.test.contracts, ())
    with FeedbackStore.open(config.feedback) as store:
        made.feedback, made.apart = FeedbackPreferences(store, adapter), contracts_apart(store, held_out)
        if config.preference_contrast:
            made.feedback = Contrasted(
                made.feedback, adapter, samples=config.preference_contrast, threads=config.threads
            )
        yield made


def contracts_apart(store: FeedbackStore, held_out: Corpus) -> frozenset[str]:
    """Ids of the contracts with feedback that are, or nearly are, among those that choices or scores are made on."""
    asked = {each.contract_id: Contract(each.contract_id, store.contract_text(each)) for each in store.answers()}
    return frozenset(nearly_among(asked.values(), held_out.contracts))
