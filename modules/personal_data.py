"""Personal data in what labels say: e-mail addresses, phone numbers, bank accounts, cards, US social security numbers.

The names of a contract's parties and of those who sign it are what reviewers ask for, and are not looked for. Not
handled: postal addresses, phone numbers written without separators, identity numbers of other countries.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from stdnum import iban, luhn
from stdnum.us import ssn

from corpora.labels.types import Draft
from modules.label_filters import Filter

POLICIES = ("mask", "drop", "keep")
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b", re.IGNORECASE)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{1,4}){3,8}\b")
# In one piece or as cards are printed: other rows of numbers keep Luhn's rule by chance, one in ten.
_CARD = re.compile(
    r"(?<![\d.,-])(?<!\d )(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{4,5})(?![\d-])"
)
_SSN = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")
_PHONE = re.compile(
    r"(?<![\w+])\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,6}(?!\w)"  # +44 20 7946 0958
    r"|(?<![\w.-])(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])"  # (212) 555-0147
)


def find_pii(text: str) -> list[tuple[str, int, int]]:
    """(kind, start, end) of personal data in a text, by start, none overlapping another.

    Kinds are "email", "iban", "card", "ssn" and "phone". Numbers with a checksum or a rule count only if they keep it.
    """
    found: list[tuple[str, int, int]] = []
    for kind, places in _FINDERS.items():
        for start, end in places(text):
            if all(end <= other_start or other_end <= start for _, other_start, other_end in found):
                found.append((kind, start, end))
    return sorted(found, key=lambda one: one[1])


def mask_pii(text: str) -> str:
    """The text with "[EMAIL]", "[PHONE]" and so on in place of what `find_pii` finds."""
    for kind, start, end in reversed(find_pii(text)):
        text = f"{text[:start]}[{kind.upper()}]{text[end:]}"
    return text


def masked(draft: Draft) -> Draft:
    """The draft with question and answer masked; its quotes are places in the contract and cannot be.

    A masked answer is no longer the quote's words: ask `verbatim` before, not after.
    """
    label = draft.label
    question = replace(label.question, text=mask_pii(label.question.text))
    answer = None if label.answer is None else mask_pii(label.answer)
    return replace(draft, label=replace(label, question=question, answer=answer))


def pii(policy: str = "mask", texts: Mapping[str, str] | None = None) -> Filter:
    """Drops drafts with personal data, as far as the policy says.

    "drop": in question, answer and, where `texts` (contract id -> text) is given, quotes. "mask": in question and
    answer, for drafts that should have gone through `masked` before. "keep": none. ValueError for another policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"the policy on personal data is {policy!r}; it must be one of {', '.join(POLICIES)}")

    def why(draft: Draft) -> str | None:
        parts = {"question": draft.label.question.text, "answer": draft.label.answer or ""}
        if policy == "drop" and texts is not None:
            contract = texts[draft.label.question.contract_id]
            parts["quote"] = "\n".join(contract[span.start : span.end] for span in draft.label.spans)
        # The kind and the part only: the reason is written down, and must not carry what it is about.
        return next((f"personal data: {kind} in {part}" for part in parts for kind, *_ in find_pii(parts[part])), None)

    return lambda drafts: [None if policy == "keep" else why(draft) for draft in drafts]


def _matches(pattern: re.Pattern[str], is_valid: Callable[[str], bool]) -> Callable[[str], Iterator[tuple[int, int]]]:
    return lambda text: (match.span() for match in pattern.finditer(text) if is_valid(match.group()))


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text):
        # Words in capitals behind it look like more of it: the longest beginning with a right checksum counts.
        ends = [match.end() - len(rest) for rest in _endings(match.group())]
        yield from ((match.start(), end) for end in ends[:1])


def _endings(candidate: str) -> Iterator[str]:
    parts = candidate.split(" ")
    for n in range(len(parts), 0, -1):
        head = " ".join(parts[:n])
        if iban.is_valid(head):
            yield candidate[len(head) :]


_FINDERS: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {
    "email": _matches(_EMAIL, lambda _: True),
    "iban": _ibans,
    "card": _matches(_CARD, lambda number: luhn.is_valid(re.sub(r"[ -]", "", number))),
    "ssn": _matches(_SSN, ssn.is_valid),
    "phone": _matches(_PHONE, lambda number: sum(map(str.isdigit, number)) >= 8),
}
