"""What a judge is held against: pairs of answers of which gold, or a person, says which is better."""

from dataclasses import dataclass

from modules.judge import Candidate, Case


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """Two answers to a case, and who is better: `winner` "A", "B" or "tie", by gold (`by` None) or by a person.

    `id` is the same for the same two answers judged by several people; `contract_id` is what intervals are clustered
    by; `kind` says what is wrong with the worse answer, where it is known ("another value", "empty", ...).
    """

    id: str
    contract_id: str
    case: Case
    a: Candidate
    b: Candidate
    winner: str
    kind: str = ""
    by: str | None = None
