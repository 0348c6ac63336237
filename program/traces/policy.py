"""What of a trace may be kept: how many of them, for how long, and which of their words."""

import hashlib
import hmac
import math
from dataclasses import dataclass, replace
from numbers import Real

from modules.personal_data import POLICIES, find_pii, mask_pii
from program.config import ConfigError
from program.traces.redaction import redact_secrets
from program.traces.types import Trace

INPUTS = ("full", "hash")
# Of an answer or a message of any length; a question has fewer.
MAX_CHARS = 10_000


@dataclass(frozen=True, slots=True)
class TracePolicy:
    """What a store keeps; ConfigError for what is not so.

    `inputs` "full" keeps question, answer and error message, "hash" only a salted hash of the question and the class of
    the error. `sample` is the share in [0, 1] of answers that leave a trace; errors all do. `max_rows` and
    `max_age_days` bound the file: the oldest go. `personal_data` "mask" puts "[EMAIL]" and the like in the place of
    what `modules.personal_data` finds, "drop" leaves out each text that has some, "keep" does neither. Secrets are
    redacted under every policy. Ids (contract, passage, release) are kept as they are: name no file after a person.
    """

    inputs: str = "full"
    sample: float = 1.0
    max_rows: int = 200_000
    max_age_days: float = 400
    personal_data: str = "keep"

    def __post_init__(self) -> None:
        for name, allowed in (("inputs", INPUTS), ("personal_data", POLICIES)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        if not _is_number(self.sample) or not 0 <= self.sample <= 1:
            raise ConfigError(f"sample is {self.sample!r}; it must be a share in [0, 1]")
        if type(self.max_rows) is not int or self.max_rows < 1:
            raise ConfigError(f"max_rows is {self.max_rows!r}; it must be a whole number of 1 or more")
        if not _is_number(self.max_age_days) or self.max_age_days <= 0:
            raise ConfigError(f"max_age_days is {self.max_age_days!r}; it must be a number of days above 0")


def is_sampled(trace: Trace, policy: TracePolicy) -> bool:
    """Whether the trace is kept: all errors are, of the rest the policy's share, decided by a hash of the id.

    It is the answer's id where there is one: an answer and its shadow are kept, or left out, together.
    """
    if trace.error is not None or policy.sample >= 1:
        return True
    drawn = int.from_bytes(hashlib.sha256((trace.answer_id or trace.id).encode()).digest()[:8])
    return drawn < policy.sample * 2**64


def kept(trace: Trace, policy: TracePolicy, salt: str) -> Trace:
    """The trace as the policy lets it be kept; `salt`, in hex, is the key of the question's hash."""
    question_sha256 = salted_sha256(trace.question, salt) if trace.question is not None else trace.question_sha256
    if policy.inputs == "hash":
        # A message may quote the prompt or the completion, as DSPy's does that cannot read one: the class must do.
        error = None if trace.error is None else trace.error.partition(":")[0][:MAX_CHARS]
        return replace(trace, question=None, answer=None, error=error, question_sha256=question_sha256)
    texts = {name: _clean(getattr(trace, name), policy) for name in ("question", "answer", "error")}
    if trace.error is not None and texts["error"] is None:
        texts["error"] = trace.error.partition(":")[0]  # it is still an error
    return replace(trace, **texts, question_sha256=question_sha256)


def salted_sha256(text: str, salt: str) -> str:
    """HMAC-SHA256 of the text under the salt, both ways in hex: without the salt no guess at the text can be tried."""
    return hmac.new(bytes.fromhex(salt), text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _clean(text: str | None, policy: TracePolicy) -> str | None:
    if text is None:
        return None
    # Secrets first: in an address with credentials, what stands around the "@" looks like an e-mail address.
    text = redact_secrets(_cut(text))
    if policy.personal_data == "mask":
        return mask_pii(text)
    return None if policy.personal_data == "drop" and find_pii(text) else text


def _cut(text: str) -> str:
    """The text's beginning, without a last word that was cut: half a key would not be known as one."""
    if len(text) <= MAX_CHARS:
        return text
    words = text[:MAX_CHARS].rsplit(None, 1)
    return f"{words[0] if len(words) == 2 else ''} ..."


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
