"""Labels carried over to contracts that say nearly the same: a labelled sentence is looked for and its marks mapped.

Drafters repeat themselves. Where an unlabelled contract has the labelled sentence with another date or name in it, the
label's spans and answer are those of the same words there. No language model is asked. This is annotation projection
(Yarowsky, Ngai and Wicentowski 2001), from text to text of one language.

One real projection, for "Governing Law" answered by "the State of Nevada":

    "... we will look to the laws of the State of Nevada for the answer."
    "... we will look to the laws of the State of California for the answer."   (0.96 alike)

Not handled: labels of which the spans are more than a few sentences apart, and answers that are not words of their
quotes.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from rapidfuzz.distance import Indel
from rapidfuzz.process import cdist

from corpora.sentences import sentences
from corpora.types import Contract, Label, Span

# "twenty-five" and "1,000" are words: "five" of "twenty-five days" must not stand for all of it.
_WORD = re.compile(r"\w+(?:[-'’.,]\w+)*|[^\w\s]")
Word = tuple[str, int, int]
_MAX_SENTENCES = 3
# Characters are compared first, quickly, and words only where a sentence is among the nearest by characters.
_READ_BY_WORDS = 3
# A sentence is known by so many words beside the value that is asked for; where that is most of it, by those of it.
_LEAST_TELLING = 6
_MOST_OF_IT = 0.8


@dataclass(frozen=True, slots=True)
class Pattern:
    """A labelled stretch of whole sentences: spans and answer are in characters of `text`.

    `answer` None means that the spans themselves are the answer. `parent` is the id of the label.
    """

    question: str
    category: str
    text: str
    spans: tuple[Span, ...]
    answer: Span | None
    n_sentences: int
    parent: str


@dataclass(frozen=True, slots=True)
class Projected:
    """What a pattern marks in a contract: spans in its text, the words of the answer, how alike the sentences are.

    `similarity` is 2 x shared words over all words of both, in order (normalised indel similarity), 0 to 1.
    """

    pattern: Pattern
    spans: tuple[Span, ...]
    answer: str | None
    similarity: float


def pattern_of(label: Label, contract: Contract, parent: str) -> Pattern | None:
    """The pattern of a label; None where it has no spans, they are far apart, or its answer is not in their words."""
    if not label.spans:
        return None
    found = sentences(contract.text)
    first, last = label.spans[0].start, max(span.end for span in label.spans)
    touched = [s for s in found if s.start < last and first < s.end]
    if not touched or len(touched) > _MAX_SENTENCES:
        return None
    start, end = min(first, touched[0].start), max(last, touched[-1].end)
    text = contract.text[start:end]
    spans = tuple(Span(span.start - start, span.end - start) for span in label.spans)
    quotes = ", ".join(text[span.start : span.end] for span in spans)
    answer = None
    if label.answer is not None and label.answer != quotes:
        places = [
            Span(span.start + at, span.start + at + len(label.answer))
            for span in spans
            if (at := text[span.start : span.end].find(label.answer)) >= 0
        ]
        if not places:
            return None
        answer = places[0]
    question = label.question
    return Pattern(question.text, question.category, text, spans, answer, len(touched), parent)


def project(patterns: Sequence[Pattern], contract: Contract, *, min_similarity: float = 0.6) -> list[Projected]:
    """For each question at most one projection on `contract`: the most alike of its patterns' and sentences'.

    A stretch that is more like a pattern of another question, which marks other words of it, is left to that.
    """
    best: dict[str, Projected] = {}
    owner: dict[tuple[int, int], float] = {}
    found: list[tuple[tuple[int, int], Projected]] = []
    for n in sorted({pattern.n_sentences for pattern in patterns}):
        some = [pattern for pattern in patterns if pattern.n_sentences == n]
        for place, one in _nearest(some, _runs(contract.text, n), contract.text, min_similarity):
            found.append((place, one))
            owner[place] = max(owner.get(place, 0.0), one.similarity)
    for place, one in found:
        known = best.get(one.pattern.question)
        if one.similarity >= owner[place] and (known is None or one.similarity > known.similarity):
            best[one.pattern.question] = one
    return list(best.values())


def _nearest(
    patterns: Sequence[Pattern], runs: Sequence[tuple[int, int]], text: str, min_similarity: float
) -> Iterable[tuple[tuple[int, int], Projected]]:
    """Each pattern's marks on the runs of sentences that are most like it."""
    if not runs:
        return
    scores_P_R = cdist(
        [pattern.text for pattern in patterns], [text[a:b] for a, b in runs], scorer=Indel.normalized_similarity
    )
    for pattern, scores_R in zip(patterns, scores_P_R, strict=True):
        own = _words(pattern.text)
        for i in np.argsort(-scores_R, kind="stable")[:_READ_BY_WORDS]:
            start, end = runs[int(i)]
            theirs = _words(text[start:end])
            similarity, mapped, shared = _mapper(own, theirs)
            if similarity < min_similarity or _n_telling(pattern, [own[i] for i in shared]) < _LEAST_TELLING:
                continue
            spans = [mapped(span) for span in pattern.spans]
            answer = None if pattern.answer is None else mapped(pattern.answer)
            if None in spans or (pattern.answer is not None and answer is None):
                continue
            yield (
                (start, end),
                Projected(
                    pattern,
                    tuple(Span(start + span.start, start + span.end) for span in spans),
                    None if answer is None else text[start + answer.start : start + answer.end],
                    similarity,
                ),
            )


