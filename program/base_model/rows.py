"""Training rows for the base model, from generated contracts, in the very prompts that DSPy's ChatAdapter writes.

A row is a *tree*: a prefix that several questions share (system prompt and passages) and one branch per question, each
branch seeing the prefix and itself only. So each passage is read once for several answers, at the same gradient.

Three jobs (review, write, compare) and copying drills. Retrieval is imitated by character n-gram similarity with
noise: the real embedder's ranking costs more than the training step, and the base must stand other retrievers anyway.
"""

from dataclasses import dataclass
from functools import cache
from random import Random

import dspy
import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from transformers import PreTrainedTokenizerBase

from corpora.cuad import bare_question, question_text
from corpora.passages import cut_passages
from corpora.synthetic import CATEGORIES, load_house, write_contract
from corpora.types import Contract, Label, Passage
from modules.signatures import (
    NOT_FOUND,
    CompareAnswers,
    ReviewPassages,
    WriteQuestion,
    join_quotes,
    list_candidates,
    number_passages,
)

_ADAPTER = dspy.ChatAdapter()
_VECTORS = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), n_features=2**14, norm="l2", alternate_sign=False)
_CUT = "\x00cut\x00"
_DECIDING_FIELDS = ("quotes", "question")
_N_DECIDING = 4  # tokens behind such a field's marker


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of a prefix or a branch: a prompt up to `n_prompt`, a completion from there (`packing.py` weighs them).

    `deciding` are the places of the tokens that open a quote or a question: the choice, where the rest is copying.
    `absent` says that the passages do not answer.
    """

    ids: tuple[int, ...]
    n_prompt: int
    deciding: tuple[int, ...] = ()
    absent: bool = False


@dataclass(frozen=True, slots=True)
class Tree:
    """A shared prefix and its branches."""

    prefix: Segment
    branches: tuple[Segment, ...]

    def __len__(self) -> int:
        return len(self.prefix.ids) + sum(len(branch.ids) for branch in self.branches)


@dataclass(frozen=True, slots=True)
class Sheet:
    """A generated contract made ready: passages, labels by category, similarity of question and passage (Q x P)."""

    contract: Contract
    passages: tuple[Passage, ...]
    labels: tuple[Label, ...]
    similarity_QP: np.ndarray


@cache
def _question_vectors():
    return _VECTORS.transform([bare_question(question_text(category)) for category in CATEGORIES])


def draw_sheet(houses: tuple[str, ...], rng: Random) -> Sheet:
    """A new contract of one of the houses."""
    house = load_house(rng.choice(houses))
    contract, labels = write_contract(house, f"{house.name}-{rng.getrandbits(48):012x}", rng.randint(2008, 2024), rng)
    passages = cut_passages(contract)
    similarity = (_question_vectors() @ _VECTORS.transform([passage.text for passage in passages]).T).toarray()
    return Sheet(contract, passages, labels, similarity)


def covered(label: Label, passages: list[Passage]) -> bool:
    """Whether every gold span stands whole in one of the passages."""
    return all(any(p.start <= span.start and span.end <= p.end for p in passages) for span in label.spans)


def gold(sheet: Sheet, label: Label) -> tuple[list[str], str]:
    """Quotes and short answer of a label; ([], NOT_FOUND) where it has none."""
    quotes = [sheet.contract.text[span.start : span.end] for span in label.spans]
    return (quotes, " ".join(label.answer.split())) if quotes else ([], NOT_FOUND)


def retrieve(sheet: Sheet, index: int, k: int, rng: Random, *, force: float = 0.93) -> list[Passage]:
    """About the `k` passages most like question `index`, in document order; gold ones forced in with that probability.

    Three times out of four the contract's opening comes on top of them, as in `modules.retrieve.Retrieve`.
    """
    scores = sheet.similarity_QP[index] + np.array([rng.gauss(0, 0.04) for _ in sheet.passages])
    order = [sheet.passages[i] for i in np.argsort(-scores)]
    if rng.random() < force:
        spans = sheet.labels[index].spans
        order.sort(key=lambda p: not any(p.start <= span.start and span.end <= p.end for span in spans))
    opening = sheet.passages[:1] if rng.random() < 0.75 else ()
    return sorted({*order[:k], *opening}, key=lambda p: p.start)


def review_tree(
    tokenizer: PreTrainedTokenizerBase, sheet: Sheet, rng: Random, *, max_tokens: int, k: int, demo: Sheet | None = None
) -> Tree:
    """Passages once, then as many questions about them as fit; about half of the questions are answered there."""
    anchor = _draw_index(sheet, rng)
    passages = retrieve(sheet, anchor, k, rng)
    demos = []
    if demo is not None:
        index = _draw_index(demo, rng)
        shown = retrieve(demo, index, rng.choice((2, 3, 4)), rng, force=1.0)
        demos = [review_example(demo, demo.labels[index], shown)] if covered(demo.labels[index], shown) else []
    shared = {"passages": number_passages([p.text for p in passages])}
    branches = []
    for label in _questions(sheet, anchor, passages, rng):
        quotes, answer = gold(sheet, label) if covered(label, passages) else ([], NOT_FOUND)
        branches.append(({"question": label.question.text}, {"quotes": join_quotes(quotes), "answer": answer}))
    return _tree(tokenizer, ReviewPassages, shared, branches, max_tokens, demos)


def compare_tree(
    tokenizer: PreTrainedTokenizerBase, sheet: Sheet, other: Sheet, rng: Random, *, max_tokens: int
) -> Tree:
    """Passages once, then questions with two candidate answers each, one right."""
    anchor = _draw_index(sheet, rng)
    passages = retrieve(sheet, anchor, rng.choice((1, 2, 3)), rng, force=1.0)
    branches = []
    for label in _questions(sheet, anchor, passages, rng):
        quotes, answer = gold(sheet, label) if covered(label, passages) else ([], NOT_FOUND)
        branches.append(comparison(sheet, other, label, quotes, answer, rng))
    return _tree(
        tokenizer, CompareAnswers, {"passages": number_passages([p.text for p in passages])}, branches, max_tokens
    )


def comparison(
    sheet: Sheet, other: Sheet, label: Label, quotes: list[str], answer: str, rng: Random
) -> tuple[dict, dict]:
    """Inputs and outputs of one comparison: the right answer against a wrong one, letters dealt at random."""
    wrong = wrong_answer(sheet, other, label, answer, rng)
    letter = rng.choice("AB")
    pair = (answer, wrong) if letter == "A" else (wrong, answer)
    outputs = {"quotes": join_quotes(quotes), "better": f"{answer} [{letter}]"}
    return {"question": label.question.text, "candidates": list_candidates(*pair)}, outputs


def wrong_answer(sheet: Sheet, other: Sheet, label: Label, answer: str, rng: Random) -> str:
    """A wrong answer of the kinds that occur: none where there is one, another contract's, another question's."""
    same = [gold(other, o)[1] for o in other.labels if o.question.category == label.question.category and o.spans]
    near = [gold(sheet, o)[1] for o in sheet.labels if o.spans]
    far = [gold(other, o)[1] for o in other.labels if o.spans]
    kinds = [same * 3, near, far, [NOT_FOUND]] if answer != NOT_FOUND else [near, far, same]
    options = [text for text in rng.choice([kind for kind in kinds if kind]) if text != answer]
    return rng.choice(options or [text for text in far + near + [NOT_FOUND] if text != answer])


def write_tree(tokenizer: PreTrainedTokenizerBase, sheet: Sheet, rng: Random, *, max_tokens: int) -> Tree | None:
    """One passage, and the question, quotes and answer that it was written for."""
    label = rng.choice([label for label in sheet.labels if label.spans])
    holding = [p for p in sheet.passages if covered(label, [p])]
    if not holding:
        return None
    quotes, answer = gold(sheet, label)
    outputs = {"question": label.question.text, "quotes": join_quotes(quotes), "answer": answer}
    inputs = {"passage": " ".join(holding[0].text.split())}
    return _tree(tokenizer, WriteQuestion, inputs, [({}, outputs)], max_tokens)


def drill_tree(
    tokenizer: PreTrainedTokenizerBase, sheet: Sheet, other: Sheet, rng: Random, *, max_tokens: int
) -> Tree | None:
    """A short copying exercise: go on with a sentence, quote from one passage, or copy a candidate with its letter."""
    kind = rng.random()
    if kind < 0.4:
        return _repeat_tree(tokenizer, sheet, rng)
    label = rng.choice([label for label in sheet.labels if label.spans])
    holding = [p for p in sheet.passages if covered(label, [p])]
    if not holding:
        return None
    shown = sorted({holding[0], *rng.sample(sheet.passages, rng.choice((0, 0, 1)))}, key=lambda p: p.start)
    quotes, answer = gold(sheet, label)
    shared = {"passages": number_passages([p.text for p in shown])}
    if kind < 0.8:
        branch = ({"question": label.question.text}, {"quotes": join_quotes(quotes), "answer": answer})
        absent = rng.choice(sheet.labels)
        nothing = ({"question": absent.question.text}, {"quotes": join_quotes([]), "answer": NOT_FOUND})
        branches = [branch] if covered(absent, list(shown)) and absent.spans else [branch, nothing]
        return _tree(tokenizer, ReviewPassages, shared, branches, max_tokens)
    return _tree(
        tokenizer,
        CompareAnswers,
        shared,
        [comparison(sheet, other, label, quotes, answer, rng) for _ in range(2)],
        max_tokens,
    )


def _repeat_tree(tokenizer: PreTrainedTokenizerBase, sheet: Sheet, rng: Random) -> Tree:
    """Some sentences, then again each from its first words; the model has to find and copy the rest."""
    text = " ".join(rng.choice(sheet.passages).text.split())
    words = text.split(" ")[:60]
    prompt = tokenizer.encode(" ".join(words) + "\n", add_special_tokens=False)
    branches = []
    for _ in range(4):
        start = rng.randrange(max(1, len(words) - 8))
        given = tokenizer.encode(" " + " ".join(words[start : start + 3]), add_special_tokens=False)
        rest = tokenizer.encode(
            " " + " ".join(words[start + 3 : start + 3 + rng.randint(5, 25)]), add_special_tokens=False
        )
        branches.append(Segment(tuple(given + rest), len(given)))
    return Tree(Segment(tuple(prompt), len(prompt)), tuple(branches))


def _draw_index(sheet: Sheet, rng: Random) -> int:
    """A question to retrieve for: answered ones three times out of five."""
    found = rng.random() < 0.6
    return rng.choice([i for i, label in enumerate(sheet.labels) if bool(label.spans) == found])


def _questions(sheet: Sheet, anchor: int, passages: list[Passage], rng: Random) -> list[Label]:
    """The anchor, then answered and unanswered questions in turn, the hard ones among the unanswered first."""
    places = [sheet.passages.index(p) for p in passages]
    answered = [label for label in sheet.labels if label.spans and covered(label, passages)]
    likeness = sheet.similarity_QP[:, places].max(axis=1)
    absent = [i for i, label in enumerate(sheet.labels) if not label.spans or not covered(label, passages)]
    absent = [i for i in absent if not any(_touches(sheet.labels[i], p) for p in passages)]
    absent.sort(key=lambda i: -likeness[i] + rng.gauss(0, 0.08))
    rng.shuffle(answered)
    unanswered = [sheet.labels[i] for i in absent[: len(answered) + 1]]
    mixed = [label for pair in zip(answered, unanswered, strict=False) for label in pair] + answered[len(unanswered) :]
    first = sheet.labels[anchor]
    usable = not first.spans or covered(first, passages) or not any(_touches(first, p) for p in passages)
    return ([first] if usable else []) + [label for label in mixed if label is not first]


def _touches(label: Label, passage: Passage) -> bool:
    return any(span.start < passage.end and passage.start < span.end for span in label.spans)


def review_example(sheet: Sheet, label: Label, passages: list[Passage]) -> dspy.Example:
    """One review as a demonstration has it: passages and question, and the quotes and answer that are right."""
    quotes, answer = gold(sheet, label)
    return dspy.Example(
        passages=number_passages([p.text for p in passages]),
        question=label.question.text, quotes=join_quotes(quotes), answer=answer,
    )  # fmt: skip


def _tree(
    tokenizer, signature, shared: dict, branches: list[tuple[dict, dict]], max_tokens: int, demos: list | None = None
) -> Tree:
    """Encode prefix and branches apart: exact, since the cut stands at a field marker, a token of its own."""
    varied = [name for name in signature.input_fields if name not in shared]
    inputs = shared | dict.fromkeys(varied, _CUT)
    messages = _ADAPTER.format(signature, demos=demos or [], inputs=inputs)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    head, tail = (text.split(_CUT)[0], text[text.index(_CUT) :]) if varied else (text, "")
    prefix = tokenizer.encode(head, add_special_tokens=False)
    room = max_tokens - len(prefix)
    encoded = []
    for values, outputs in branches:
        prompt = tail
        for name in varied:
            prompt = prompt.replace(_CUT, values[name], 1)
        completion = _ADAPTER.format_assistant_message_content(signature, outputs) + "<|im_end|>"
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
        ids = prompt_ids + tokenizer.encode(completion, add_special_tokens=False)
        if len(ids) > room:
            break
        room -= len(ids)
        absent = outputs["quotes"] == join_quotes([])
        encoded.append(Segment(tuple(ids), len(prompt_ids), _deciding(tokenizer, ids, len(prompt_ids)), absent))
    return Tree(Segment(tuple(prefix), len(prefix)), tuple(encoded))


def _deciding(tokenizer, ids: list[int], n_prompt: int) -> tuple[int, ...]:
    markers = [f"{space}[[ ## {field} ## ]]\n" for field in _DECIDING_FIELDS for space in ("", "\n\n")]
    markers = set(tokenizer.convert_tokens_to_ids(markers))
    opened = [place + 1 for place in range(n_prompt, len(ids)) if ids[place] in markers]
    return tuple(place for start in opened for place in range(start, min(start + _N_DECIDING, len(ids))))
