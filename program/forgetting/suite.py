"""Run the whole suite on a candidate: every frozen skill and ability, and how far it is from the base.

marks, failed = score_suite(store, build=lambda corpus: program_on(corpus, lm), lm=lm, adapter=adapter)
"""

from collections.abc import Callable, Sequence

import dspy

from corpora.types import Corpus
from optimizers.guard_kl import kl_per_token, sample_answers
from optimizers.local_lm.prompts import Chat
from program.evaluate import score_program
from program.examples import to_examples
from program.forgetting.abilities import score_items
from program.forgetting.skills import Mark, SuiteStore, marks_of


def score_suite(
    store: SuiteStore,
    build: Callable[[Corpus], dspy.Module],
    lm: dspy.LM,
    adapter: dspy.Adapter,
    *,
    threads: int = 16,
) -> tuple[list[Mark], int]:
    """Marks of the candidate on every skill of the store, and how many calls failed (left out, never scored).

    `build` gives the candidate program over an index of the corpus it is given; `lm` is the candidate's, for the
    abilities. Raises StoreError for a test set that was changed, EvaluationError and LabelingError for many failures.
    """
    marks, failed = [], 0
    for skill in store.skills():
        if skill.kind == "review":
            corpus = store.corpus(skill)
            rows = score_program(build(corpus), to_examples(corpus), skill.name, threads=threads, progress=False)
            found = marks_of(skill.name, rows)
        else:
            told, _ = score_items(lm, store.items(skill), adapter, threads=threads)
            found = [mark for mark in told if mark.skill == skill.name]
        failed += len(skill.question_ids) - len(found)
        marks += found
    return marks, failed


def marks_on(program: dspy.Module, name: str, corpus: Corpus, threads: int) -> list[Mark]:
    """Marks on a whole test set; a failed call is made once more, since what is frozen has to be whole."""
    examples = to_examples(corpus)
    rows = score_program(program, examples, name, threads=threads, progress=False)
    again = [example for example, row in zip(examples, rows, strict=True) if row["error"] is not None]
    if again:
        rows += score_program(program, again, name, threads=1, progress=False)
    return marks_of(name, rows)


def kl_from_base(
    base: dspy.LM, candidate: dspy.LM, prompts: Sequence[tuple[Chat, str]], *, seed: int = 0
) -> list[tuple[float, str]]:
    """KL(base || candidate), nats per token, on the base's own answers to the new task's prompts, with their contracts.

    `prompts`: conversations, each with its contract's id. What RL's Razor (arXiv:2509.04259) has predict forgetting.
    """
    said = sample_answers(base, [chat for chat, _ in prompts], seed=seed)
    values = kl_per_token(base, candidate, said)
    return [(value, group) for value, (_, group) in zip(values, prompts, strict=True)]
