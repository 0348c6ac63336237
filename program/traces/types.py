"""What is kept of an answer that was given: frozen data. Offsets are half-open and count in `Contract.text`.

One real row:

    Trace(id="0b6e...", at="2026-11-22T09:14:03.120551Z", release="runs/mine", question="Which law governs?",
          question_sha256="4c1f...", contract_id="acme-2019", category=None, answer="Ohio", found=True, n_quotes=1,
          n_ungrounded=0, spans=((5120, 5137),), confidence=0.42, p_answered=0.97, scores=(0.031, 0.029),
          passages=("acme-2019:5100-5300", "acme-2019:0-200"), latency_s=0.8, prompt_tokens=812, completion_tokens=31,
          error=None, shadow=False, answer_id="5c...")
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One question that was put to a program, and what came of it: an answer, or `error`.

    `question` and `answer` are None where the policy keeps no text. `question_sha256` is 64 hex characters, a hash
    salted by the store's secret: equal questions in one store have equal ones; "" until it is recorded. `category` is
    CUAD's name, None for other questions; `contract_id` is "" where all contracts were searched. `n_ungrounded` counts
    quotes whose text does not stand at their offsets in the contract, None where the contract's text was not at hand.
    `scores` are those of `passages`, in retrieval's order, the best first; empty where they are not known. Tokens are
    those of all LM calls of the answer, None where the LM does not tell (an answer from the cache). `error` is class
    and message of what was raised, and `found` None then, unless the answer was there and could not be recorded.
    `shadow`: a candidate answered, and nobody saw it. `answer_id` is that of the feedback store, None for an answer
    that is not in it; of a shadow that of the answer which was shown in its place.
    """

    id: str
    at: str
    release: str
    question: str | None
    question_sha256: str = ""
    contract_id: str
    category: str | None = None
    answer: str | None = None
    found: bool | None = None
    n_quotes: int = 0
    n_ungrounded: int | None = None
    spans: tuple[tuple[int, int], ...] = ()
    confidence: float | None = None
    p_answered: float | None = None
    scores: tuple[float, ...] = ()
    passages: tuple[str, ...] = ()
    latency_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None
    shadow: bool = False
    answer_id: str | None = None
