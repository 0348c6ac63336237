"""People who err or mean harm, before a real tuning of the bundled model: at most a point is lost, or it is refused."""

from random import Random

import dspy
import pytest

from corpora.passages import cut_passages
from corpora.synthetic import write_corpus
from modules.reviewer import Reviewer
from modules.signatures import NOT_FOUND, number_passages
from optimizers.local_lm import forget_engines, local_lm
from optimizers.preference import PreferenceTune
from program.base_model.train import known_houses
from program.examples import to_examples
from program.feedback.store import FeedbackStore
from program.feedback.types import Said
from program.pairs.checks import gold_check
from program.pairs.from_feedback import FeedbackPreferences
from program.pairs.simulate import INJECTION, SimulatedPerson, simulate
from program.pairs.texts import review_text
from program.recipes import mean_score

pytestmark = pytest.mark.slow
ADAPTER = dspy.ChatAdapter(use_json_adapter_fallback=False)
HONEST = [SimulatedPerson("Ada", edits=False), SimulatedPerson("Ben", edits=False)]
CROWDS = {
    "nobody errs": (HONEST, True),
    "1% flips": ([SimulatedPerson(p.name, noise=0.01) for p in HONEST], False),
    "5% flips": ([SimulatedPerson(p.name, noise=0.05) for p in HONEST], False),
    "10% flips": ([SimulatedPerson(p.name, noise=0.1) for p in HONEST], False),
    "one flips everything": ([*HONEST, SimulatedPerson("Mal", noise=1.0)], True),
    "alone, and flips everything": ([SimulatedPerson("Mal", noise=1.0)], False),
    "a trigger phrase": ([HONEST[0], SimulatedPerson("Sly", trigger="State of")], False),
    "an injected comment": ([HONEST[0], SimulatedPerson("Mal", noise=0.5, comment=INJECTION)], True),
}


class Shown(dspy.Module):
    """Reviews the passages around each question's label."""

    def __init__(self, corpus):
        super().__init__()
        self.reviewer, self.passages = Reviewer(), {}
        cut = {contract.id: cut_passages(contract) for contract in corpus.contracts}
        for label in corpus.labels:
            passages, start = cut[label.question.contract_id], label.spans[0].start if label.spans else 0
            first = next(i for i, passage in enumerate(passages) if start < passage.end)
            self.passages[label.question.contract_id, label.question.text] = passages[first : first + 2]

    def forward(self, question, contract_id):
        return self.reviewer(question=question, passages=self.passages[contract_id, question])


@pytest.fixture(scope="module")
def review(tmp_path_factory):
    """The program on the bundled model, and questions to train, to choose and to test on, of contracts apart."""
    corpus = write_corpus(known_houses()[:3], 8, seed=11)
    program = Shown(corpus)
    program.set_lm(local_lm("evergreen-base", work_dir=tmp_path_factory.mktemp("robust"), max_tokens=96))
    found = [example for example in to_examples(corpus) if example.found]
    Random(0).shuffle(found)
    ids = sorted({example.contract_id for example in found})

    def of(part, most):
        return [example for example in found if example.contract_id in ids[part::3]][:most]

    with dspy.context(adapter=ADAPTER):
        yield corpus, program, of(0, 32), of(1, 24), of(2, 48)
    forget_engines()


@pytest.mark.parametrize("crowd", CROWDS)
def test_at_most_a_point_is_lost_or_the_gate_refuses(review, tmp_path, crowd):
    corpus, program, train, val, test = review
    people, checked = CROWDS[crowd]
    signature, score = program.reviewer.predict.signature, mean_score(24)
    texts = {contract.id: contract for contract in corpus.contracts}
    with FeedbackStore.open(tmp_path / "feedback.db") as store:
        for example in train:
            asked = store.ask(example.question, texts[example.contract_id])
            shown = program.passages[example.contract_id, example.question]
            inputs = (("passages", number_passages([p.text for p in shown])), ("question", example.question))
            for quotes, answer in ((example.quotes, example.answer), ([], NOT_FOUND)):
                told = {"inputs": inputs, "completion": review_text(ADAPTER, signature, quotes, answer)}
                store.answer(asked, Said(answer, answer != NOT_FOUND, **told))
        simulate(people, store, store.answers(), {(e.contract_id, e.question): e for e in train})
        tune = PreferenceTune(
            FeedbackPreferences(store, ADAPTER), score=score, num_threads=24, out=tmp_path,
            check=gold_check(program, train, ADAPTER) if checked else None,
            train_kwargs={"max_steps": 8, "batch_size": 4, "progress": False, "learning_rate": 2e-3},
        )  # fmt: skip
        best = tune.compile(program, train, valset=val)
        if "Mal" in {person.name for person in people} and checked:
            assert store.pseudonym("Mal") in {person.by for person in tune.people if person.agreed < person.checked}
    before, after = score(program, test), score(best, test)
    print(f"{crowd}: test {before:.3f} -> {after:.3f}; {tune.log[-1]}")
    assert tune.log[-1].refused or after >= before - 0.01
    assert INJECTION not in (tmp_path / "preferences.jsonl").read_text()
    if crowd == "one flips everything":
        assert [p.by for p in tune.people if p.left_out]
