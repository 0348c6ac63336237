"""A sample of what the live release answered, judged for the drift watch, within a budget of calls.

    said = judge_sample(home, config, contracts)     # "12 answers judged, mean 0.81; 40 wait"

    home/judged.jsonl               what was said of which answer (program/traces/judged.py); nothing is judged twice
    home/judge/<identity>/          the report that speaks for the judge, measured once on the frozen test set
    home/judge/calls/               its LM's answers, remembered: a look that was killed or ran out of calls goes on

Which answers is drawn by a hash of seed and trace, so that nothing said in an answer has a part in it. A release's
scores are all of one judge, the one that its reference was judged by. Not handled: traces without words (the policy
"hash"), and those whose personal data is masked, which are judged as they are written.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dspy.utils.exceptions import AdapterParseError

from corpora.cuad import read_cuad
from corpora.types import Contract
from modules.degenerate import Guarded
from modules.judge import Candidate, Case, JudgeError
from optimizers.parallel import in_parallel
from program.evaluate import MAX_FAILED_SHARE, EvaluationError
from program.evaluate_run import open_run
from program.judging.cases import cases_for
from program.judging.kinds import make_judge
from program.judging.report import judge_report, write_judge_report
from program.judging.trust import TrustedJudge, judge_identity
from program.releases.store import ReleaseStore
from program.releases.types import Release
from program.renewal.calls import paid_calls, remembered
from program.renewal.config import RenewalConfig
from program.renewal.drifting import WINDOW_DAYS, reference_of
from program.renewal.home import Home
from program.renewal.observing import case_of
from program.runs import BudgetError
from program.traces.judged import Judged, add_judged, read_judged
from program.traces.store import TraceStore
from program.traces.types import Trace

Wanted = tuple[Trace, Case, Candidate]
Opened = AbstractContextManager[tuple[TrustedJudge, str]]
_PAIRS, _DEGENERATE = 100, 200
_THREADS = 8


def judge_sample(
    home: Home,
    config: RenewalConfig,
    contracts: Mapping[str, Contract],
    *,
    open_judge: Callable[[Home, RenewalConfig, Release], Opened] | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> str:
    """Have at most `judge_calls` answers judged by as many calls; what was done in words, "" without a judge.

    Scores that were read are on the disk when this returns or raises; an answer whose call failed has none, and is
    asked about the next time. Raises JudgeError for a judge that its report does not speak for, EvaluationError where
    more than a fifth of the calls fail, StoreError, RunError.
    """
    live = ReleaseStore.open(home.releases).live()
    if config.judge is None or live is None or not home.traces.is_file():
        return ""
    reference = reference_of(home, live.id)
    if reference is not None and not (reference.judge_score == reference.judge_score).any():
        return f"the reference of {live.id} was collected without a judge; the next release's begins with it"
    since = None
    if reference is not None:
        since = max(reference.stop, (now() - timedelta(days=WINDOW_DAYS)).timestamp())
    known = [one for one in read_judged(home.judged) if one.release == live.id]
    wanted = _sample(home, live.id, contracts, since, {one.trace for one in known}, config)
    if not wanted:
        return "no answer waits to be judged"
    with (open_judge or open_trusted)(home, config, live) as (judge, identity):
        if others := {one.judge for one in known} - {identity}:
            return (
                f"{live.id} was judged by {min(others)} so far, and scores of two judges are not compared: it stays so"
            )
        at = now().isoformat(timespec="seconds")
        return _judge(home, live.id, judge, identity, wanted[: config.judge_calls], at)


@contextmanager
def open_trusted(home: Home, config: RenewalConfig, live: Release) -> Iterator[tuple[TrustedJudge, str]]:
    """The judge of the config on the live program, within its budget, with its identity; it is measured if it is new.

    Raises JudgeError where the report does not speak for it, EvaluationError where calls fail, those that the budget
    refuses among them: what was answered is remembered, and the next look goes on.
    """
    with open_run(live.path) as program:
        judge = Guarded(make_judge(config.judge, program))
        identity, calls = judge_identity(judge), home.path / "judge" / "calls"
        asked = next((one.lm.model for one in judge.predictors() if one.lm is not None), None)
        with remembered(calls, paid=asked, max_calls=paid_calls(calls) + config.judge_calls):
            folder = home.path / "judge" / identity
            if not (folder / "judge_report.json").is_file():
                pairs = cases_for(program, read_cuad(config.frozen), _PAIRS, _DEGENERATE, config.seed)
                told = {"threads": _THREADS, "seed": config.seed, "corpus": Path(config.frozen).name}
                write_judge_report(folder, judge_report(judge, *pairs, **told))
            report = json.loads((folder / "judge_report.json").read_text(encoding="utf-8"))
            yield TrustedJudge(judge, report), identity


def _sample(
    home: Home, release: str, contracts: Mapping[str, Contract], since: float | None, known: set[str],
    config: RenewalConfig,
) -> list[Wanted]:  # fmt: skip
    """What could be judged, in the order in which it is drawn."""
    with TraceStore.open(home.traces) as store:
        start = None if since is None else datetime.fromtimestamp(since, UTC).isoformat()
        traces = [one for one in store.between(start, release=release, shadow=False) if one.id not in known]
    cases = ((one, case_of(one, contracts)) for one in traces)
    found = [(one, *made) for one, made in cases if made is not None]
    return sorted(found, key=lambda one: hashlib.sha256(f"{config.seed}/{one[0].id}".encode()).digest())


def _judge(
    home: Home, release: str, judge: TrustedJudge, identity: str, wanted: Sequence[Wanted], at: str
) -> str:  # fmt: skip
    """Ask about each, keep what was read, and say what became of them."""

    def ask(one: Wanted) -> Judged | str:
        trace, case, said = one
        try:
            score, why = float(judge.grade(case, said).score), ""
        except (JudgeError, AdapterParseError) as error:  # not to be read: no score, and nothing to be asked again
            score, why = None, str(error)[:200]
        except BudgetError:
            return ""
        except Exception as error:  # the machinery: counted below, and asked again
            return f"{type(error).__name__}: {error}"[:200]
        if score is not None and not math.isfinite(score):
            return f"the judge's score is {score}"
        return Judged(trace.id, release, identity, score, at, why)

    outcomes = in_parallel(ask, wanted, threads=_THREADS, progress=False)
    told = [one for one in outcomes if isinstance(one, Judged)]
    add_judged(home.judged, told)
    failed, unasked = [one for one in outcomes if isinstance(one, str) and one], outcomes.count("")
    scores = [one.score for one in told if one.score is not None]
    if len(failed) > MAX_FAILED_SHARE * (len(outcomes) - unasked):
        raise EvaluationError(
            f"{len(failed)} of {len(outcomes) - unasked} calls of the judge failed (limit {MAX_FAILED_SHARE:.0%}); "
            f"the first: {failed[0]}. {len(scores)} scores are kept; mend the calls, the next look goes on"
        )
    words = f"{len(scores)} answers judged" + (f", mean {sum(scores) / len(scores):.2f}" if scores else "")
    for n, what in ((len(told) - len(scores), "verdicts cannot be read"), (len(failed), "calls failed")):
        words += f"; {n} {what}" if n else ""
    return words + (f"; {unasked} wait for the next look's calls" if unasked else "")
