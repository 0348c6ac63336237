"""What the drift watch sees and says: frozen data.

One real row:

    Observation(at=1795338843.1, contract_id="acme-2019", question_embedding=(0.02, -0.11, ...), retrieval_score=0.71,
                passage_embedding=(0.05, 0.01, ...), confidence=0.42, p_answered=0.97, abstained=False,
                category="Governing Law", words=("which", "law", "governs"), judge_score=None, rating=1.0)

None is "not measured"; nan is a fault and refused. The contract is the unit that is exchangeable: questions of one
contract stand or fall together. Where contracts come in batches (a client's data room), give the batch's name instead.
`words` are only compared, so that hashes of words serve as well as words.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["tested", "too few", "not due"]


class DriftError(ValueError):
    """Observations, windows, settings or a state that the drift watch cannot use; the message says what to do."""


class TooFewError(DriftError):
    """A signal is measured for too few contracts of a window to be tested."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Observation:
    """One served answer. `at` in seconds since 1970, UTC; `passage_embedding` is the mean of the passages shown.

    `contract_id` "" is a question to no contract of its own. `confidence`, `p_answered` and `rating` are in [0, 1],
    `retrieval_score` and `judge_score` in any unit that stays the same; `category` is None for a free question.
    """

    at: float
    contract_id: str = ""
    question_embedding: Sequence[float] | None = None
    passage_embedding: Sequence[float] | None = None
    retrieval_score: float | None = None
    confidence: float | None = None
    p_answered: float | None = None
    abstained: bool = False
    category: str | None = None
    words: tuple[str, ...] = ()
    judge_score: float | None = None
    rating: float | None = None


@dataclass(frozen=True, slots=True)
class SignalResult:
    """One signal, reference against current; `about` is one sentence for people.

    Either `p_value` or `e_value` is given. `effect` is signed, current less reference, in the signal's own unit
    (a share, a score); a distance (embeddings, category mix) has no sign. `n_...` are observations that were measured.
    """

    name: str
    statistic: float
    p_value: float | None
    e_value: float | None
    effect: float
    n_reference: int
    n_current: int
    about: str


@dataclass(frozen=True, slots=True)
class DriftReport:
    """What one check found.

    `status` "tested"; "too few" and "not due" are no tests and cost nothing, `about` then says what they wait for.
    `moved`: signals beyond the threshold that keeps the false-alarm rate. `suspect`: those, and those beyond a looser
    one, for attribution only. `alarm`: something moved, as often in a row as the settings ask. `since`: the start of
    the window in which the signals of the alarm first looked unusual, without a break until now. `skipped`: (signal,
    why it was not tested). `repeated`: this window was checked before, and this is what was said then.
    """

    at: float
    status: Status
    about: str
    start: float
    stop: float
    n: int
    n_contracts: int
    signals: tuple[SignalResult, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    moved: tuple[str, ...] = ()
    suspect: tuple[str, ...] = ()
    alarm: bool = False
    since: float | None = None
    repeated: bool = False


def report_to_json(report: DriftReport) -> dict[str, Any]:
    """The report as plain JSON values."""
    return asdict(report)


def report_from_json(row: dict[str, Any]) -> DriftReport:
    """What `report_to_json` gave, as a report; DriftError for anything else."""
    try:
        return DriftReport(
            **{
                **row,
                "signals": tuple(SignalResult(**one) for one in row["signals"]),
                "skipped": tuple((name, why) for name, why in row["skipped"]),
                "moved": tuple(row["moved"]),
                "suspect": tuple(row["suspect"]),
            }
        )
    except (TypeError, KeyError, ValueError) as error:
        raise DriftError(f"this is no drift report ({error!r}); give what report_to_json made") from error
