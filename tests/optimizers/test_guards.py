"""Guards against forgetting: what each adds to a training, on a tiny model, and the optimizer they stand around."""

import json
import math

import dspy
import numpy as np
import pytest
import torch
from dspy.utils import DummyLM

from optimizers.errors import ModelError, TrainingError
from optimizers.guard_kinds import OVER_BUDGET, LowRate, ReplayLabels, ReplaySelf, Together
from optimizers.guard_kl import kl_per_token, sample_answers
from optimizers.guard_zoo import SkillZoo, known, nearest_centroid
from optimizers.guards import GUARDS, finetune_guarded, guard_from, guard_optimizer
from optimizers.local_lm import forget_engines, local_lm
from optimizers.local_lm.training.losses import anchored_nll
from optimizers.local_lm.tuning.adapters import serving
from optimizers.local_lm.tuning.merging import merge_adapters
from optimizers.stock import SteadyFinetune

pytestmark = pytest.mark.usefixtures("plain_chat")
QUIET = {"progress": False, "bf16": False, "batch_size": 4, "rank": 4, "learning_rate": 1e-2, "max_steps": 6}
ROWS = [{"messages": [{"role": "user", "content": f"Say {i % 5}"}, {"role": "assistant", "content": f"It is {i % 5}."}]}
        for i in range(12)]  # fmt: skip
OLD = [{"messages": [{"role": "user", "content": f"Sing {i}"}, {"role": "assistant", "content": "La."}]}
       for i in range(6)]  # fmt: skip
CHATS = [row["messages"][:-1] for row in OLD]


@pytest.fixture
def lm(folder, tmp_path):
    yield local_lm(folder, work_dir=tmp_path / "work", max_tokens=12)
    forget_engines()


def record(lm):
    engine = lm.engine
    return json.loads((engine.adapters_dir / engine.adapter_of(lm.model) / "training.json").read_text())


def logits(lm, text="Say 3"):
    engine = lm.engine
    ids = torch.tensor([engine.weights.tokenizer(text)["input_ids"]])
    with torch.no_grad(), serving(engine.weights, engine.adapter_of(lm.model), engine.adapters_dir) as served:
        return served.model(input_ids=ids).logits[0]


# --- the loss


def test_the_anchored_loss_by_hand():
    p, q = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1]])), torch.log(torch.tensor([[0.9, 0.1], [0.9, 0.1]]))
    kl = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    loss, told = anchored_nll(torch.tensor([0.4, 0.2]), p, q, beta=3.0)
    assert loss.item() == pytest.approx((0.6 + 3 * kl) / 2, rel=1e-5)
    assert told == {"nll": pytest.approx(0.3), "kl_incumbent": pytest.approx(kl / 2, rel=1e-5)}
    assert anchored_nll(torch.tensor([0.4, 0.2]), p, q, beta=3.0, n_tokens=4)[0].item() == pytest.approx(
        loss.item() / 2
    )


@pytest.mark.parametrize("top_k", [None, 8])
def test_a_small_penalty_trains_as_without_and_a_large_one_stays_nearer_the_incumbent(lm, top_k):
    said = sample_answers(lm, [row["messages"][:-1] for row in ROWS[:5]], seed=1)
    free, nearly, held = (
        finetune_guarded(lm, ROWS, guard_from("none"), QUIET | {"kl_beta": beta, "kl_top_k": top_k})
        for beta in (0.0, 1e-9, 5.0)
    )
    assert torch.allclose(logits(free), logits(nearly), atol=1e-3)
    far = [np.mean(kl_per_token(lm, tuned, said)) for tuned in (free, held)]
    assert 0 < far[1] < 0.7 * far[0]
    assert record(held)["history"][0]["loss"] == pytest.approx(record(free)["history"][0]["loss"], rel=1e-3)


def test_the_reference_is_the_incumbent_with_its_adapter_and_not_the_base(lm):
    incumbent = finetune_guarded(lm, OLD, guard_from("none"), QUIET | {"max_steps": 12})
    free, held = (
        finetune_guarded(incumbent, ROWS, guard, QUIET) for guard in (guard_from("none"), guard_from("kl", beta=20))
    )
    said = sample_answers(incumbent, [row["messages"][:-1] for row in ROWS[:5]], seed=1)
    far = [np.mean(kl_per_token(incumbent, tuned, said)) for tuned in (free, held)]
    assert far[1] < 0.7 * far[0]


