"""Answers that say nothing, or that speak to the judge: told by rules, before any model is asked.

Such answers win against real ones before LLM judges ("One Token to Fool LLM-as-a-Judge", arXiv 2507.08794). What stands
word for word in the passages is the contract speaking, and is let through by the rules on wording.
Not handled: wordings that no rule here knows, and text of the contract itself that speaks to a judge.
"""

import re
import unicodedata

import dspy
from rapidfuzz import fuzz

from corpora.cuad import bare_question
from modules.grounding import locate
from modules.judge import Candidate, Case, Grade, Judge, Verdict
from modules.judge_scoring import as_prediction
from modules.signatures import NO_QUOTE

_LIKE_QUESTION = 90.0  # rapidfuzz ratio, 0-100, on lower-case words
_MIN_QUESTION_WORDS = 4  # "Document Name" may be both asked and answered
_MEANING_SIGNS = "%‰§¶°№#"  # "%", "§ 4" and, by its Unicode class, "$" say something
_REDACTED = re.compile(r"\[[\s*•●_]+\]|[*•●]{3,}|_{4,}")  # what a filing leaves of a price or a name
# Alone these say nothing; "Solution" may be a defined term, which then stands in the passages.
_OPENER = re.compile(
    r"""(?<!\w)(?:thought\ process|thoughts?|thinking|reasoning|analysis|explanation|solution|sure|certainly|of\ course
    |(?:(?:the|my|final|short|correct)\ )*answer(?:\ is)?|okay|ok|well|hmm+|i\ see|as\ follows|step\ (?:1|one)
    |here\ (?:is|are)(?:\ (?:the|my)\ (?:answer|review|analysis))?
    |解|かいせつ|答え|respuesta|soluci[oó]n|r[ée]ponse|antwort|l[öo]sung)(?!\w)""",
    re.IGNORECASE | re.VERBOSE,
)
# An answer of a review never opens so, whatever follows.
_PREAMBLE = re.compile(
    r"""\W*(?:thought\ process\s*:|(?:let['’]?s|let\ us|let\ me|i\ will|i['’]ll|we\ (?:will|can|need\ to|must))\s
    (?:now\ |first\ |carefully\ )*
    (?:solve|think|see|go|work|break|analy[sz]e|explain|reason|look|review|consider|answer)\b
    |to\ (?:answer|solve|address)\ (?:this|the)\ (?:question|problem|query)|as\ an?\ (?:ai|language\ model|large)
    |i\ (?:cannot|can['’]?t|am\ unable\ to)\ (?:answer|help|assist)|</?think)""",
    re.IGNORECASE | re.VERBOSE,
)
_PLEA = re.compile(
    r"""(?:ignore|disregard|forget|override|bypass)\s(?:\w+\s){0,3}(?:instructions?|prompts?|rules|criteria|rubric|guidelines)\b
    |\b(?:rate|score|grade|mark|judge|evaluate|rank)\s(?:this|it|me|my|the\s(?:above|answer|response|candidate))\b
    |\b(?:give|award|assign)\s(?:this|it|me|my|the\s(?:above|answer|response|candidate))\b.{0,40}
     \b(?:score|rating|grade|marks?|points?|stars?|\d+\s?/\s?\d+|\d+\sout\sof|\d+\W*$)
    |\b(?:choose|select|pick|prefer|vote\sfor)\s(?:this|my|the\s(?:first|second)|(?:answer|candidate|response|option)?\s?[\[(]?(?-i:[AB])[\])]?(?!\w))
    |\b(?:this|my|answer\s(?-i:[AB])|candidate\s(?-i:[AB]))\s?(?:answer|response|candidate)?\s(?:is|deserves|should\s(?:be|get|receive|win))
     \s(?:\w+\s){0,3}(?:best|better|winner|winning|correct|right|perfect|win|highest|full\s(?:marks|score))\b
    |\b(?:score|rating|verdict|grade|better|winner|preference)\s?[:=]\s?[\[(]?(?:(?-i:[AB])\b|\d)
    |\byou\sare\s(?:now\s)?(?:a|an|the)\s(?:\w+\s){0,2}(?:judge|grader|evaluator|assistant|ai|model)\b
    |\[\[\s?\#\#|<\|\w+\|>|</?(?:system|user|assistant|instructions?)>|^\s*(?:system|assistant)\s?:""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)  # fmt: skip


class Guarded(dspy.Module):
    """A judge that is asked about real answers only: a degenerate one has grade 0 and loses; two of them tie.

    Rules on wording: `degenerate`. Everything else, JudgeError too, is the judge's own.
    """

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, case: Case, a: Candidate, b: Candidate) -> dspy.Prediction:
        """The verdict as a program call, for DSPy's optimizers."""
        return as_prediction(self.compare(case, a, b))

    def grade(self, case: Case, candidate: Candidate) -> Grade:
        """The judge's grade; 0 for a degenerate answer."""
        why = degenerate(case, candidate)
        return Grade(0.0, f"degenerate: {why}", "") if why else self.judge.grade(case, candidate)

    def compare(self, case: Case, a: Candidate, b: Candidate) -> Verdict:
        """The judge's verdict; without asking it where one or both are degenerate (`margin` None)."""
        why_a, why_b = degenerate(case, a), degenerate(case, b)
        if why_a and why_b:
            return Verdict("tie", None, True, f"both degenerate: A {why_a}; B {why_b}", "")
        if why_a or why_b:
            return Verdict("B" if why_a else "A", None, True, f"the other is degenerate: {why_a or why_b}", "")
        return self.judge.compare(case, a, b)


def degenerate(case: Case, candidate: Candidate) -> str | None:
    """Why an answer is none: nothing but signs, a mere preamble, the question again, words to the judge, a quote that
    stands in none of the passages; None for a real answer.

    What equals the reference is real. "none", "not in this contract", "$", "5%" and "§ 4" are.
    """
    answer = " ".join(candidate.answer.split())
    if case.reference is None or answer != " ".join(case.reference.split()):
        stands = bool(locate(answer, case.passages))
        why = _says_nothing(answer, stands) or (None if stands else _wording(answer, case.question))
        if why:
            return why
    for quote in candidate.quotes:
        if quote.strip() != NO_QUOTE and not locate(quote, case.passages):
            return f"the quote {quote[:60]!r} stands in none of the passages"
    return None


def _says_nothing(answer: str, stands: bool) -> str | None:
    if not answer:
        return "it is empty"
    if not any(map(_means_something, answer)) and not (stands and _REDACTED.fullmatch(answer)):
        return f"it is nothing but signs ({answer[:20]!r})"
    return None


def _means_something(sign: str) -> bool:
    return sign in _MEANING_SIGNS or unicodedata.category(sign)[0] in "LN" or unicodedata.category(sign) == "Sc"


def _wording(answer: str, question: str) -> str | None:
    """What is wrong with the wording of an answer that is not the contract's own words."""
    if found := _PLEA.search(answer):
        return f"it speaks to the judge ({found.group()[:60]!r})"
    if _PREAMBLE.match(answer) or _is_opener(answer):
        return f"it is a preamble without an answer ({answer[:60]!r})"
    bare = bare_question(question)
    if any(_repeats(answer, asked) for asked in {question, bare, bare.partition(": ")[2] or bare}):
        return "it repeats the question"
    return None


def _is_opener(answer: str) -> bool:
    return not any(map(_means_something, _OPENER.sub("", answer)))


def _repeats(answer: str, question: str) -> bool:
    said, asked = (" ".join(re.findall(r"\w+", text.lower())) for text in (answer, question))
    words = said.split()
    if len(asked.split()) < _MIN_QUESTION_WORDS:
        return said == asked
    if asked in said:  # and nothing beside it
        return all(map(_is_opener, said.replace(asked, " ", 1).split()))
    of_its_words = len(words) > _MIN_QUESTION_WORDS and set(words) <= set(asked.split())
    return of_its_words or fuzz.ratio(said, asked) >= _LIKE_QUESTION
