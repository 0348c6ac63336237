"""What a known reference and batches save in preference tuning: `python -m benchmarks.preference_throughput`.

Two ratios, each of two ways side by side in one process, in turn, the best of each: other work only slows one down.

- a DPO step whose reference log probabilities are known, against one that computes them in every step, and against
  TRL's as it comes, which on a CPU also scores the prompt's tokens: CPU seconds of the process a step, the first steps
  left out. What the reference costs beforehand is told beside it.
- questions a minute, four rollouts each sampled, judged and paired, in many threads, which the engine batches, against
  the same one by one. The judge knows the labels and costs nothing. Questions, since how many give a pair is chance.
"""

import argparse
import logging
import tempfile
import time
from dataclasses import replace
from unittest.mock import patch

import dspy

from corpora.passages import cut_passages
from corpora.synthetic import write_corpus
from corpora.types import Corpus
from modules.judge import Candidate, Case, Grade, Verdict
from modules.reviewer import Reviewer
from modules.signatures import NOT_FOUND, number_passages
from optimizers.local_lm import local_lm
from optimizers.local_lm.training import objectives
from optimizers.local_lm.training.fit import fit
from optimizers.local_lm.training.reference import with_reference
from optimizers.preference import preference_rows
from optimizers.preference_types import Preference
from program.base_model.train import known_houses
from program.examples import to_examples
from program.judging.trust import TrustedJudge, judge_identity
from program.metrics import review_correct
from program.pairs.rollouts import JudgedRollouts
from program.pairs.texts import review_text

WARM_STEPS = 2


class Shown(dspy.Module):
    """Reviews the passages of each contract around its question's label; no index to load."""

    def __init__(self, corpus: Corpus) -> None:
        super().__init__()
        self.reviewer, self.passages = Reviewer(), {}
        cut = {contract.id: cut_passages(contract, max_chars=600) for contract in corpus.contracts}
        for label in corpus.labels:
            if label.spans:
                asked, start = label.question, label.spans[0].start
                passages = cut[asked.contract_id]
                first = next(i for i, passage in enumerate(passages) if start < passage.end)
                self.passages[asked.contract_id, asked.text] = tuple(passages[max(0, first - 1) : first + 2])

    def forward(self, question: str, contract_id: str) -> dspy.Prediction:
        """As ContractReview's."""
        passages = self.passages[contract_id, question]
        prediction = self.reviewer(question=question, passages=passages)
        prediction.passages = passages
        return prediction


class GoldJudge:
    """Right by definition, and at once."""

    def __init__(self, examples: list[dspy.Example]) -> None:
        self.gold = {example.question: example.answer for example in examples}

    def grade(self, case: Case, candidate: Candidate) -> Grade:
        """1 for the label's answer, 0.1 for another (a wrong answer is still one)."""
        found = candidate.answer != NOT_FOUND
        right = review_correct(candidate.answer, found, self.gold[case.question])
        return Grade(1.0 if right else 0.1, "", "")

    def compare(self, case: Case, a: Candidate, b: Candidate) -> Verdict:
        """By grade."""
        margin = self.grade(case, a).score - self.grade(case, b).score
        return Verdict("A" if margin > 0 else "B" if margin < 0 else "tie", margin, True, "", "")

    def trusted(self) -> TrustedJudge:
        """With the report that what is right by definition has."""
        report = {
            "judge": {"name": "gold", "identity": judge_identity(self)}, "retest": {"noise": 0.0},
            "gold": {"n": 50, "n_unreadable": 0, "kappa": {"mean": 1.0, "low": 1.0, "high": 1.0}},
            "degenerate": {"guarded": {"n": 200, "wins": 0}},
        }  # fmt: skip
        return TrustedJudge(self, report)


def cpu_s_a_step(lm: dspy.LM, rows: list[dict], settings: dict, *, known: bool, stock: bool = False) -> float:
    """CPU seconds of the process for one training step, the first ones left out; `stock`: by TRL's own head."""
    clock: list[float] = []
    task = replace(
        lm.provider._task(lm.model, rows, None, {**settings, "resume": False}),
        report=lambda progress: clock.append(time.process_time()),
    )
    with (
        patch.dict(objectives.REFERRING, {"precompute_ref_log_probs": known}),
        patch.object(objectives, "_on_labels", (lambda *_: False) if stock else objectives._on_labels),
    ):
        fit(task)
    return (clock[-1] - clock[WARM_STEPS - 1]) / (len(clock) - WARM_STEPS)


def questions_a_minute(program: dspy.Module, examples: list[dspy.Example], judge: TrustedJudge, threads: int) -> float:
    """Questions a minute of wall time, from four rollouts each to a preference or none."""
    source = JudgedRollouts(judge, n=4, questions=len(examples), threads=threads)
    begun = time.perf_counter()
    source.make(program, examples, [], round=1)
    return 60 * len(examples) / (time.perf_counter() - begun)


def main() -> None:
    """Print both ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=32)
    args = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.ERROR)
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    dspy.configure(adapter=adapter)
    corpus = write_corpus(known_houses()[:4], 8, seed=7)
    examples = [example for example in to_examples(corpus) if example.found][: args.questions]
    with tempfile.TemporaryDirectory() as work:
        lm = local_lm("evergreen-base", work_dir=work, max_tokens=96)
        program = Shown(corpus)
        program.set_lm(lm)
        known, computed, stock, beforehand = _steps(lm, program, examples, adapter, args.steps, args.rounds)
        print(
            f"DPO step: {known:.2f} CPU s with a known reference; computed in the step {computed:.2f}, "
            f"{computed / known:.2f} times; TRL's {stock:.2f}, {stock / known:.2f} times; "
            f"the reference beforehand {beforehand:.2f} CPU s a batch, once for all epochs"
        )
        judge, ways = GoldJudge(examples).trusted(), {}
        for _ in range(args.rounds):
            for threads in (1, args.threads):
                ways[threads] = max(ways.get(threads, 0.0), questions_a_minute(program, examples, judge, threads))
    one, many = ways[1], ways[args.threads]
    print(f"questions a minute: {many:.0f} in {args.threads} threads, {one:.0f} one by one: {many / one:.2f} times")


def _steps(
    lm: dspy.LM, program: dspy.Module, examples: list[dspy.Example], adapter: dspy.Adapter, steps: int, rounds: int
) -> tuple[float, float, float, float]:
    signature, preferences = program.reviewer.predict.signature, []
    for example in examples:
        shown = program.passages[example.contract_id, example.question]
        inputs = {"passages": number_passages([p.text for p in shown]), "question": example.question}
        texts = [
            review_text(adapter, signature, quotes, answer)
            for quotes, answer in ((example.quotes, example.answer), ([], NOT_FOUND))
        ]
        preferences.append(Preference(0, inputs, *texts, example.contract_id, example.question, "gold"))
    rows = preference_rows(program, preferences, "dpo", adapter)
    begun = time.process_time()
    referred = with_reference(lm.engine, lm.model, rows)
    batch = 4
    beforehand = (time.process_time() - begun) / (len(rows) / batch)
    settings = {"method": "dpo", "max_steps": steps, "batch_size": batch, "progress": False}
    known, computed, stock = [], [], []
    for _ in range(rounds):
        known.append(cpu_s_a_step(lm, referred, settings, known=True))
        computed.append(cpu_s_a_step(lm, rows, settings, known=False))
        stock.append(cpu_s_a_step(lm, rows, settings, known=False, stock=True))
    return min(known), min(computed), min(stock), beforehand


if __name__ == "__main__":
    main()