def test_a_penalty_refuses_virtual_tokens_and_numbers_below_zero(lm):
    kwargs = {key: value for key, value in QUIET.items() if key != "rank"}
    with pytest.raises(TrainingError, match="virtual tokens"):
        finetune_guarded(lm, ROWS, guard_from("kl", beta=1.0), kwargs | {"tuner": "prompt"})
    with pytest.raises(TrainingError, match="kl_beta=-1"):
        lm.provider.dry_run(lm.model, ROWS, QUIET | {"kl_beta": -1})
    with pytest.raises(TrainingError, match="its own reference"):
        guard_from("kl").train_kwargs(lm, ROWS, {"method": "dpo"})


# --- distance


def test_kl_is_that_of_the_distributions_and_none_from_itself(lm):
    tuned = finetune_guarded(lm, ROWS, guard_from("none"), QUIET)
    one = sample_answers(lm, [CHATS[0]], temperature=0.0)[0]
    assert kl_per_token(lm, lm, [one]) == [0.0]
    before, after = (
        lm.engine.score(list(one.chat), [one.text], lm.model),
        lm.engine.score(list(one.chat), [one.text], tuned.model),
    )
    assert before != after
    weights = lm.engine.weights
    from optimizers.local_lm.prompts import encode_completion, encode_prompt

    prompt = encode_prompt(weights, one.chat)
    ids = prompt + encode_completion(weights, one.chat, one.text, with_end=one.whole)
    p, q = (_logps(lm.engine, name, ids)[len(prompt) - 1 : -1] for name in (None, lm.engine.adapter_of(tuned.model)))
    by_hand = (p.exp() * (p - q)).sum(-1).mean().item()
    assert kl_per_token(lm, tuned, [one])[0] == pytest.approx(by_hand, rel=1e-3, abs=1e-6)


