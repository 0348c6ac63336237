"""The judges that can be asked for by name."""

import dspy

from modules.judge import Judge
from modules.judge_likelihood import LikelihoodJudge
from modules.judge_pairwise import CompareJudge, PairJudge
from modules.judge_pointwise import PointJudge
from program.asking import remote
from program.contract_review import ContractReview

JUDGES = ("likelihood", "pairwise", "points", "compare")


def make_judge(name: str, program: ContractReview) -> Judge:
    """One of JUDGES on the LM of a program's reviewer, or PairJudge on the litellm model `name`."""
    lm = program.reviewer.predict.lm or dspy.settings.lm
    if name == "likelihood":
        return LikelihoodJudge(program.reviewer)
    made = {"pairwise": PairJudge, "points": PointJudge, "compare": CompareJudge}.get(name, PairJudge)()
    made.set_lm(lm if name in JUDGES else remote(name))
    return made
