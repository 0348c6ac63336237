"""Both sides are timed in turn, on answers of one kind, from no cache."""

from contextlib import contextmanager
from types import SimpleNamespace

import dspy
import pytest

from corpora.synthetic import write_corpus
from program.renewal import timing

CORPUS = write_corpus(("juniper",), 6, seed=2)


class Timed(dspy.Module):
    """Answers after `seconds` on a clock of its own, absent where `absent(question)`; with a predictor to look at."""

    def __init__(self, clock, seconds, absent):
        super().__init__()
        self.predict = dspy.Predict("question -> answer")
        self.predict.lm = dspy.LM("openai/none", api_key="none")
        self.clock, self.seconds, self.absent, self.asked = clock, seconds, absent, []

    def forward(self, question, contract_id):
        self.asked.append(question)
        self.clock["now"] += self.seconds + (0.5 if len(self.asked) % 7 == 0 else 0.0)  # now and then a hiccup
        return dspy.Prediction(found=not self.absent(question))


@pytest.fixture
def sides(monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock["now"])
    made = {
        "base": Timed(clock, 0.1, lambda question: True),
        "live": Timed(clock, 0.2, lambda question: "Insurance" in question),
        "candidate": Timed(clock, 0.3, lambda question: False),
    }

    @contextmanager
    def programs(progress):
        yield lambda name, corpus: made[name]

    monkeypatch.setattr(timing, "programs", programs)
    monkeypatch.setattr(timing, "rounds_of", lambda runs: ["base", *runs])
    return SimpleNamespace(**made)


def test_answers_of_one_kind_are_timed_and_the_shortest_of_several_counts(sides):
    told = timing.side_by_side("live", "candidate", CORPUS)
    assert told["incumbent"].keys() == told["candidate"].keys() and 10 < len(told["candidate"]) <= 32
    assert not any("Insurance" in key for key in told["candidate"]), "one answers it, the other does not"
    assert all(seconds == pytest.approx(0.2) for seconds in told["incumbent"].values())
    assert all(seconds == pytest.approx(0.3) for seconds in told["candidate"].values())
    assert all(side.predict.lm.cache is False for side in (sides.live, sides.candidate)) and not sides.base.asked


def test_a_first_candidate_is_timed_beside_the_base(sides):
    told = timing.side_by_side(None, "candidate", CORPUS)
    assert sides.base.asked and not sides.live.asked
    assert told == {"incumbent": {}, "candidate": {}}, "the base answers nothing, the candidate everything"
