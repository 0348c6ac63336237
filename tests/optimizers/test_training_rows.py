"""Rows to tokens: what is learnt, checked token by token against the template; order, splits, formats, mixtures."""

from collections import Counter

import dspy
import pytest

from optimizers.errors import TrainingError
from optimizers.local_lm import load_weights
from optimizers.local_lm.tiny import write_tiny_model
from optimizers.local_lm.training.formats import instruction_rows, mix_rows
from optimizers.local_lm.training.order import count_steps, schedule, split_rows
from optimizers.local_lm.training.rows import encode, longest
from optimizers.local_lm.training.settings import settings_from

PAIR = {"prompt": "Which law?", "chosen": "Ohio", "rejected": "none"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return load_weights(write_tiny_model(tmp_path_factory.mktemp("rows") / "tiny", context_tokens=256))


def settings(**kwargs):
    return settings_from(kwargs)[0]


def learnt(weights, columns):
    """The text of each run of labelled tokens."""
    runs, run = [], []
    for token, label in zip(columns["input_ids"], columns["labels"], strict=True):
        assert label in (-100, token)
        if label == -100 and run:
            runs.append(run)
            run = []
        elif label != -100:
            run.append(token)
    return [weights.tokenizer.decode(tokens) for tokens in [*runs, run] if tokens]


CHAT = [
    {"role": "system", "content": "You review."},
    {"role": "user", "content": "Law?"},
    {"role": "assistant", "content": "Ohio"},
    {"role": "user", "content": "Term?"},
    {"role": "assistant", "content": "Two years"},
]


def test_last_answer_alone_or_every_answer(weights):
    last = encode(weights, [{"messages": CHAT}], settings()).columns[0]
    every = encode(weights, [{"messages": CHAT}], settings(loss_on="every")).columns[0]
    assert learnt(weights, last) == ["Two years<|im_end|>"]
    assert learnt(weights, every) == ["Ohio<|im_end|>", "Two years<|im_end|>"]
    whole = weights.tokenizer.apply_chat_template(CHAT, tokenize=False).rstrip("\n")
    assert weights.tokenizer.decode(every["input_ids"]) == whole


def test_a_row_may_say_of_what_it_is_learnt(weights):
    given = [{"messages": CHAT}, {"messages": CHAT, "loss_on": "every"}, {"messages": CHAT, "loss_on": "last"}]
    n_learnt = [len(learnt(weights, columns)) for columns in encode(weights, given, settings()).columns]
    assert n_learnt == [1, 2, 1]
    n_learnt = [len(learnt(weights, columns)) for columns in encode(weights, given, settings(loss_on="every")).columns]
    assert n_learnt == [2, 2, 1]


def test_a_template_that_rewrites_earlier_answers_gets_a_row_a_turn(weights, monkeypatch):
    forgets = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and not loop.last %}…{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    monkeypatch.setattr(weights.tokenizer, "chat_template", forgets)
    rows = encode(weights, [{"messages": CHAT}], settings(loss_on="every"))
    assert rows.split == 1
    assert [learnt(weights, columns) for columns in rows.columns] == [["Ohio<|im_end|>"], ["Two years<|im_end|>"]]


def test_pairs_ratings_and_teachers_keep_prompt_and_answer_apart(weights):
    pair = encode(weights, [PAIR], settings(method="dpo")).columns[0]
    assert weights.tokenizer.decode(pair["chosen_ids"]) == "Ohio<|im_end|>"
    assert weights.tokenizer.decode(pair["prompt_ids"]).endswith("<|im_start|>assistant\n")
    rated = encode(weights, [{"prompt": "Law?", "completion": "x", "label": True}], settings(method="kto")).columns[0]
    assert rated["label"] is True and weights.tokenizer.decode(rated["completion_ids"]) == "x<|im_end|>"
    row = {"prompt": "Law?", "completion": "x", "teacher_prompt": "Law? It is x."}
    taught = encode(weights, [row], settings(method="distill")).columns[0]
    assert "It is x." in weights.tokenizer.decode(taught["teacher_ids"])


@pytest.mark.parametrize(
    ("method", "row", "told"),
    [
        ("sft", {"text": "x"}, "has keys"),
        ("sft", {"messages": CHAT[:2]}, "the last must be the assistant's"),
        ("sft", {"messages": CHAT, "loss_on": "first"}, "loss_on='first'; use one of last, every"),
        ("dpo", {"prompt": "x", "completion": "y"}, "give chosen and prompt and rejected"),
        ("dpo", {**PAIR, "rejected": "Ohio"}, "to itself"),
        ("dpo", {**PAIR, "rejected": None}, "no likelihood term"),
        ("kto", {"prompt": "x", "completion": "y", "label": 1}, "must be True"),
        ("distill", {"prompt": "x", "completion": "y"}, "teacher_prompt"),
    ],
)
def test_a_wrong_row_is_refused_by_its_number(weights, method, row, told):
    good = {"sft": {"messages": CHAT}, "dpo": PAIR}.get(method)
    rows = [good, row] if good else [row]
    with pytest.raises(TrainingError, match=told) as caught:
        encode(weights, rows, settings(method=method))
    assert f"training row {len(rows) - 1}" in str(caught.value)


def test_long_rows_are_left_out_and_counted_never_cut(weights):
    given = [{"prompt": "x" * (400 if i == 3 else 5), "completion": "y"} for i in range(20)]
    rows = encode(weights, given, settings())
    assert rows.too_long == (3,) and len(rows.columns) == 19 and 3 not in rows.source
    assert all(longest(columns) <= 256 for columns in rows.columns)
    with pytest.raises(TrainingError, match=r"1 of 4 training rows exceed 256 tokens"):
        encode(weights, given[:4], settings())
    with pytest.raises(TrainingError, match="nothing to train on: 1 rows came, 1 of them above"):
        encode(weights, given[3:4], settings(max_dropped=1.0))
    with pytest.raises(TrainingError, match="no rows came"):
        encode(weights, [], settings())


def made(weights, n, **extra):
    return encode(weights, [{"prompt": f"{i}" * (1 + i % 7), "completion": "y", **extra} for i in range(n)], settings())


def test_a_group_is_never_on_both_sides(weights):
    given = [{"prompt": f"{i}", "completion": "y", "group": f"contract {i % 5}"} for i in range(40)]
    rows = encode(weights, given, settings())
    train, val = split_rows(rows, 0.4, seed=1)
    assert set(train.groups) | set(val.groups) == {f"contract {i}" for i in range(5)}
    assert not set(train.groups) & set(val.groups) and len(set(val.groups)) == 2
    with pytest.raises(TrainingError, match="at least two groups"):
        split_rows(made(weights, 3, group="one"), 0.5, seed=0)


def test_every_epoch_holds_every_row_once_and_the_seed_decides(weights):
    rows = made(weights, 21)
    one = settings(epochs=2, batch_size=4)
    plan = schedule(rows, one)
    assert sorted(plan[:21]) == sorted(plan[21:]) == list(range(21)) and plan[:21] != plan[21:]
    assert plan == schedule(rows, one) != schedule(rows, settings(epochs=2, batch_size=4, seed=1))
    assert count_steps(21, one) == 11 and count_steps(21, settings(max_steps=5)) == 5
    assert len(schedule(rows, settings(max_steps=3, batch_size=4, gradient_accumulation_steps=2))) == 24


def test_easy_rows_come_first_by_their_own_difficulty_or_by_loss(weights):
    given = [{"prompt": "x", "completion": "y", "difficulty": d} for d in (0.9, 0.1, 0.5)]
    easy = settings(order="easy_to_hard", epochs=1)
    assert schedule(encode(weights, given, easy), easy) == [1, 2, 0]
    assert schedule(made(weights, 3), easy, losses=[2.0, 3.0, 1.0]) == [2, 0, 1]
    with pytest.raises(TrainingError, match="difficulty"):
        schedule(made(weights, 3), easy)


class Ask(dspy.Signature):
    """Answer from the clause."""

    clause: str = dspy.InputField()
    answer: str = dspy.OutputField()


def test_formats_of_one_task(weights):
    examples = [dspy.Example(clause=f"clause {i}", answer=f"a{i}", group=f"g{i}") for i in range(60)]
    adapter = dspy.ChatAdapter()
    rows = instruction_rows(
        Ask, examples, adapter, formats={"description": 1, "demonstrations": 1, "fields": 1}, demos=examples, n_demos=1
    )
    shapes = Counter(tuple(turn["role"] for turn in row["messages"]) for row in rows)
    assert set(shapes) == {
        ("system", "user", "assistant"),
        ("system", "user", "assistant", "user", "assistant"),
        ("user", "assistant"),
    }
    assert min(shapes.values()) > 10
    assert all(row["group"] == example["group"] for row, example in zip(rows, examples, strict=True))
    shown = [row for row in rows if len(row["messages"]) == 5]
    assert all(row["messages"][1]["content"] != row["messages"][3]["content"] for row in shown)
    with pytest.raises(TrainingError, match="needs demos"):
        instruction_rows(Ask, examples, adapter, formats={"demonstrations": 1})
    with pytest.raises(TrainingError, match="not known"):
        instruction_rows(Ask, examples, adapter, formats={"haiku": 1})


def test_a_mixture_keeps_its_proportions_and_a_small_task_comes_round_again():
    tasks = {"review": [{"messages": i} for i in range(500)], "write": [{"messages": -1}], "idle": []}
    rows = mix_rows(tasks, {"review": 3, "write": 1, "idle": 0}, n_rows=400, seed=0)
    written = sum(row["messages"] == -1 for row in rows)
    assert len(rows) == 400 and 70 < written < 130
    assert rows == mix_rows(tasks, {"review": 3, "write": 1, "idle": 0}, n_rows=400, seed=0)
    with pytest.raises(TrainingError, match="have no rows"):
        mix_rows(tasks, {"review": 1, "write": 1, "idle": 1}, n_rows=4)
    with pytest.raises(TrainingError, match="needs a weight"):
        mix_rows(tasks, {"review": 1}, n_rows=4)


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"method": "ppo"}, "method='ppo' is not known; use one of"),
        ({"epochs": 0}, "must be above 0"),
        ({"learning_rate": -1.0}, "must be above 0"),
        ({"val_share": 1.0}, "val_share"),
        ({"order": "backwards"}, "order='backwards'"),
        ({"loss_on": "prompt"}, "loss_on='prompt'"),
        ({"patience": 2}, "set val_share above 0"),
        ({"search": 4}, "set val_share above 0"),
        ({"method": "distill", "divergence": "l2"}, "divergence='l2'"),
    ],
)
def test_settings_out_of_range_are_refused(kwargs, told):
    with pytest.raises(TrainingError, match=told):
        settings_from(kwargs)
