"""A judge's prompt compiled against people, a whole measurement as the command runs it, and the bundled base."""

import dspy
import pytest

from corpora.synthetic import write_corpus
from modules.degenerate import Guarded
from modules.judge import JudgeError
from modules.judge_likelihood import LikelihoodJudge
from modules.judge_pairwise import CompareJudge, PairJudge
from modules.judge_pointwise import PointJudge
from optimizers.errors import TrainingError
from optimizers.local_lm import local_lm
from program import label as label_module
from program.base_model.train import known_houses
from program.compile import build_adapter
from program.judging.cases import degenerate_cases, judge_cases
from program.judging.compile import agrees, compile_judge, half_for_ties, to_example
from program.judging.measure import ask_judge
from program.judging.report import judge_report
from program.judging.run import make_judge, run_judge
from program.judging.trust import TrustedJudge

CORPUS = write_corpus(("juniper",), 8, seed=3)
PAIRS = [pair for pair in judge_cases(CORPUS, 60, 0) if pair.kind == "absent where found"]


def pair_says(letter_of):
    """An LM that quotes the first passage's first words and says the letter that `letter_of(prompt)` gives."""

    def say(prompt):
        passage = prompt.rpartition("[[ ## passages ## ]]\n[1] ")[2].split("\n")[0]
        quote = " ".join(passage.split()[:6])
        fields = {"quote": quote, "reason": "So it says.", "verdict": letter_of(prompt)}
        return "\n\n".join([*(f"[[ ## {k} ## ]]\n{v}" for k, v in fields.items()), "[[ ## completed ## ]]"])

    return say


def not_the_absent(prompt):
    """Right on PAIRS: whatever says something is better than absence."""
    return "B" if "not in this contract" in prompt.rpartition("[[ ## answer_a ## ]]")[2].split("[[ ##")[0] else "A"


# -- compile


def test_agreement_counts_a_tie_half_and_demonstrations_ask_for_all_of_it():
    assert [half_for_ties(*pair) for pair in (("A", "A"), ("A", "tie"), ("tie", "B"), ("A", "B"))] == [1, 0.5, 0.5, 0]
    example, said = to_example(PAIRS[0]), dspy.Prediction(winner="tie")
    assert agrees(example, said) == 0.5 and agrees(example, said, trace=[]) is False
    told = agrees(example, said, None, "predict", None)
    assert told.score == 0.5 and "tie" in told.feedback and PAIRS[0].winner in told.feedback
    assert set(example.inputs().keys()) == {"case", "a", "b"}


def test_demonstrations_are_compiled_in_and_chosen_on_other_contracts(speaking):
    """The LM judges well once it is shown how; the demonstrations come from contracts that do not decide."""
    judge = PairJudge()
    judge.set_lm(speaking(pair_says(lambda prompt: "tie")))
    lm = judge.predict.lm
    lm.engine.say = lambda prompt: pair_says(
        not_the_absent if lm.engine.whole[-1].count("verdict ## ]]\n") > 3 else lambda p: "A"
    )(prompt)
    compiled = compile_judge(
        judge, PAIRS, lambda metric: dspy.LabeledFewShot(k=4) if metric is agrees else None, threads=1
    )
    assert compiled.kept and compiled.before < compiled.after == 1.0
    shown = {demo["passages"] for demo in compiled.judge.predict.demos}
    held_out = {to_example(pair).passages for pair in PAIRS if pair.contract_id in compiled.contracts}
    assert shown and not shown & held_out
    assert not judge.predict.demos


def test_a_compiled_judge_that_agrees_no_better_is_not_kept(speaking):
    judge = PairJudge()
    judge.set_lm(speaking(pair_says(not_the_absent)))
    compiled = compile_judge(judge, PAIRS, lambda metric: dspy.BootstrapFewShot(metric=metric), threads=1)
    assert not compiled.kept and compiled.judge is judge and compiled.before == compiled.after == 1.0


def test_a_judge_is_not_compiled_on_what_would_choose_it(speaking):
    few = [pair for pair in PAIRS if pair.contract_id in sorted({p.contract_id for p in PAIRS})[:3]]
    with pytest.raises(TrainingError, match="at least 4"):
        compile_judge(PairJudge(), few, lambda metric: dspy.BootstrapFewShot(metric=metric))


# -- the command


def test_the_command_measures_a_judge_and_leaves_a_report(
    tmp_path, small_corpus, tiny_model, monkeypatch, words_embedder
):
    small_corpus(tmp_path / "corpus.json", n_contracts=4)
    monkeypatch.setattr(label_module, "load_embedder", words_embedder)
    built = label_module.build_lm
    monkeypatch.setattr(label_module, "build_lm", lambda config, scratch: built(_tiny(config, tiny_model()), scratch))
    result = run_judge(
        None,
        tmp_path / "corpus.json",
        tmp_path / "out",
        n=5,
        n_degenerate=6,
        threads=2,
        progress=False,
        say=lambda _: None,
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"judge_report.json", "judge_report.html"}
    assert result.report["judge"]["name"].startswith("Guarded(LikelihoodJudge) on local/qwen3")
    assert not result.report["trusted"]["ok"] and "are needed" in result.lines[-1]


def _tiny(config, folder):
    from dataclasses import replace

    return replace(config, lm=str(folder), max_tokens=24)


def test_judges_by_name_ask_the_programs_lm(world):
    from program.contract_review import ContractReview

    program = ContractReview(world.index, 4)
    program.set_lm(lm := dspy.LM("local/x"))
    kinds = {"likelihood": LikelihoodJudge, "pairwise": PairJudge, "points": PointJudge, "compare": CompareJudge}
    for name, kind in kinds.items():
        judge = make_judge(name, program)
        assert isinstance(judge, kind) and judge.predictors()[0].lm is lm
    other = make_judge("openai/gpt-4o-mini", program)
    assert isinstance(other, PairJudge) and other.predict.lm.model == "openai/gpt-4o-mini"


# -- the bundled base


@pytest.mark.slow
def test_the_bundled_base_judges_contracts_that_it_knows(tmp_path):
    """`evergreen judge` tells its kappa; here that it is far from chance, and that five pairs prove nothing."""
    corpus = write_corpus(known_houses(), 10, seed=77)
    gold = judge_cases(corpus, 20, 0)
    with dspy.context(lm=local_lm("evergreen-base", work_dir=tmp_path, max_tokens=320), adapter=build_adapter()):
        judge = Guarded(LikelihoodJudge())
        outcomes = ask_judge(judge, gold, threads=8)
        assert sum(one.right for one in outcomes) >= 17
        report = judge_report(judge, gold[:5], degenerate_cases(corpus, 12, 0), threads=8, seed=0)
        assert report["degenerate"]["guarded"]["wins"] == 0
        with pytest.raises(JudgeError, match="50 are needed"):
            TrustedJudge(judge, report)