def _logps(engine, name, ids):
    with torch.no_grad(), serving(engine.weights, name, engine.adapters_dir) as served:
        return served.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def test_the_same_seed_says_the_same_and_an_lm_elsewhere_is_refused(lm):
    first, again, other = (sample_answers(lm, CHATS, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    with pytest.raises(TrainingError, match="no local LM"):
        sample_answers(DummyLM([{"answer": "x"}]), CHATS)


# --- replay


def test_own_answers_are_those_of_the_incumbent_and_cut_ones_are_not_replayed(lm, folder):
    ending = finetune_guarded(lm, OLD, guard_from("none"), QUIET | {"max_steps": 40})
    rows = ReplaySelf(CHATS, n=9, temperature=0.0).rows(ending, ROWS)
    assert len(rows) == 9
    assert {row["messages"][-1]["content"] for row in rows} == {"La."}
    assert (
        ReplaySelf(lambda incumbent: CHATS[:1], n=2, temperature=0.0).rows(ending, ROWS)[0]["messages"][0]
        == CHATS[0][0]
    )
    with pytest.raises(TrainingError, match="did not end within max_tokens"):
        ReplaySelf(CHATS, n=4, max_cut=0.0).rows(lm.copy(max_tokens=2), ROWS)
    with pytest.raises(TrainingError, match="0 prompts"):
        ReplaySelf([], n=4).rows(lm, ROWS)


def test_earlier_labels_are_the_share_that_was_asked_for_or_an_error():
    guard = ReplayLabels(OLD, share=0.25)
    rows = guard.rows(None, ROWS)
    assert len(rows) == 4 and all(row in OLD for row in rows) and rows == guard.rows(None, ROWS)
    with pytest.raises(TrainingError, match="takes 12 earlier ones of 6"):
        ReplayLabels(OLD, share=0.5).rows(None, ROWS)
    with pytest.raises(TrainingError, match="for rows of method 'sft'"):
        guard.rows(None, [{"prompt": "a", "chosen": "b", "rejected": "c"}])


# --- low rate


def test_training_ends_within_the_budget_and_the_incumbent_stays_where_nothing_is(lm, caplog):
    kwargs = QUIET | {"max_steps": 16, "learning_rate": 2e-2}
    guard = LowRate(factor=0.1, kl_budget=0.2, every_steps=2, n_prompts=6)
    held = finetune_guarded(lm, ROWS, guard, kwargs)
    assert 0 < np.mean(kl_per_token(lm, held, guard._answers(lm, ROWS))) <= 0.2
    assert record(held)["settings"]["learning_rate"] == pytest.approx(2e-3)
    assert len(record(held)["history"]) < 16
    tight = finetune_guarded(lm, ROWS, LowRate(factor=0.1, kl_budget=1e-9, every_steps=2, n_prompts=6), kwargs)
    assert tight.model == lm.model and "the incumbent stays" in caplog.text


def test_the_callers_score_counts_within_the_budget_only(lm):
    asked = []
    told = LowRate(kl_budget=1.0, n_prompts=2).train_kwargs(
        lm, ROWS, {"validate": lambda model: asked.append(model) or 0.7}
    )
    assert told["validate"](lm.model) == 0.7 and asked == [lm.model]
    tuned = finetune_guarded(lm, ROWS, guard_from("none"), {"max_steps": 2, "progress": False})
    told = LowRate(factor=0.5, kl_budget=1e-9, n_prompts=2).train_kwargs(lm, ROWS, {"validate": lambda model: 0.7})
    assert told["validate"](tuned.model) <= OVER_BUDGET
    assert told["learning_rate"] == pytest.approx(0.5 * record(tuned)["settings"]["learning_rate"])


# --- merging


def test_merging_is_exact_at_both_ends_and_the_mean_of_the_weights_between(lm):
    incumbent = finetune_guarded(lm, OLD, guard_from("none"), QUIET)
    tuned = finetune_guarded(incumbent, ROWS, guard_from("none"), QUIET)
    at = {w: finetune_guarded(incumbent, ROWS, guard_from("merge", weight=w), QUIET) for w in (0.0, 0.5, 1.0)}
    assert at[0.0].model == incumbent.model and at[1.0].model == tuned.model
    updates = [_updates(each) for each in (incumbent, tuned, at[0.5])]
    for name, merged in updates[2].items():
        assert torch.allclose(merged, (updates[0][name] + updates[1][name]) / 2, atol=1e-6)
    assert not torch.allclose(logits(at[0.5]), logits(tuned), atol=1e-3)
    again = finetune_guarded(at[0.5], OLD, guard_from("none"), QUIET)  # a merged adapter is one like any other
    assert record(again)["parent"] == at[0.5].engine.adapter_of(at[0.5].model)


def _updates(lm):
    """B A, scaled, of each layer, read from what is served."""
    engine = lm.engine
    with torch.no_grad(), serving(engine.weights, engine.adapter_of(lm.model), engine.adapters_dir) as served:
        return {
            name: module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight
            for name, module in served.model.named_modules() if hasattr(module, "lora_A")
        }  # fmt: skip


def test_nearly_all_of_the_tuned_one_is_nearly_it_and_a_truncated_rank_keeps_to_the_best(lm):
    engine = lm.engine
    incumbent = finetune_guarded(lm, OLD, guard_from("none"), QUIET)
    tuned = finetune_guarded(incumbent, ROWS, guard_from("none"), QUIET | {"rank": 4})
    names = [engine.adapter_of(each.model) for each in (incumbent, tuned)]

    def merged(*told, **kwargs):
        return lm.copy(model=engine.model_string(merge_adapters(engine.weights, engine.adapters_dir, *told, **kwargs)))

    assert torch.allclose(logits(merged(*names, 1 - 1e-7)), logits(tuned), atol=1e-4)
    assert torch.allclose(logits(merged(*names, 1e-7)), logits(incumbent), atol=1e-4)
    assert torch.allclose(logits(merged(*names, 0.5)), logits(merged(*names, 0.5, rank=8)), atol=1e-4)
    assert merged(*names, 0.5, rank=2).model != merged(*names, 0.5).model
    assert torch.allclose(logits(merged(None, names[1], 1e-7)), logits(lm), atol=1e-4)  # the bare base as incumbent
    with pytest.raises(TrainingError, match="from 0 to 1"):
        merge_adapters(engine.weights, engine.adapters_dir, *names, 1.5)


def test_what_is_no_linear_update_is_not_averaged(lm):
    kwargs = {key: value for key, value in QUIET.items() if key != "rank"}
    with pytest.raises(TrainingError, match="of kind 'bottleneck', which cannot be averaged"):
        finetune_guarded(lm, ROWS, guard_from("merge"), kwargs | {"tuner": "bottleneck"})


# --- OSF and the zoo


def test_osf_trains_with_osf_and_goes_on_from_itself(lm):
    first = finetune_guarded(lm, OLD, guard_from("osf", learning_rate=1e-3), QUIET)
    assert record(first)["tuner"] == {"word": "osf", "options": {"kept": 0.5}}
    assert record(finetune_guarded(first, ROWS, guard_from("osf"), QUIET))["tuner"]["word"] == "osf"


def test_the_zoo_starts_from_the_base_and_routes(lm):
    incumbent = finetune_guarded(lm, OLD, guard_from("none"), QUIET)
    tuned = finetune_guarded(incumbent, ROWS, guard_from("zoo"), QUIET)
    assert record(tuned)["parent"] is None
    program = dspy.Predict("question -> answer")
    said = {"a": DummyLM([{"answer": "from a"}] * 9), "b": DummyLM([{"answer": "from b"}] * 9)}
    zoo = SkillZoo(program, said, known({"q1": "a", "q2": "b"}, "question"))
    assert (zoo(question="q2").answer, zoo(question="q1").skill) == ("from b", "a")
    with pytest.raises(ModelError, match="nobody said"):
        zoo(question="q3")
    with pytest.raises(ModelError, match="routed to skill 'c'"):
        SkillZoo(program, said, lambda given: "c")(question="q1")


def test_the_nearest_skill_is_by_direction_and_an_empty_one_is_refused():
    def embed(texts):
        return np.array([[len(t) * t.count("x"), len(t) * t.count("y") + 1e-6] for t in texts], dtype=float)

    route = nearest_centroid(embed, {"x": ["x", "xx"], "y": ["y"]}, text_of=lambda given: given["question"])
    assert [route({"question": text}) for text in ("xxxxxx", "yyy", "x")] == ["x", "y", "x"]
    assert nearest_centroid(embed, {"x": ["x"]}, str)({"question": "y"}) == "x"
    with pytest.raises(ModelError, match=r"\['y'\] have no texts"):
        nearest_centroid(embed, {"x": ["x"], "y": []}, str)


# --- by word, and around an optimizer


def test_words_and_options_that_are_not_known_are_refused():
    assert set(GUARDS) == {"none", "replay_self", "replay_labels", "kl", "osf", "low_rate", "merge", "zoo"}
    for word in ("ewc", "kl+ewc", "kl+"):
        with pytest.raises(TrainingError, match="not known; use one of"):
            guard_from(word)
    with pytest.raises(TrainingError, match=r"\['strength'\] of guard 'kl'"):
        guard_from("kl", strength=1)
    with pytest.raises(TrainingError, match="lacks an option"):
        guard_from("replay_self")


@pytest.mark.parametrize("word", ["kl+none", "zoo+kl", "kl+osf+kl"])
def test_guards_that_cannot_stand_together_are_refused(word):
    with pytest.raises(TrainingError, match="each once, and neither 'none' nor 'zoo'"):
        guard_from(word)


def test_guards_together_act_in_one_order_and_share_their_options(lm):
    replay, penalty, low = (
        guard_from("replay_labels", earlier=OLD, share=0.25, seed=3),
        guard_from("kl", beta=2),
        guard_from("low_rate", n_prompts=2, seed=3),
    )
    guard = guard_from("low_rate+kl+replay_labels", earlier=OLD, share=0.25, beta=2, n_prompts=2, seed=3)
    assert guard == Together((replay, penalty, low)) and guard.name == "ReplayLabels+KLPenalty+LowRate"
    assert guard.rows(lm, ROWS) == replay.rows(lm, ROWS)
    given = guard.train_kwargs(lm, ROWS, QUIET)
    assert (given["kl_beta"], given["learning_rate"], given["keep"]) == (2, pytest.approx(0.2e-2), "best")
    with pytest.raises(TrainingError, match=r"\['strength'\] of guard 'replay_labels\+kl'"):
        guard_from("replay_labels+kl", earlier=OLD, strength=1)
    averaged = guard_from("merge+kl", weight=0.5)
    tuned = finetune_guarded(lm, ROWS, averaged, QUIET)
    assert "merge-" in tuned.model and record(tuned)["merged"]["weight"] == 0.5
    stays = guard_from("low_rate+merge", kl_budget=1e-9, every_steps=2, n_prompts=2)
    assert finetune_guarded(lm, ROWS, stays, QUIET).model == lm.model


def test_an_optimizers_trainings_are_guarded_and_told(lm):
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    teacher = dspy.Predict("question -> answer")
    teacher.set_lm(DummyLM([{"answer": "yes"}] * 9))
    train = [dspy.Example(question=f"q{i}", answer="yes").with_inputs("question") for i in range(6)]
    tune = SteadyFinetune(train_kwargs=QUIET | {"max_length_tokens": 2000}, num_threads=1)
    tune = guard_optimizer(tune, ReplayLabels(OLD, share=0.25))
    tuned = tune.compile(program, trainset=train, teacher=teacher)
    (told,) = tune.guarded
    assert (told.guard, told.n_rows, told.n_extra, told.incumbent) == ("ReplayLabels", 6, 2, lm.model)
    assert told.trained == told.served == tuned.lm.model
    assert record(tuned.lm)["rows"] == 8