def _n_telling(pattern: Pattern, shared: Sequence[Word]) -> int:
    """How many of the shared words tell what the sentence is about: they are words, and not of the value asked for.

    Two dates are alike, whatever they are the dates of.
    """
    marked = pattern.spans if pattern.answer is None else (pattern.answer,)
    if sum(span.end - span.start for span in marked) > _MOST_OF_IT * len(pattern.text):
        marked = ()  # the clause itself is asked for
    return sum(
        word[0].isalpha() and all(end <= span.start or span.end <= start for span in marked)
        for word, start, end in shared
    )


def _mapper(own: Sequence[Word], theirs: Sequence[Word]) -> tuple[float, Callable[[Span], Span | None], Sequence[int]]:
    """How alike two lists of words are, a function of a span of the first to the same words' span in the second, and
    which words of the first both share.

    The function gives None where words were put in or left out at an edge of the span (whether they belong to it is not
    known), and where an edge is within a word, which has no like among the others. Where words stand in the stead of
    others (names, dates, amounts), edges are theirs.
    """
    said = [word for word, _, _ in own], [word for word, _, _ in theirs]
    places = {0: 0, len(own): len(theirs)}
    unsure: set[int] = set()
    shared: list[int] = []
    for equal, group in groupby(Indel.opcodes(*said), key=lambda op: op.tag == "equal"):
        ops = list(group)
        a, b, c, d = ops[0].src_start, ops[-1].src_end, ops[0].dest_start, ops[-1].dest_end
        if equal:
            shared += range(a, b)
            places |= {a + i: c + i for i in range(b - a + 1) if a + i not in places}
        elif a < b and c < d:
            places |= {a: c, b: d}
        else:
            unsure |= {a, b}
    unsure -= {0, len(own)}
    starts, ends = [start for _, start, _ in own], [end for _, _, end in own]

    def mapped(span: Span) -> Span | None:
        first, last = bisect_left(starts, span.start), bisect_right(ends, span.end)
        if (first, last) != (bisect_right(ends, span.start), bisect_left(starts, span.end)):
            return None
        if first >= last or {first, last} & unsure or not {first, last} <= places.keys():
            return None
        begin, end = places[first], places[last]
        return Span(theirs[begin][1], theirs[end - 1][2]) if begin < end else None

    return Indel.normalized_similarity(*said), mapped, shared


def _words(text: str) -> list[Word]:
    return [(match[0], match.start(), match.end()) for match in _WORD.finditer(text)]


def _runs(text: str, n: int) -> list[tuple[int, int]]:
    """Every run of `n` neighbouring sentences, as (start, end)."""
    found = sentences(text)
    return [(found[i].start, found[i + n - 1].end) for i in range(len(found) - n + 1)]
