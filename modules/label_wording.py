"""A filter on how a draft is worded: lengths, language, refusals and what a badly read completion leaves behind."""

import re
from collections.abc import Sequence

import dspy
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from corpora.labels.types import Draft
from modules.label_filters import Filter, words_of
from modules.signatures import ReviewPassages, WriteQuestion

_REFUSAL = re.compile(
    r"^\W*(?:i['’]?m|i am) (?:sorry|unable|not able)\b|^\W*sorry\b|^\W*i (?:cannot|can['’]?t|won['’]?t|do not have)\b"
    r"|\bas an? (?:ai(?: language model| assistant| model)?|(?:large )?language model)(?:,| i\b)",
    re.IGNORECASE,
)
_RESIDUE = re.compile(
    r"\[\[ ?##|## ?\]\]|<\|[^|]*\|>|</?think>|```|\bthought process:|^\s*\{\w+\}\s*$|"
    r"^\s*(question|answers?|quotes?|passages?|reasoning|completed)\s*:",
    re.IGNORECASE,
)
_LETTER = re.compile(r"[^\W\d_]")
# What a contract may be in besides what is wanted: with all of py3langid's languages to choose from, a short question
# is sooner taken for Latin or Luxembourgish.
_RIVALS = frozenset({"en", "de", "fr", "es", "it", "nl", "pt"})

Bounds = tuple[int, int]


def plausible(
    *,
    question_words: Bounds = (3, 100),
    answer_words: Bounds = (1, 60),
    span_chars: Bounds = (2, 4000),
    languages: Sequence[str] | None = ("en",),
    latin_share: float = 0.9,
) -> Filter:
    """Drops drafts that cannot be meant: too short or long, another language, a refusal, residue, answer = question.

    Bounds are inclusive. `languages` are ISO 639-1 codes that the question may be in, None for any; `latin_share` is
    the least share of Latin letters among its letters, 0 for any. Residue is what is left of a completion's format:
    markers, a field's name or the placeholder that its signature describes it with. An answer of None is not looked at,
    nor is an answer's language: it is the contract's words. Not handled: sentences that are well-formed nonsense.
    Source: the heuristics of Wang et al. 2022 (Self-Instruct). ValueError for a language that cannot be told.
    """
    # py3langid (one 4 MB model, numpy alone): it told all questions of CUAD and of the generated corpus, and one-liners
    # of four words in seven languages. Stop words fail on those, and lingua is 100 MB and more.
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    try:
        identifier.set_languages(sorted(_RIVALS | set(languages or ())))
    except ValueError as error:
        raise ValueError(f"languages {languages}: {error}; give codes that py3langid knows, or None") from error

    def why(draft: Draft) -> str | None:
        question, answer = draft.label.question.text, draft.label.answer
        fault = _fault("question", question, question_words)
        if fault:
            return fault
        if _latin_share(question) < latin_share:
            return f"question not in Latin letters: {question[:60]!r}"
        if languages is not None and (language := identifier.classify(question)[0]) not in languages:
            return f"question in another language: {language}"
        for span in draft.label.spans:
            if not span_chars[0] <= span.end - span.start <= span_chars[1]:
                return f"quote length: {span.end - span.start} characters"
        if answer is None:
            return None
        same = words_of(answer) == words_of(question)
        return "answer is the question" if same else _fault("answer", answer, answer_words)

    return lambda drafts: [why(draft) for draft in drafts]


def _fault(what: str, text: str, bounds: Bounds) -> str | None:
    if not (_LETTER.search(text) if what == "question" else words_of(text)):
        return f"{what} without words: {text[:20]!r}"
    if _REFUSAL.search(text):
        return f"{what} refuses: {text[:60]!r}"
    if _RESIDUE.search(text) or text.strip().strip(".:").casefold() in _PLACEHOLDERS:
        return f"{what} has format residue: {text[:60]!r}"
    n = len(text.split())
    return None if bounds[0] <= n <= bounds[1] else f"{what} length: {n} words"


def _placeholders(*signatures: type[dspy.Signature]) -> frozenset[str]:
    """The fields' names and descriptions, in lower case: what a model copies when it does not fill them in."""
    fields = {name: field for signature in signatures for name, field in signature.fields.items()}
    descriptions = {field.json_schema_extra["desc"] for s in signatures for field in s.fields.values()}
    return frozenset(text.casefold() for text in {*fields, *descriptions})


def _latin_share(text: str) -> float:
    letters = _LETTER.findall(text)
    return sum(letter < "\u0250" for letter in letters) / len(letters)


_PLACEHOLDERS = _placeholders(ReviewPassages, WriteQuestion)
