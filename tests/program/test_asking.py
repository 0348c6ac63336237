import re

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError

from program.asking import RETRY_TEMPERATURE, LabelingError, Tally, ask_all, remote, resampled

READABLE = "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"
UNREADABLE = {
    "garbage": "\x00\ufffd }{ ]] ## [[",
    "half JSON": '{"answer": "ye',
    "a refusal": "I'm sorry, but I cannot help with contracts.",
    "another field": "[[ ## reason ## ]]\nbecause\n\n[[ ## completed ## ]]",
    "nothing": "",
}
SLOW = dspy.lm15.TimeoutError("nobody answered in 60 s")


def asked(lm, n=10, **options):
    """What `ask_all` gives for `n` questions, and its tally."""
    program, tally = dspy.Predict("question -> answer"), Tally()
    program.lm = lm
    inputs = [{"question": f"question {i} of {n}"} for i in range(n)]
    return ask_all(program, inputs, tally, **{"threads": 4} | options), tally


def counting(faults):
    """Says `faults[i]` to question i for as long as it lasts, a list of what comes instead; then READABLE."""
    left = {i: list(said) for i, said in faults.items()}

    def say(prompt):
        for i, said in left.items():
            if f"question {i} of" in prompt and said:
                return said.pop(0)
        return READABLE

    return say


def test_answers_come_in_order_and_are_counted(speaking):
    lm = speaking(lambda prompt: READABLE.replace("yes", re.search(r"question (\d+) of", prompt)[1]))
    results, tally = asked(lm)
    assert [result.answer for result in results] == [str(i) for i in range(10)]
    assert tally == Tally(calls=10)
    assert asked(lm, 0) == ([], Tally())


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_cannot_be_read_is_asked_again_and_never_an_answer(speaking, what):
    once, ever = [UNREADABLE[what]], [UNREADABLE[what]] * 99
    results, tally = asked(speaking(counting({2: once, 5: ever})))
    assert [isinstance(result, AdapterParseError) for result in results] == [i == 5 for i in range(10)]
    assert all(result.answer == "yes" for i, result in enumerate(results) if i != 5)
    assert tally == Tally(calls=10 + 2 + 1, again=3, unreadable=1)


def test_every_answer_unreadable_is_counted_and_no_failure_of_the_machinery(speaking):
    results, tally = asked(speaking(lambda prompt: "no"), 20)
    assert all(isinstance(result, AdapterParseError) for result in results)
    assert tally == Tally(calls=24, again=4, unreadable=20)  # a fifth is asked again, in all


def test_a_program_may_say_itself_that_it_could_not_read(speaking):
    class Review(dspy.Module):
        def forward(self, question):
            said.append(question)
            return dspy.Prediction(readable=len(said) > 1, answer="")

    said, tally = [], Tally()
    (result,) = ask_all(Review(), [{"question": "q"}], tally, threads=1)
    assert result.readable and tally == Tally(calls=2, again=1)


@pytest.mark.parametrize("threads", [1, 8])
def test_every_tenth_call_that_times_out_is_tried_again_within_the_budget(speaking, threads):
    calls = []

    def say(prompt):
        calls.append(prompt)
        return SLOW if len(calls) % 10 == 0 else READABLE

    results, tally = asked(speaking(say), 60, threads=threads)
    assert all(result.answer == "yes" for result in results)
    assert tally.calls == len(calls) == 60 + tally.again and 6 <= tally.again <= 7 and tally.failed == 0


def test_retries_end_with_the_budget(speaking):
    ever = {i: [SLOW] * 99 for i in range(8)}
    results, tally = asked(speaking(counting(ever)), 40, retries=9, retry_share=0.25)
    assert tally == Tally(calls=50, again=10, failed=8)  # 8 once more, then 2 of them
    assert [isinstance(result, dspy.LMError) for result in results] == [i < 8 for i in range(40)]
    _, tally = asked(speaking(counting({0: [SLOW] * 99})), 5, retries=0)
    assert tally == Tally(calls=5, failed=1)
    _, tally = asked(speaking(counting({0: [SLOW] * 99})), 5, retry_share=0.0)
    assert tally == Tally(calls=7, again=2, failed=1)  # three are always there


def test_too_many_failed_calls_end_it_with_the_first_as_the_cause(speaking):
    with pytest.raises(LabelingError, match=r"(?s)4 of 10 calls failed, 2 more tries.*30%.*nobody answered") as caught:
        asked(speaking(counting({i: [SLOW] * 9 for i in range(4)})))
    assert isinstance(caught.value.__cause__, dspy.LMError)
    results, tally = asked(speaking(counting({i: [SLOW] * 9 for i in range(3)})))
    assert tally.failed == 3 and sum(isinstance(result, Exception) for result in results) == 3
    with pytest.raises(LabelingError, match="1[0-9] of 40"):
        asked(speaking(counting({i: [SLOW] * 9 for i in range(13)})), 40)
    _, tally = asked(speaking(counting({i: [SLOW] * 9 for i in range(12)})), 40)
    assert tally.failed == 12


def test_a_tally_goes_on_over_several_batches(speaking):
    program, tally = dspy.Predict("question -> answer"), Tally()
    program.lm = speaking(counting({0: ["no"] * 9}))
    for _ in range(2):
        ask_all(program, [{"question": "question 0 of 2"}, {"question": "question 1 of 2"}], tally, threads=1)
    assert tally == Tally(calls=8, again=4, unreadable=2)


def test_what_is_asked_again_is_another_sample():
    program = dspy.Predict("question -> answer")
    program.lm = dspy.LM("openai/x", api_key="none", temperature=0.0)
    first, second = (resampled(program, i).lm for i in (1, 2))
    assert [lm.kwargs["rollout_id"] for lm in (first, second)] == [1, 2]
    assert first.kwargs["temperature"] == RETRY_TEMPERATURE and program.lm.kwargs["temperature"] == 0.0
    program.lm = dspy.LM("openai/x", api_key="none", temperature=0.2)
    assert resampled(program, 1).lm.kwargs["temperature"] == 0.2
    own, program.lm = program.lm, None
    with dspy.context(lm=own):
        assert resampled(program, 3).lm.kwargs["rollout_id"] == 3 and program.lm is None


def test_a_remote_labeller_is_an_lm_and_none_is_none():
    assert remote(None) is None and remote("openai/x").model == "openai/x"


def test_a_remote_model_is_asked_for_log_probabilities_where_it_gives_them():
    assert remote(None) is None
    assert remote("openai/gpt-4o-mini").kwargs["logprobs"] is True
    assert "logprobs" not in remote("anthropic/claude-3-5-sonnet-20240620").kwargs
