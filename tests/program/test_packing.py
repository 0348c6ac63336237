"""Trees of tokens: their mask against plain causal attention, and the rows that are laid into them."""

import re
from random import Random

import dspy
import pytest
import torch
from transformers import AutoModelForCausalLM

from modules.signatures import NO_QUOTE, NOT_FOUND, CompareAnswers, ReviewPassages, WriteQuestion
from optimizers.local_lm.tiny import write_tiny_model
from program.base_model import rows
from program.base_model.packing import DECISION_WEIGHT, PROMPT_WEIGHT, pack, tree_mask
from program.base_model.rows import Segment, Tree
from program.base_model.tokenizer import train_tokenizer
from program.base_model.train import HELD_BACK, known_houses

ADAPTER = dspy.ChatAdapter()


def _ids(n, start):
    return tuple(range(start, start + n))


FORKED = Tree(
    Segment(_ids(7, 10), 7), (Segment(_ids(5, 30), 2, (3, 4)), Segment(_ids(4, 40), 0, (2,)), Segment(_ids(6, 50), 6))
)
LONE = Tree(Segment(_ids(4, 60), 4), (Segment(_ids(5, 70), 0),))
SMALL = Tree(Segment(_ids(3, 80), 3), (Segment(_ids(3, 90), 1),))


def _places(batch, number, branch):
    """(row, positions) of one branch of the tree that is the `number`-th longest."""
    places = ((batch.tree_B_T == number) & (batch.branch_B_T == branch)).nonzero()
    assert len(places[:, 0].unique()) == 1
    return int(places[0, 0]), places[:, 1]


@pytest.fixture(scope="module")
def batch():
    return pack([SMALL, FORKED, LONE], n_rows=2, n_tokens=32)


@pytest.fixture(scope="module")
def material():
    """Two generated contracts and a tokenizer trained on them."""
    sheet, other = rows.draw_sheet(("ashgrove",), Random(1)), rows.draw_sheet(("calderon",), Random(2))
    texts = [passage.text for s in (sheet, other) for passage in s.passages]
    return train_tokenizer(texts), sheet, other


def test_each_branch_is_computed_as_if_alone(batch, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path), dtype=torch.float32).eval()
    with torch.no_grad():
        packed = model(
            input_ids=batch.ids_B_T, position_ids=batch.positions_B_T, attention_mask=tree_mask(batch), use_cache=False
        ).logits
        for number, tree in enumerate((FORKED, LONE, SMALL), start=1):
            depth = len(tree.prefix.ids)
            for n, branch in enumerate(tree.branches, start=1):
                alone = model(input_ids=torch.tensor([tree.prefix.ids + branch.ids]), use_cache=False).logits[0]
                for place, wanted in ((0, alone[:depth]), (n, alone[depth:])):
                    row, positions = _places(batch, number, place)
                    assert (packed[row, positions] - wanted).abs().max() < 1e-4
    assert packed.std() > 0.1  # logits that are all alike would agree whatever the mask


def test_targets_and_weights_of_a_forked_tree(batch):
    p, d = PROMPT_WEIGHT, DECISION_WEIGHT
    # Where a token predicts the next: prompt, then completion, of which all but the deciding words weigh 1. The last
    # token of a segment predicts nothing: what follows it in the row is another branch.
    weights = [p] * 6 + [0], [p, 1, d, d, 0], [1, d, 1, 0], [p] * 5 + [0]
    for place, (segment, wanted) in enumerate(zip((FORKED.prefix, *FORKED.branches), weights, strict=True)):
        row, at = _places(batch, 1, place)
        assert batch.ids_B_T[row, at].tolist() == list(segment.ids)
        assert batch.targets_B_T[row, at[:-1]].tolist() == list(segment.ids[1:])
        assert batch.weights_B_T[row, at].tolist() == pytest.approx(wanted)


def test_a_lone_branch_without_a_prompt_is_predicted_from_its_first_token(batch):
    row, prefix = _places(batch, 2, 0)
    _, branch = _places(batch, 2, 1)
    assert batch.targets_B_T[row, prefix[-1]] == LONE.branches[0].ids[0]
    assert batch.weights_B_T[row, prefix].tolist() == pytest.approx([PROMPT_WEIGHT] * 3 + [1.0])
    assert batch.weights_B_T[row, branch].tolist() == [1.0] * 4 + [0.0]
    row, prefix = _places(batch, 3, 0)  # the first token of this one belongs to its prompt
    assert batch.weights_B_T[row, prefix[-1]] == 0


def test_the_words_that_open_a_quote_or_a_question_decide(material):
    tokenizer = material[0]
    for signature, tree in _trees(material):
        for branch in tree.branches:
            said = _places_of_fields(tokenizer, branch)
            wanted = [said["quotes"]] if signature is not WriteQuestion else [said["question"], said["quotes"]]
            assert branch.deciding == tuple(place for start in wanted for place in range(start, start + 4))


