import math

import numpy as np
import pytest
import torch

from modules.embedder import load_embedder
from optimizers.embedder import EmbedderSettings, train_embedder
from optimizers.embedder_lists import (
    NEITHER,
    RIGHT,
    WRONG,
    ListCollator,
    Listed,
    ListLoss,
    SearchList,
    draw_steps,
    list_loss,
    mean_of_tokens,
)
from optimizers.errors import TrainingError

QUIET = {"loss": "lists", "progress": False, "mini_batch_size": 2, "warmup_share": 0.0}
TEXTS = (
    "The rent is due on the first day. It is paid by wire.",
    "Each party keeps the other's secrets.",
    "The courts of Geneva decide any dispute. Swiss law governs.",
)


def a_list(asked=(("zorble", 0, 1), ("drosk", 2, 4), ("fimmet", None, None)), texts=TEXTS):
    """A contract of passages with one or two sentences; questions, each with the passage and sentence that answer."""
    passages, n = [], 0
    for text in texts:
        middle = text.find(". ") + 1
        places = ((0, middle), (middle + 1, len(text))) if middle else ((0, len(text)),)
        passages.append(Listed(text, places))
        n += len(places)
    marks, said = np.zeros((len(asked), len(texts)), np.int8), np.zeros((len(asked), n), np.int8)
    for i, (_, passage, sentence) in enumerate(asked):
        if passage is not None:
            marks[i, passage] = said[i, sentence] = RIGHT
    return SearchList(tuple(passages), tuple((word,) for word, *_ in asked), marks, said)


# -- the loss


def test_the_loss_is_what_its_equation_says():
    scores = torch.tensor([[2.0, 1.0, 0.0, 5.0], [1.0, 0.0, -1.0, 2.0]])
    marks = torch.tensor([[RIGHT, RIGHT, WRONG, NEITHER], [WRONG, WRONG, WRONG, WRONG]])
    loss, metrics = list_loss(scores, marks, absent_score=0.5)
    against = math.exp(0.0) + math.exp(0.5)
    answered = -(math.log(math.exp(2) / (math.exp(2) + against)) + math.log(math.exp(1) / (math.exp(1) + against))) / 2
    wrong = sum(math.exp(s) for s in (1.0, 0.0, -1.0, 2.0))
    absent = -math.log(math.exp(0.5) / (math.exp(0.5) + wrong))
    assert metrics == pytest.approx({"answered": answered, "absent": absent})
    assert float(loss) == pytest.approx(answered + absent)


@pytest.mark.parametrize("marks", [[[RIGHT, WRONG]], [[WRONG, WRONG]], [[NEITHER, NEITHER]]])
def test_one_kind_of_question_alone_has_a_finite_loss_and_gradient(marks):
    scores = torch.tensor([[1.0, 3.0]], requires_grad=True)
    loss, _ = list_loss(scores, torch.tensor(marks), 0.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(scores.grad).all()


def test_stretches_of_tokens_are_averaged():
    tokens = torch.arange(12.0).reshape(2, 3, 2)
    found = mean_of_tokens(tokens, torch.tensor([[0, 0, 2], [1, 2, 3], [1, 0, 0]]))
    assert found.tolist() == [[1.0, 2.0], [10.0, 11.0], [0.0, 0.0]]


# -- a step


def test_a_step_has_every_passage_that_answers_and_the_marks_of_what_it_has():
    embedder, one = load_embedder(), a_list()
    batch = ListCollator(embedder, [one], EmbedderSettings(**QUIET, list_size=2))([{"list": 0, "step": 3}])
    label = batch["label"]
    assert label["passage_marks"].shape == (3, 2) and int((label["passage_marks"] == RIGHT).sum()) == 2
    assert label["sentence_marks"].shape[1] == sum(len(part) for part in label["places"])
    # Sentence by sentence the marks stand where the tokens do.
    parts = [key for key in batch if key.startswith("passages") and key.endswith("input_ids")]
    said = [
        embedder.tokenizer.decode(batch[key][int(row)][int(first) : int(behind)])
        for places, key in zip(label["places"], parts, strict=True)
        for row, first, behind in places
    ]
    right = {said[j] for j in (label["sentence_marks"] == RIGHT).nonzero()[:, 1].tolist()}
    assert right == {"it is paid by wire.", "swiss law governs."}


def test_what_the_embedder_does_not_read_is_neither_right_nor_wrong():
    embedder = load_embedder()
    long = "word " * 300 + "end. Last one here."
    one = a_list((("zorble", 0, 1),), (long,))
    label = ListCollator(embedder, [one], EmbedderSettings(**QUIET))([{"list": 0, "step": 0}])["label"]
    assert label["sentence_marks"].tolist() == [[WRONG, NEITHER]] and label["places"][0][1].tolist() == [0, 0, 0]


def test_every_contract_has_its_turn_each_epoch():
    lists = [a_list(), a_list(asked=()), a_list()]
    assert sorted(draw_steps(lists, EmbedderSettings(**QUIET, epochs=2))) == [0, 0, 2, 2]
    assert len(draw_steps(lists, EmbedderSettings(**QUIET, max_steps=5))) == 5
    with pytest.raises(TrainingError, match="none of 1 contracts has both"):
        train_embedder(load_embedder(), [a_list(asked=())], EmbedderSettings(**QUIET))


def test_passages_sentences_and_absence_are_learnt():
    embedder, one = load_embedder(), a_list()
    settings = EmbedderSettings(**QUIET, max_steps=20, learning_rate=3e-4)
    trained, log = train_embedder(embedder, [one], settings)
    assert log["rows"] == 1 and log["steps"] == 20 and log["losses"][-1] < log["losses"][0] / 4

    def likeness(model):
        return model.encode(["zorble", "drosk", "fimmet"]) @ model.encode(list(TEXTS)).T

    assert likeness(trained)[:2].argmax(axis=1).tolist() == [0, 2] != likeness(embedder)[:2].argmax(axis=1).tolist()
    assert likeness(trained)[0, 0] > settings.absent_cosine > likeness(trained)[2].max()
    batch = ListCollator(trained, [one], settings)([{"list": 0, "step": 0}])
    parts = [k.removesuffix("_input_ids") for k in batch if k.endswith("_input_ids")]
    features = [{k.removeprefix(f"{p}_"): v for k, v in batch.items() if k.startswith(f"{p}_")} for p in parts]
    assert float(ListLoss(trained, settings)(features, batch["label"])) < 1.0


@pytest.mark.parametrize("wrong", [{"list_size": 0}, {"absent_cosine": 1.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(TrainingError, match=next(iter(wrong))):
        EmbedderSettings(**wrong)
