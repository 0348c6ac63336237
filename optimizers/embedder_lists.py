"""Training an embedder on whole contracts: all questions put to one against all of its passages and sentences at once.

What a retriever does when it is asked is what it is trained on: the passages of one contract are ranked for a question,
and the best of them has to stay below a line where the contract has no answer. One pass over a contract's passages
serves every question about it. Sentences are pooled from their passage's tokens, each read in its context (late
chunking; Günther et al. 2024, arXiv 2409.04701).

One real row, of a contract with two passages and one question, which the second answers:

    SearchList(passages=(Listed("1. Fees. The Buyer pays ...", ((0, 8), (9, 41))),
                         Listed("8.2 Governing Law. This Agreement ...", ((0, 18), (19, 77)))),
               wordings=(("Governing Law: Which state/country's law governs ...", "Governing Law"),),
               passage_marks=array([[0, 1]]), sentence_marks=array([[0, 0, 0, 1]]))

Not handled: questions put to several contracts at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn import functional as F

from corpora.sentences import token_places
from optimizers.embedder_settings import EmbedderSettings

WRONG, RIGHT, NEITHER = 0, 1, -1
_QUERIES_AT_A_TIME = 16


@dataclass(frozen=True, slots=True)
class Listed:
    """A passage as the embedder is to see it, and where its sentences stand in that text (half-open)."""

    text: str
    sentences: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class SearchList:
    """A contract's P passages with their S sentences, and the Q questions put to it, each in its wordings.

    `passage_marks` (Q, P) and `sentence_marks` (Q, S, in the order of the passages) are RIGHT where one answers the
    question, WRONG where it does not, NEITHER where it holds too little of the answer to be called either. A question
    that nothing is RIGHT for has no answer in this contract.
    """

    passages: tuple[Listed, ...]
    wordings: tuple[tuple[str, ...], ...]
    passage_marks: np.ndarray
    sentence_marks: np.ndarray


def draw_steps(lists: Sequence[SearchList], settings: EmbedderSettings) -> list[int]:
    """Which list each step is on: every one once an epoch, in another order each time."""
    rng = Random(settings.seed)
    usable = [i for i, one in enumerate(lists) if one.passages and one.wordings]
    n = settings.max_steps if settings.max_steps > 0 else round(settings.epochs * len(usable))
    steps: list[int] = []
    while usable and len(steps) < n:
        steps += rng.sample(usable, len(usable))
    return steps[:n]


def list_loss(scores_Q_N: Tensor, marks_Q_N: Tensor, absent_score: float) -> tuple[Tensor, dict[str, float]]:
    """How far the right ones are from standing above the wrong ones and above `absent_score`, over Q questions.

    `scores_Q_N` are scaled cosines. For a question with an answer the mean over its right ones of
    -log(e^s / (e^s + sum over wrong ones e^w + e^absent)); for one without -log(e^absent / (e^absent + sum e^w)). The
    mean of each kind is taken, and the two are added: multiple negatives ranking (Henderson et al. 2017, arXiv
    1705.00652) with an option that says nothing is right, as SQuAD 2.0 readers have it. What is NEITHER is left out.
    Metrics: `answered` and `absent`, the two means, 0 where there is no such question.
    """
    no_answer = scores_Q_N.new_full((len(scores_Q_N), 1), absent_score)
    wrong_Q_N = scores_Q_N.masked_fill(marks_Q_N != WRONG, float("-inf"))
    against_Q = torch.logsumexp(torch.cat([wrong_Q_N, no_answer], dim=1), dim=1)
    right_Q_N = marks_Q_N == RIGHT
    n_right_Q = right_Q_N.sum(dim=1)
    losses_Q_N = F.softplus(against_Q[:, None] - scores_Q_N) * right_Q_N
    answered_Q = losses_Q_N.sum(dim=1) / n_right_Q.clamp(min=1)
    has_answer_Q = n_right_Q > 0
    zero = scores_Q_N.sum() * 0
    answered = answered_Q[has_answer_Q].mean() if has_answer_Q.any() else zero
    absent = (against_Q - absent_score)[~has_answer_Q].mean() if not has_answer_Q.all() else zero
    return answered + absent, {"answered": answered.item(), "absent": absent.item()}


class ListLoss(torch.nn.Module):
    """`list_loss` of passages and of sentences; features are queries, then passages, both some at a time."""

    def __init__(self, model: SentenceTransformer, settings: EmbedderSettings) -> None:
        super().__init__()
        self.model, self.scale = model, settings.scale
        self.absent_score = settings.scale * settings.absent_cosine

    def forward(self, sentence_features: Sequence[dict[str, Tensor]], labels: dict[str, Any]) -> Tensor:
        """The sum of both losses; `labels` as `ListCollator` makes them."""
        n_queries = len(sentence_features) - len(labels["places"])
        queries = [self.model(dict(part))["sentence_embedding"].float() for part in sentence_features[:n_queries]]
        query_Q_D = F.normalize(torch.cat(queries), dim=-1)
        passages, sentences = [], []
        for part, places in zip(sentence_features[n_queries:], labels["places"], strict=True):
            out = self.model(dict(part))
            passages.append(out["sentence_embedding"].float())
            sentences.append(mean_of_tokens(out["token_embeddings"].float(), places))
        losses = [
            list_loss(
                self.scale * query_Q_D @ F.normalize(torch.cat(vectors), dim=-1).T, labels[marks], self.absent_score
            )[0]
            for vectors, marks in ((passages, "passage_marks"), (sentences, "sentence_marks"))
        ]
        return sum(losses)


def mean_of_tokens(tokens_B_L_D: Tensor, places_S_3: Tensor) -> Tensor:
    """The mean vectors (S, D) of stretches of tokens, each (row, first, behind the last); zeros for an empty one."""
    row, first, behind = places_S_3.unbind(dim=1)
    sums_B_L_D = F.pad(tokens_B_L_D.cumsum(dim=1), (0, 0, 1, 0))
    return (sums_B_L_D[row, behind] - sums_B_L_D[row, first]) / (behind - first).clamp(min=1)[:, None]


class ListCollator:
    """The texts and marks of a step as tensors: a wording of each question, and at most `list_size` passages.

    All passages that answer something are kept, the others drawn anew each time. Passages go by length, some at a
    time, so that little is padded.
    """

    valid_label_columns: tuple[str, ...] = ()  # the trainer asks; a step's labels are made here

    def __init__(self, model: SentenceTransformer, lists: Sequence[SearchList], settings: EmbedderSettings) -> None:
        self._tokenizer, self._max_tokens = model.tokenizer, model.max_seq_length
        self._lists, self._settings = lists, settings

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        (row,) = rows
        one, rng = self._lists[row["list"]], Random(f"{self._settings.seed} {row['step']}")
        queries = [rng.choice(ways) for ways in one.wordings]
        asked = sorted(range(len(queries)), key=lambda i: len(queries[i]))
        chosen = self._choose(one, rng)
        batch: dict[str, Any] = {}
        for part in batched(asked, _QUERIES_AT_A_TIME):
            batch |= self._tokens(f"queries{part[0]}", [queries[i] for i in part])[0]
        first = np.cumsum([0, *(len(passage.sentences) for passage in one.passages)])
        places, order = [], []
        for part in batched(chosen, self._settings.mini_batch_size):
            tokens, offsets = self._tokens(f"passages{part[0]}", [one.passages[i].text for i in part])
            batch |= tokens
            found = [(b, *at) for b, i in enumerate(part) for at in token_places(offsets[b], one.passages[i].sentences)]
            places.append(torch.tensor(found, dtype=torch.long).reshape(-1, 3))
            order += [s for i in part for s in range(first[i], first[i + 1])]
        sentence_marks = torch.from_numpy(one.sentence_marks[np.ix_(asked, order)])
        # What stands behind the last token that is read is no sentence.
        sentence_marks[:, torch.cat(places)[:, 2] == 0] = NEITHER
        passage_marks = torch.from_numpy(one.passage_marks[np.ix_(asked, chosen)])
        batch["label"] = {"passage_marks": passage_marks, "sentence_marks": sentence_marks, "places": places}
        return batch

    def _choose(self, one: SearchList, rng: Random) -> list[int]:
        needed = (one.passage_marks == RIGHT).any(axis=0)
        others = [i for i in range(len(one.passages)) if not needed[i]]
        room = max(0, self._settings.list_size - int(needed.sum()))
        kept = [*np.flatnonzero(needed).tolist(), *rng.sample(others, min(room, len(others)))]
        return sorted(kept, key=lambda i: len(one.passages[i].text))

    def _tokens(self, name: str, texts: list[str]) -> tuple[dict[str, Tensor], np.ndarray]:
        found = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens,
            return_offsets_mapping=True, return_tensors="pt",
        )  # fmt: skip
        offsets_B_L_2 = found.pop("offset_mapping").numpy()
        return {f"{name}_{key}": value for key, value in found.items()}, offsets_B_L_2


def batched(items: Sequence[int], n: int) -> Iterator[Sequence[int]]:
    """`n` at a time, the last perhaps fewer."""
    return (items[i : i + n] for i in range(0, len(items), n))
