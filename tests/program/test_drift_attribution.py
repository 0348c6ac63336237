import pytest

from program.drift.attribution import REMEDIES, attribute
from program.drift.settings import DEFAULT_SIGNALS
from program.drift.types import DriftReport, SignalResult

_ALL = (*DEFAULT_SIGNALS, "ratings")


def _report(moved, *, suspect=(), rose=(), tested=_ALL, alarm=True):
    signals = tuple(
        SignalResult(name, 0.3, 0.0001, None, 0.2 if name in rose else -0.2, 100, 100, f"about {name}")
        for name in tested
    )
    return DriftReport(
        0.0,
        "tested",
        "",
        0.0,
        1.0,
        100,
        30,
        signals=signals,
        moved=tuple(moved),
        suspect=(*moved, *suspect),
        alarm=alarm,
    )


@pytest.mark.parametrize(
    ("moved", "suspect", "kind", "plan"),
    [
        (["passage_embedding"], [], "corpus", ["re-index"]),
        (["retrieval_score"], [], "corpus", ["re-index"]),
        (["passage_embedding"], ["confidence"], "corpus", ["re-index", "re-tune weights"]),
        (["question_embedding"], [], "questions", ["recompile prompts"]),
        (["category_mix"], [], "questions", ["recompile prompts"]),
        (["oov_share"], [], "questions", ["recompile prompts"]),
        (["passage_embedding", "oov_share"], [], "questions", ["re-index", "recompile prompts"]),
        (["passage_embedding"], ["category_mix"], "questions", ["re-index", "recompile prompts"]),
        (
            ["ratings", "retrieval_score"],
            ["category_mix"],
            "questions",
            ["re-index", "recompile prompts", "re-tune weights"],
        ),
        (["confidence"], [], "model", ["re-tune weights"]),
        (["abstention"], [], "model", ["re-tune weights"]),
        (["judge_score"], [], "model", ["re-tune weights"]),
        (["ratings"], ["judge_score"], "model", ["re-tune weights"]),
        (["ratings"], [], "reviewers/unknown", [REMEDIES["reviewers/unknown"]]),
    ],
)
def test_the_table(moved, suspect, kind, plan):
    cause = attribute(_report(moved, suspect=suspect))
    assert (cause.kind, list(cause.plan)) == (kind, plan)
    assert all(any(f"about {name}" in reason for reason in cause.reasons) for name in [*moved, *suspect])


def test_ratings_fall_without_a_judge_to_say_otherwise():
    tested = [name for name in _ALL if name != "judge_score"]
    assert attribute(_report(["ratings"], tested=tested)).kind == "model"


def test_more_confident_on_the_same_inputs_is_no_fall():
    cause = attribute(_report(["confidence"], rose=["confidence"]))
    assert cause.kind == "reviewers/unknown" and cause.plan == (REMEDIES["reviewers/unknown"],)
    # Withheld more often is a change of the model, in whichever direction.
    assert attribute(_report(["abstention"], rose=["abstention"])).kind == "model"
    # Answers that improved with other inputs need no weights.
    assert attribute(_report(["oov_share", "confidence"], rose=["confidence"])).plan == ("recompile prompts",)


def test_no_alarm_no_cause():
    assert attribute(_report([], alarm=False)).kind == "none"
    assert attribute(_report(["confidence"], alarm=False)).plan == ()
