"""Filters against saying the same again: questions by ROUGE-L, whole labels by near-duplicates.

Both count what they kept of a batch for the rest of it, so put them behind the filters that drop most: a draft that is
dropped later has already stood in the way of those like it. Not handled: the same said in other words.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from datasketch import MinHash, MinHashLSH
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from corpora.labels.types import Draft
from modules.label_filters import Filter

_NUM_PERM = 128
_SLACK = 1e-9  # the bound and the score are rounded differently


def question_text(draft: Draft) -> str:
    """The question's text."""
    return draft.label.question.text


def is_invented(draft: Draft) -> bool:
    """Whether the draft's question was made up rather than taken from a list of categories."""
    return draft.method in ("write", "paraphrase")


def label_text(texts: Mapping[str, str]) -> Callable[[Draft], str]:
    """A function from a draft to its question, quotes and answer, one a line; `texts` is contract id -> text.

    Of a question that was not invented its category stands for it: CUAD's are so long that whatever is asked would be
    alike.
    """

    def text(draft: Draft) -> str:
        label, contract = draft.label, texts[draft.label.question.contract_id]
        quotes = [contract[span.start : span.end] for span in label.spans]
        asked = label.question.text if is_invented(draft) else label.question.category
        return "\n".join([asked, *quotes, label.answer or ""])

    return text


def novel(
    kept: Iterable[str] = (),
    threshold: float = 0.7,
    *,
    text: Callable[[Draft], str] = question_text,
    applies: Callable[[Draft], bool] = is_invented,
) -> Filter:
    """Drops an invented question whose ROUGE-L F with one kept before, on whatever contract, is `threshold` or more.

    `kept` are earlier questions; those that the batch keeps are added as it goes, and what `applies` leaves out is
    neither compared nor added. ValueError if `threshold` is not in (0, 1]. Source: Wang et al. 2022 (Self-Instruct),
    with the scorer they used, without stemming; ASCII words only.
    """
    _check_share("ROUGE-L", threshold)
    earlier = tuple(kept)

    def keep(drafts: Sequence[Draft]) -> list[str | None]:
        questions = _Questions(threshold)
        for question in earlier:
            questions.add(question)
        outcomes: list[str | None] = []
        for draft in drafts:
            near = questions.near(text(draft)) if applies(draft) else None
            if applies(draft) and near is None:
                questions.add(text(draft))
            outcomes.append(f"not novel: ROUGE-L {near[0]:.2f} with {near[1][:60]!r}" if near else None)
        return outcomes

    return keep


def unlike(kept: Iterable[Draft], text: Callable[[Draft], str], jaccard: float = 0.9, *, copies: int = 1) -> Filter:
    """Drops a draft whose text has this Jaccard similarity, over sets of word pairs, with `copies` kept before it.

    `text` is what to compare, such as `label_text(texts)`. MinHash LSH proposes (Broder 1997), the sets themselves
    decide. A draft without spans is compared only with those without on its own contract: what it says rests on the
    whole contract, which its text does not show. ValueError if `jaccard` is not in (0, 1], or `copies` below 1.
    """
    _check_share("Jaccard", jaccard)
    if copies < 1:
        raise ValueError(f"copies is {copies}; it must be 1 or more, for the first of its like is always kept")
    earlier = tuple(kept)

    def keep(drafts: Sequence[Draft]) -> list[str | None]:
        # Lower by three standard errors of the estimate: a pair that LSH does not propose is never looked at.
        margin = 3 * (jaccard * (1 - jaccard) / _NUM_PERM) ** 0.5
        lsh = MinHashLSH(threshold=max(0.05, jaccard - margin), num_perm=_NUM_PERM, weights=(0.2, 0.8))
        sets: list[frozenset[bytes]] = []
        outcomes: list[str | None] = []
        for draft in (*earlier, *drafts):
            own, is_new = _shingles(draft, text(draft)), len(outcomes) >= len(earlier)
            signature = MinHash(num_perm=_NUM_PERM)
            signature.update_batch(own)
            found = [_jaccard(own, sets[i]) for i in lsh.query(signature)] if is_new else []
            like = [score for score in found if score >= jaccard]
            drop = len(like) >= copies
            outcomes.append(f"near-duplicate: Jaccard {max(like):.2f}" if drop else None)
            if not drop:
                lsh.insert(len(sets), signature)
                sets.append(own)
        return outcomes[len(earlier) :]

    return keep


class _Questions:
    """Kept questions by their tokens, so that the few that can be near are found without scoring the many.

    The longest common subsequence is no longer than the shared bag of tokens, so 2 shared / (len + len) bounds ROUGE-L
    F from above and the screen drops no pair that the score would find. The n-th "the" is a token of its own: sets of
    these share what the bags do.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold - _SLACK
        self._tokenize = DefaultTokenizer(use_stemmer=False).tokenize
        self._score = RougeScorer(["rougeL"], use_stemmer=False).score
        self._having: defaultdict[tuple[str, int], array] = defaultdict(lambda: array("i"))
        self._lengths = array("i")
        self._texts: list[str] = []

    def add(self, text: str) -> None:
        tokens = _numbered(self._tokenize(text))
        for token in tokens:
            self._having[token].append(len(self._texts))
        self._lengths.append(len(tokens))
        self._texts.append(text)

    def near(self, text: str) -> tuple[float, str] | None:
        """(ROUGE-L F, question) of one that is at or above the threshold; None where there is none."""
        tokens = _numbered(self._tokenize(text))
        lists = [np.array(self._having[token], dtype=np.intc) for token in tokens if token in self._having]
        if not lists:
            return None
        shared = np.bincount(np.concatenate(lists), minlength=len(self._texts))
        bounds = 2 * shared / (np.array(self._lengths) + len(tokens))
        possible = np.flatnonzero(bounds >= self._threshold)
        for i in possible[np.argsort(-bounds[possible], kind="stable")]:
            score = self._score(self._texts[i], text)["rougeL"].fmeasure
            if score >= self._threshold:
                return score, self._texts[i]
        return None


def _numbered(tokens: Iterable[str]) -> list[tuple[str, int]]:
    seen: Counter[str] = Counter()
    numbered = []
    for token in tokens:
        numbered.append((token, seen[token]))
        seen[token] += 1
    return numbered


def _shingles(draft: Draft, text: str) -> frozenset[bytes]:
    words = text.casefold().split()
    # The contract's id in every shingle of an absent draft: then it shares none with another contract's.
    where = "" if draft.label.spans else draft.label.question.contract_id
    pairs = (" ".join(words[i : i + 2]) for i in range(max(1, len(words) - 1)))
    return frozenset(f"{where}\n{pair}".encode("utf-8", "surrogatepass") for pair in pairs)


def _jaccard(a: frozenset[bytes], b: frozenset[bytes]) -> float:
    return len(a & b) / len(a | b)


def _check_share(what: str, threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"the {what} threshold is {threshold}; it must be above 0 and at most 1")
