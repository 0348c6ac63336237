"""Labels as DSPy examples, and samples of them."""

from random import Random

import dspy

from corpora.errors import CorpusError
from corpora.types import Corpus, Label
from modules.signatures import NOT_FOUND


def to_examples(corpus: Corpus) -> list[dspy.Example]:
    """One example per label, in order: inputs `question` and `contract_id`; gold `answer`, `quotes`, `found`, `spans`.

    `spans` are the quotes' half-open character offsets in the contract. Raises CorpusError for a corpus without
    questions: there would be nothing to train on, or to score.
    """
    if not corpus.labels:
        raise CorpusError(
            f"{corpus.name!r} has {len(corpus.contracts)} contracts and no questions; add some, or contracts"
        )
    texts = {contract.id: contract.text for contract in corpus.contracts}
    return [_to_example(label, texts[label.question.contract_id]) for label in corpus.labels]


def _to_example(label: Label, text: str) -> dspy.Example:
    quotes = [text[span.start : span.end] for span in label.spans]
    return dspy.Example(
        question=label.question.text, contract_id=label.question.contract_id,
        question_id=label.question.id, category=label.question.category,
        answer=(label.answer or ", ".join(quotes)) if quotes else NOT_FOUND, quotes=quotes, found=bool(quotes),
        spans=[(span.start, span.end) for span in label.spans],
    ).with_inputs("question", "contract_id")  # fmt: skip


def sample_examples(
    examples: list[dspy.Example], n: int | None, seed: int, found_share: float = 0.5
) -> list[dspy.Example]:
    """`n` examples drawn without replacement, `found_share` of them with an answer as far as there are such; all
    where None.

    Training and validation samples are balanced because two thirds of all questions have no answer, and "not in this
    contract" every time would score well. Scores are never taken on such a sample.
    """
    if n is None or n >= len(examples):
        return list(examples)
    rng = Random(seed)
    found = [e for e in examples if e.found]
    absent = [e for e in examples if not e.found]
    n_found = min(len(found), max(round(n * found_share), n - len(absent)))
    drawn = rng.sample(found, n_found) + rng.sample(absent, n - n_found)
    rng.shuffle(drawn)
    return drawn
