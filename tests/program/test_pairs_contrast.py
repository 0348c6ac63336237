"""Good answers in pairs: against samples that contradict them, under the prompt that they were given to."""

from types import SimpleNamespace

import dspy
import pytest
from dspy.utils import DummyLM

from modules.reviewer import Reviewer
from modules.signatures import NOT_FOUND, number_passages
from optimizers.errors import TrainingError
from optimizers.preference_types import Preference
from program.pairs.contrast import Contrasted
from program.pairs.texts import read_review, review_text

ADAPTER = dspy.ChatAdapter(use_json_adapter_fallback=False)
SIGNATURE = Reviewer().predict.signature


def text_of(answer, quotes=()):
    return review_text(ADAPTER, SIGNATURE, quotes, answer)


def preference(i, chosen, rejected=None):
    inputs = {"passages": number_passages([f"Governed by the laws of Ohio, {i}."]), "question": f"Law {i}?"}
    return Preference(0, inputs, chosen, rejected, f"c{i}", f"Law {i}?", "thumb", by="ada")


class Says(DummyLM):
    """Answers the i-th question by a function of it and of how often it was asked; notes the temperatures."""

    def __init__(self, answer):
        super().__init__([])
        self.answer, self.asked, self.temperatures = answer, {}, set()

    def copy(self, **told):
        self.temperatures.add(told.get("temperature"))
        return self

    def __deepcopy__(self, memo):
        return self

    def forward(self, prompt=None, messages=None, **kwargs):
        question = messages[-1]["content"].split("Law ")[1].split("?")[0]
        self.asked[question] = self.asked.get(question, 0) + 1
        said = self.answer(int(question), self.asked[question])
        if isinstance(said, Exception):
            raise said
        message = SimpleNamespace(content=said, tool_calls=None)
        choice = SimpleNamespace(message=message, finish_reason="stop")
        return SimpleNamespace(choices=[choice], usage={}, model="says")


def contrasted(given, answer, **options):
    lm, program = Says(answer), Reviewer()
    program.set_lm(lm)
    source = Contrasted(SimpleNamespace(make=lambda *args: list(given)), ADAPTER, **options)
    return source.make(program, [], [], 1), source, lm


def said(text):
    return read_review(ADAPTER, SIGNATURE, text).answer


def test_a_good_answer_is_chosen_over_the_first_sample_that_contradicts_it():
    given = [preference(0, text_of(NOT_FOUND)), preference(1, text_of("Ohio", ["Ohio"]))]
    samples = {0: [NOT_FOUND, "Utah"], 1: ["ohio.", NOT_FOUND]}
    made, source, lm = contrasted(given, lambda i, n: text_of(samples[i][n - 1]), samples=3, temperature=0.9)
    assert [said(one.rejected) for one in made] == ["Utah", NOT_FOUND]
    assert [(one.chosen, one.inputs, one.by) for one in made] == [(g.chosen, g.inputs, g.by) for g in given]
    assert lm.asked == {"0": 2, "1": 2}, "nothing is asked once a contradiction is there"
    assert source.counts == [{"pair": 2, "said no other": 0, "failed": 0}] and 0.9 in lm.temperatures


def test_what_nothing_contradicts_stays_unpaired_and_pairs_are_passed_on():
    pair, bad = preference(1, text_of("Ohio"), text_of(NOT_FOUND)), preference(2, None, text_of("Utah"))
    good = preference(0, text_of(NOT_FOUND))
    made, source, lm = contrasted([pair, bad, good], lambda i, n: text_of(NOT_FOUND), samples=2)
    assert made == [pair, bad, good] and lm.asked == {"0": 2}
    assert source.counts[0]["said no other"] == 1


@pytest.mark.parametrize("sample", ["gibberish", text_of("")])
def test_what_cannot_be_read_or_says_nothing_contradicts_nothing(sample):
    made, _, _ = contrasted([preference(0, text_of(NOT_FOUND))], lambda i, n: sample, samples=1)
    assert made[0].rejected is None


def test_an_lm_that_fails_is_no_answer_and_is_told():
    given = [preference(i, text_of(NOT_FOUND)) for i in range(10)]
    with pytest.raises(TrainingError, match="10 of 10 calls .* RuntimeError: out of order"):
        contrasted(given, lambda i, n: RuntimeError("out of order"))
    made, source, _ = contrasted(given, lambda i, n: RuntimeError("once") if i < 3 else text_of("Utah"), samples=1)
    assert [one.rejected is None for one in made] == [True] * 3 + [False] * 7
    assert source.counts[0]["failed"] == 3
