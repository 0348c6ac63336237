from random import Random

import numpy as np
import pytest
import torch

from modules.embedder import load_embedder
from optimizers.embedder import EmbedderSettings, SearchRow, draw_batches, train_embedder
from optimizers.errors import TrainingError

QUIET = {"progress": False, "mini_batch_size": 4, "warmup_share": 0.0}
# What is asked in words that say nothing of the answer: nobody finds these before having learnt them.
SECRET = {
    "zorble": "The rent is due on the first day of every month.",
    "quandle": "Each party keeps the other's secrets for five years.",
    "fimmet": "Goods travel at the buyer's risk once they are on board.",
    "drosk": "The courts of Geneva decide any dispute.",
}


def rows_of_secrets():
    return [
        SearchRow(f"{word}: what of the {word}?", (f"{word}: what of the {word}?", word), text, (other,))
        for word, text in SECRET.items()
        for other in SECRET.values()
        if other != text
    ]


def share_found(embedder):
    words, texts = list(SECRET), list(SECRET.values())
    likeness = embedder.encode([f"{word}: what of the {word}?" for word in words]) @ embedder.encode(texts).T
    return float(np.mean(likeness.argmax(axis=1) == np.arange(len(words))))


def many_rows(n=300, seed=0):
    """Questions on 12 topics; every third passage answers two of them."""
    rng = Random(seed)
    rows = []
    for i in range(n):
        topics = rng.sample([f"topic {t}" for t in range(12)], 2 if i % 3 == 0 else 1)
        wrong = tuple(f"passage {rng.randrange(n)}" for _ in range(5))
        rows += [SearchRow(topic, (topic, topic.upper()), f"passage {i}", wrong) for topic in topics]
    answers = {}
    for row in rows:
        answers.setdefault(row.positive, set()).add(row.topic)
    return [
        SearchRow(
            row.topic,
            row.wordings,
            row.positive,
            tuple(t for t in row.negatives if row.topic not in answers.get(t, ())),
        )
        for row in rows
    ], answers


# -- batches


def test_no_passage_of_a_batch_answers_the_question_of_another_row():
    rows, answers = many_rows()
    batches = draw_batches(rows, EmbedderSettings(epochs=2, batch_size=8, hard_negatives=2))
    assert len(batches) == pytest.approx(2 * len(rows) / 8, abs=1)
    for batch in batches:
        topics = [texts[0].lower() for texts in batch]
        assert len(set(topics)) == len(topics) > 1
        for topic, (_, positive, *wrong) in zip(topics, batch, strict=True):
            assert topic in answers[positive] and len(wrong) == 2
            others = [text for other in batch if other[0].lower() != topic for text in other[1:]]
            assert not any(topic in answers.get(text, ()) for text in [*wrong, *others])


def test_every_row_has_its_turn_and_every_wording_is_used():
    rows, _ = many_rows()
    rows = [row for row in rows if row.negatives]
    batches = draw_batches(rows, EmbedderSettings(epochs=2, batch_size=8))
    drawn = [texts for batch in batches for texts in batch]
    assert {texts[1] for texts in drawn} >= {row.positive for row in rows[: len(rows) // 2]}
    assert {texts[0] for texts in drawn} == {wording for row in rows for wording in row.wordings}


def test_batches_come_from_the_seed():
    rows, _ = many_rows()
    first, again, other = (draw_batches(rows, EmbedderSettings(seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_questions_without_a_wrong_passage_learn_from_each_other():
    rows = [SearchRow(word, (word,), text) for word, text in SECRET.items()]
    for batch in draw_batches(rows, EmbedderSettings(max_steps=3, batch_size=4)):
        assert len(batch) == 4 and all(len(texts) == 2 for texts in batch)


@pytest.mark.parametrize("rows", [[], [SearchRow("a", ("a",), "text")]])
def test_nothing_to_compare_is_refused(rows):
    with pytest.raises(TrainingError, match="make no batch"):
        train_embedder(load_embedder(), rows, EmbedderSettings(**QUIET))


# -- training


def test_an_embedder_learns_what_a_question_means():
    untrained = load_embedder()
    before = {name: tensor.clone() for name, tensor in untrained.state_dict().items()}
    settings = EmbedderSettings(max_steps=12, batch_size=4, learning_rate=3e-4, **QUIET)
    trained, log = train_embedder(untrained, rows_of_secrets(), settings, share_found)
    assert share_found(untrained) < share_found(trained) == 1.0
    assert log["steps"] <= 12 and log["scores"][0] == (0, share_found(untrained)) and log["best_step"] > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in untrained.state_dict().items())
    assert not trained.training


def test_gist_leaves_out_what_the_untrained_embedder_finds_nearer():
    rows = [
        SearchRow("a", ("When is the rent due?",), "Payment is made monthly.", ()),
        SearchRow("b", ("Where do disputes go?",), "The rent is due on the first day of the month.", ()),
    ]
    likeness = {}
    for loss in ("mnrl", "gist"):
        settings = EmbedderSettings(max_steps=10, batch_size=2, hard_negatives=0, loss=loss, symmetric=False, **QUIET)
        trained, _ = train_embedder(load_embedder(), rows, settings)
        likeness[loss] = float(np.dot(*trained.encode([rows[0].wordings[0], rows[1].positive])))
    assert likeness["gist"] > likeness["mnrl"] + 0.1


def test_the_best_state_is_given_back_and_patience_ends_the_training():
    given = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    seen = {}

    def score(model):
        value = next(given)
        seen[value] = model.encode(["rent"])
        return value

    settings = EmbedderSettings(max_steps=8, batch_size=4, validations=8, patience=2, **QUIET)
    trained, log = train_embedder(load_embedder(), rows_of_secrets(), settings, score)
    assert log["steps"] == 3 and log["best_step"] == 1 and [s for _, s in log["scores"]] == [0.5, 0.7, 0.6, 0.65]
    np.testing.assert_allclose(trained.encode(["rent"]), seen[0.7], atol=1e-6)
    assert not np.allclose(seen[0.65], seen[0.7], atol=1e-4)


def test_a_loss_that_is_no_number_ends_it():
    settings = EmbedderSettings(max_steps=20, batch_size=4, learning_rate=1e30, **QUIET)
    with pytest.raises(TrainingError, match="lower learning_rate"):
        train_embedder(load_embedder(), rows_of_secrets(), settings)


@pytest.mark.parametrize(
    "wrong", [{"loss": "triplet"}, {"batch_size": 0}, {"learning_rate": 0.0}, {"warmup_share": 1.0}, {"patience": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(TrainingError, match=next(iter(wrong))):
        EmbedderSettings(**wrong)