def _places_of_fields(tokenizer, branch):
    """Where the completion's fields start, by their markers."""
    places = {}
    for place in range(branch.n_prompt, len(branch.ids)):
        if marker := re.fullmatch(r"\s*\[\[ ## (\w+) ## \]\]\s*", tokenizer.decode([branch.ids[place]])):
            places[marker[1]] = place + 1
    return places


def test_padding_weighs_nothing_and_a_tree_that_does_not_fit_is_left_out(batch):
    padding = batch.tree_B_T == 0
    assert padding.sum() == 2 * 32 - len(FORKED) - len(LONE) - len(SMALL)
    assert batch.weights_B_T[padding].sum() == 0
    assert tree_mask(batch).any(dim=-1).all()  # a row of the mask that sees nothing would be nan
    assert (pack([FORKED, LONE], n_rows=1, n_tokens=24).tree_B_T == 2).sum() == 0


def _encode(tokenizer, text):
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _field(text, name):
    return re.findall(rf"\[\[ ## {name} ## \]\]\n(.*?)(?:\n\n\[\[ ##|\n\nRespond|\Z)", text, re.S)[-1]


def _trees(material):
    tokenizer, sheet, other = material
    rng = Random(3)
    for _ in range(6):
        yield ReviewPassages, rows.review_tree(tokenizer, sheet, rng, max_tokens=3000, k=4)
        yield ReviewPassages, rows.review_tree(tokenizer, sheet, rng, max_tokens=3000, k=2, demo=other)
        yield CompareAnswers, rows.compare_tree(tokenizer, sheet, other, rng, max_tokens=3000)
        if tree := rows.write_tree(tokenizer, sheet, rng, max_tokens=3000):
            yield WriteQuestion, tree


def test_encoding_prefix_and_branch_apart_is_encoding_the_whole(material):
    tokenizer, seen = material[0], set()
    for signature, tree in _trees(material):
        seen.add(signature)
        for branch in tree.branches:
            # Prompt and completion are encoded apart in serving and fine-tuning too (optimizers/local_lm/prompts.py).
            prompt, completion = tree.prefix.ids + branch.ids[: branch.n_prompt], branch.ids[branch.n_prompt :]
            assert _encode(tokenizer, tokenizer.decode(prompt)) == prompt
            assert _encode(tokenizer, tokenizer.decode(completion)) == completion
    assert len(seen) == 3


def test_prompts_are_those_that_dspy_writes(material):
    tokenizer, sheet, _ = material
    tree = rows.review_tree(tokenizer, sheet, Random(4), max_tokens=3000, k=4)
    assert len(tree.branches) > 2
    for branch in tree.branches:
        prompt = tree.prefix.ids + branch.ids[: branch.n_prompt]
        text = tokenizer.decode(prompt)
        inputs = {"passages": _field(text, "passages"), "question": _field(text, "question")}
        messages = ADAPTER.format(ReviewPassages, demos=[], inputs=inputs)
        served = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert prompt == _encode(tokenizer, served)


def test_what_a_review_tree_teaches_stands_in_its_passages(material):
    tokenizer, sheet, _ = material
    answers = []
    for seed in range(12):
        tree = rows.review_tree(tokenizer, sheet, Random(seed), max_tokens=3000, k=3)
        passages = _field(tokenizer.decode(tree.prefix.ids), "passages")
        for branch in tree.branches:
            asked = _field(tokenizer.decode(tree.prefix.ids + branch.ids[: branch.n_prompt]), "question")
            said = tokenizer.decode(branch.ids[branch.n_prompt :])
            assert said.endswith("<|im_end|>")
            fields = ADAPTER.parse(ReviewPassages, said.removesuffix("<|im_end|>"))
            (label,) = [label for label in sheet.labels if label.question.text == asked]
            answers.append(fields["answer"])
            if fields["answer"] == NOT_FOUND:
                assert fields["quotes"] == NO_QUOTE
                # Not even half of a quote is shown to a question that is taught to be unanswered.
                shown = [sheet.contract.text[span.start : span.end] for span in label.spans]
                assert not any(" ".join(quote.split()) in passages for quote in shown)
            else:
                assert fields["answer"] == rows.gold(sheet, label)[1]
                assert all(quote in passages for quote in fields["quotes"].splitlines())
    assert 0.3 < answers.count(NOT_FOUND) / len(answers) < 0.7


def test_the_right_answer_stands_under_its_letter_and_never_against_itself(material):
    _, sheet, other = material
    letters = set()
    for seed in range(20):
        for label in sheet.labels:
            quotes, answer = rows.gold(sheet, label)
            inputs, outputs = rows.comparison(sheet, other, label, quotes, answer, Random(seed))
            lines = inputs["candidates"].split("\n")
            assert [line[-4:] for line in lines] == [" [A]", " [B]"]
            assert outputs["better"] in lines and outputs["better"][:-4] == answer
            (wrong,) = [line[:-4] for line in lines if line != outputs["better"]]
            assert wrong != answer
            letters.add(outputs["better"][-4:])
    assert letters == {" [A]", " [B]"}


def test_the_held_back_houses_are_not_trained_on():
    assert HELD_BACK == ("greyfriars", "juniper", "lindqvist") and not set(HELD_BACK) & set(known_houses())
