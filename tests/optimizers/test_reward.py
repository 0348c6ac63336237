"""Reward models on tiny networks: what they learn, what they leave behind, files that are what was written."""

import json
import math
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import dspy
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from trl.trainer.reward_trainer import DataCollatorForPreference

from optimizers.errors import ModelError, TrainingError
from optimizers.local_lm import forget_engines, local_lm
from optimizers.local_lm.tiny import write_tiny_model
from optimizers.preference_types import Preference
from optimizers.reward import RankedPair, RewardModel, ranked_pairs, rewards_dir, train_reward
from optimizers.reward_calibration import ece, fit_calibration, reliability
from optimizers.reward_network import RewardNetwork, new_head, plan_batches, score_ids
from optimizers.reward_rows import encode_answered, encode_pairs
from optimizers.reward_training import RewardSettings, RewardTask, build_trainer

QUICK = RewardSettings(epochs=3, rank=4, alpha=8, learning_rate=3e-3, progress=False, bf16=False)
ASK = [{"role": "user", "content": "Renews?"}]


def pair(i, group=None, **kwargs):
    messages = ({"role": "user", "content": f"Say {i}"},)
    return RankedPair(messages, f"yes {i}.", f"no {i}!", f"c{i % 4}" if group is None else group, "gold", **kwargs)


PAIRS, VAL = [pair(i) for i in range(24)], [pair(i, "held out") for i in range(24, 32)]


def sides(pairs):
    return [p.messages for p in pairs], [p.chosen for p in pairs], [p.rejected for p in pairs]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("reward") / "tiny", context_tokens=256)


@pytest.fixture
def lm(tiny, tmp_path):
    yield local_lm(tiny, work_dir=tmp_path / "work", max_tokens=16)
    forget_engines()


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """One trained model, and the base's scores before it: read only."""
    lm = local_lm(tiny, work_dir=tmp_path_factory.mktemp("trained") / "work", max_tokens=16)
    before = lm.engine.score(ASK, ["yes", "no"]), lm("Renews?")
    return lm, before, train_reward(lm, PAIRS, QUICK, val_pairs=VAL)


def test_an_obvious_preference_is_learnt_and_carries_over_to_other_prompts(trained):
    _, _, model = trained
    messages, chosen, rejected = sides(VAL)
    assert all(a > b for a, b in zip(model.scores(messages, chosen), model.scores(messages, rejected), strict=True))
    history = model.record["history"]
    assert history[-1]["loss"] < 0.2 < history[0]["loss"]
    assert [row["step"] for row in history] == list(range(1, 10))
    assert model.record["validation"][-1]["step"] == 9  # the end is looked at too
    assert model.calibration.n_pairs == 8 and model.calibration.temperature > 0


def test_the_base_answers_as_before_and_serves_on(trained):
    lm, (scores, said), model = trained
    model.scores([ASK], ["yes"])
    assert lm.engine.score(ASK, ["yes", "no"]) == scores
    assert lm("Renews?", cache=False) == said
    assert not any(p.requires_grad for p in lm.engine.weights.model.parameters())
    assert lm.engine.weights.tokenizer.pad_token == "<|endoftext|>"


def test_threads_that_score_and_ask_at_once_do_not_meet(trained):
    lm, (before, _), model = trained
    messages, chosen, _ = sides(VAL)
    alone = model.scores(messages, chosen)
    with ThreadPoolExecutor(6) as pool:
        scored = [pool.submit(model.scores, messages, chosen) for _ in range(6)]
        asked = [pool.submit(lm.engine.score, ASK, ["yes", "no"]) for _ in range(6)]
        assert all(np.allclose(one.result(), alone, atol=1e-4) for one in scored)
        assert all(np.allclose(one.result(), before, atol=1e-4) for one in asked)


def test_saved_and_loaded_scores_are_the_same(trained, tiny):
    lm, _, model = trained
    messages, chosen, _ = sides(VAL)
    before = model.scores(messages, chosen)
    forget_engines()
    again = local_lm(tiny, work_dir=lm.engine.work_dir, max_tokens=16)
    loaded = RewardModel.load(again.engine, model.name)
    assert loaded.scores(messages, chosen) == before
    assert loaded.calibration == model.calibration
    assert loaded.record == model.record


def test_the_folder_is_one_of_pefts_and_stock_libraries_score_the_same(trained, tiny):
    lm, _, model = trained
    folder = rewards_dir(lm.engine) / model.name
    stock = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1, dtype=torch.float32)
    network = PeftModel.from_pretrained(stock, folder)
    network.base_model.model.score.load_state_dict({"weight": load_file(folder / "score.safetensors")["score.weight"]})
    ids = encode_answered(lm.engine.weights, ASK, "yes")
    with torch.no_grad():
        expected = network.eval()(torch.tensor([ids])).logits.item()
    assert model.scores([ASK], ["yes"]) == pytest.approx([expected], abs=1e-4)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "score.safetensors", "reward.json"])
def test_a_file_that_was_changed_is_refused(trained, tmp_path, tiny, name):
    lm, _, model = trained
    shutil.copytree(rewards_dir(lm.engine) / model.name, tmp_path / "rewards" / model.name)
    other = local_lm(tiny, work_dir=tmp_path, max_tokens=16).engine
    assert RewardModel.load(other, model.name).name == model.name
    path = tmp_path / "rewards" / model.name / name
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ModelError, match=f"{name} in .* is not the file that was written"):
        RewardModel.load(other, model.name)


def test_another_base_and_another_head_are_refused(trained, tmp_path):
    lm, _, model = trained
    target = tmp_path / "work" / "rewards" / model.name
    shutil.copytree(rewards_dir(lm.engine) / model.name, target)
    other = local_lm(write_tiny_model(tmp_path / "other", seed=1), work_dir=tmp_path / "work").engine
    with pytest.raises(ModelError, match="load the base it was trained on"):
        RewardModel.load(other, model.name)
    marker = json.loads((target / "COMPLETE").read_text())
    save_file({"score.weight": torch.zeros(1, 7)}, target / "score.safetensors")
    marker["files"].pop("score.safetensors")
    (target / "COMPLETE").write_text(json.dumps(marker | {"base_digest": other.weights.digest}))
    with pytest.raises(ModelError, match=r"the head .* has shape \(1, 7\)"):
        RewardModel.load(other, model.name)


def test_a_name_stands_for_one_model(lm):
    first = train_reward(lm, PAIRS, QUICK)
    assert train_reward(lm, PAIRS, QUICK).name == first.name
    assert train_reward(lm, PAIRS, replace(QUICK, seed=1)).name != first.name
    assert first.calibration is None
    with pytest.raises(ModelError, match="give one prompt for each text"):
        first.scores([ASK], [])


def rewards(network, weights, pair):
    with torch.no_grad():
        ids = [torch.tensor([encode_answered(weights, pair.messages, text)]) for text in (pair.chosen, pair.rejected)]
        return [network(one, torch.ones_like(one)).logits.item() for one in ids]


@pytest.mark.parametrize(("margin_scale", "center"), [(None, None), (0.5, None), (None, 0.25)])
def test_the_loss_is_bradley_and_terrys(lm, tmp_path, margin_scale, center):
    weights, settings = lm.engine.weights, replace(QUICK, center_rewards_coefficient=center, batch_size=2)
    pairs = [pair(1, margin=2.0), replace(pair(2, margin=0.5), chosen="certainly, yes, at once")]
    rows = encode_pairs(weights, pairs, margin_scale=margin_scale)
    task = RewardTask(weights, rows, None, settings, tmp_path)
    network = RewardNetwork(weights, new_head(weights, 3))
    trainer = build_trainer(task, network, [0, 1], 1, tmp_path)
    batch = DataCollatorForPreference(0, 64)(
        [{k: v for k, v in row.items() if k != "prompt_ids"} for row in rows.columns]
    )
    loss = trainer.compute_loss(network, batch).item()
    expected = 0.0
    for one in pairs:
        chosen, rejected = rewards(network, weights, one)
        wanted = (margin_scale or 0) * one.margin
        expected += math.log(1 + math.exp(-(chosen - rejected - wanted))) / 2
        expected += (center or 0) * (chosen + rejected) ** 2 / 2
    assert loss == pytest.approx(expected, rel=1e-4)


def test_rows_are_the_policys_own_tokens(lm):
    weights = lm.engine.weights
    (row,) = encode_pairs(weights, [replace(pair(1), messages=tuple(ASK), chosen="yes")]).columns
    whole = weights.tokenizer.apply_chat_template([*ASK, {"role": "assistant", "content": "yes"}], tokenize=False)
    assert weights.tokenizer.decode(row["chosen_ids"]) == whole.rstrip("\n")
    assert row["chosen_ids"][-1] in weights.stop_ids


def test_long_pairs_are_refused_with_their_count_and_never_cut(lm):
    long = replace(pair(1), messages=({"role": "user", "content": "clause " * 60},))
    with pytest.raises(TrainingError, match=r"2 of 10 pairs exceed 256 tokens \(the first: pair 3\)"):
        train_reward(lm, [*PAIRS[:3], long, *PAIRS[3:8], long], QUICK)
    rows = encode_pairs(lm.engine.weights, [*PAIRS[:3], long], max_dropped=0.5)
    assert rows.too_long == (3,) and len(rows.columns) == 3
    with pytest.raises(TrainingError, match="no pairs"):
        encode_pairs(lm.engine.weights, [long], max_dropped=1.0)
    model = train_reward(lm, PAIRS[:8], replace(QUICK, epochs=1))
    with pytest.raises(dspy.lm15.ContextLengthError, match="1 of 2 texts .* nothing is cut"):
        model.scores([ASK, long.messages], ["a", "b"])


def test_pairs_that_teach_nothing_are_refused(lm):
    with pytest.raises(TrainingError, match="to itself"):
        train_reward(lm, [replace(pair(1), rejected="yes 1.")], QUICK)
    for margin in (None, -1.0, math.nan):
        with pytest.raises(TrainingError, match="pair 0 has margin"):
            train_reward(lm, [pair(1, margin=margin)], replace(QUICK, margin_scale=1.0))
    with pytest.raises(TrainingError, match="no pairs"):
        train_reward(lm, [], QUICK)
    with pytest.raises(TrainingError, match=r"1 groups are on both sides \(the first: 'c1'\)"):
        train_reward(lm, PAIRS, QUICK, val_pairs=[pair(1)])
    with pytest.raises(TrainingError, match="no weights in this process"):
        train_reward(dspy.LM("openai/gpt-5"), PAIRS, QUICK)


class InterruptedError_(Exception):
    pass


def test_a_run_that_is_stopped_or_fails_leaves_the_base_and_no_folder(lm):
    before, stop = lm.engine.score(ASK, ["yes"]), threading.Event()

    def fail(progress):
        if progress.step == 2:
            raise InterruptedError_

    with pytest.raises(InterruptedError_):
        train_reward(lm, PAIRS, QUICK, report=fail)
    with pytest.raises(TrainingError, match="stopped at step 2"):
        train_reward(lm, PAIRS, QUICK, stop=stop, report=lambda p: stop.set() if p.step == 2 else None)
    with pytest.raises(TrainingError, match="not finite"):
        train_reward(lm, PAIRS, replace(QUICK, learning_rate=1e30, epochs=20))
    assert lm.engine.score(ASK, ["yes"]) == before
    assert lm.engine.weights.graft is None and lm.engine.weights.tuning is None
    assert not rewards_dir(lm.engine).exists()


def test_the_weights_of_the_best_validation_are_kept_and_patience_ends_the_run(lm):
    # What validates says the opposite of what is learnt, so that the first look is the best.
    against = [replace(one, chosen=one.rejected, rejected=one.chosen) for one in VAL]
    settings = replace(QUICK, epochs=6, patience=2, validations=3)
    model = train_reward(lm, PAIRS, settings, val_pairs=against)
    looks = model.record["validation"]
    assert model.record["kept_step"] == looks[0]["step"] == 1
    assert len(looks) == 3  # and not 18
    messages, chosen, rejected = sides(against)
    told = np.array(model.scores(messages, chosen)) - np.array(model.scores(messages, rejected))
    assert np.mean(np.log1p(np.exp(-told))) == pytest.approx(looks[0]["loss"], abs=0.02)


def test_it_goes_on_from_the_adapter_that_the_lm_names(lm):
    rows = [{"prompt": p.messages[0]["content"], "completion": p.chosen} for p in PAIRS]
    tuned = lm.finetune(rows, None, {"max_steps": 4, "rank": 2, "progress": False, "bf16": False}).result()
    before = tuned.engine.score(ASK, ["yes"], model=tuned.model)
    model = train_reward(tuned, PAIRS, QUICK, val_pairs=VAL)
    assert model.record["parent"] == tuned.model.rpartition("@")[2]
    messages, chosen, rejected = sides(VAL)
    assert np.mean(np.array(model.scores(messages, chosen)) > model.scores(messages, rejected)) == 1
    assert tuned.engine.score(ASK, ["yes"], model=tuned.model) == before
    virtual = lm.finetune(rows, None, {"max_steps": 1, "tuner": "prompt", "progress": False, "bf16": False}).result()
    with pytest.raises(TrainingError, match="virtual tokens"):
        train_reward(virtual, PAIRS, QUICK)


def test_an_nf4_base_is_trained_on_in_4_bits(tiny, tmp_path):
    lm = local_lm(tiny, work_dir=tmp_path / "work", quantize="nf4")
    before = lm.engine.score(ASK, ["yes"])
    model = train_reward(lm, PAIRS, replace(QUICK, epochs=2), val_pairs=VAL)
    messages, chosen, rejected = sides(VAL)
    assert np.mean(np.array(model.scores(messages, chosen)) > model.scores(messages, rejected)) == 1
    assert lm.engine.score(ASK, ["yes"]) == before
    forget_engines()


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "phi3", "mistral-sliding"])
def test_served_scores_are_the_trained_networks_whatever_the_architecture(tmp_path, kind):
    engine = local_lm(write_tiny_model(tmp_path / kind, kind=kind), work_dir=tmp_path / "work").engine
    weights, head = engine.weights, new_head(engine.weights, 0)
    network = RewardNetwork(weights, head)
    rows = [encode_answered(weights, ASK, text) for text in ("yes", "no, it does not renew", "perhaps")]
    together = score_ids(weights.model, head, rows, engine.prefixes, None)
    for ids, score in zip(rows, together, strict=True):
        one = torch.tensor([ids])
        with torch.no_grad():
            assert network(one, torch.ones_like(one)).logits.item() == pytest.approx(score, abs=1e-4)
    forget_engines()


def test_answers_to_one_prompt_share_a_batch_and_its_prefix():
    rows = [[1] * n for n in (9, 5, 7, 3, 8)]
    assert plan_batches(rows, [0, 1, 0, 2, 0], 2) == [[0, 2], [4], [3, 1]]


def test_preferences_come_under_the_prompts_they_are_served_with():
    class Program(dspy.Module):
        def __init__(self):
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

    program, adapter = Program(), dspy.ChatAdapter()
    program.ask.demos = [dspy.Example(question="Which state?", answer="Utah")]
    both = Preference(0, {"question": "Renews?"}, "yes", "no", "c1", "Renews?", "edit", "anna", 1.5)
    pairs, n_unpaired = ranked_pairs([both, replace(both, rejected=None)], program, adapter)
    assert n_unpaired == 1
    inputs = {"question": "Renews?"}
    expected = tuple(adapter.format(program.ask.signature, program.ask.demos, inputs))
    assert pairs == [RankedPair(expected, "yes", "no", "c1", "edit", 1.5)]
    assert any("Utah" in message["content"] for message in pairs[0].messages)


def test_the_temperature_makes_stated_and_true_shares_agree():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 4000)  # true log odds that the first of two is the better
    first_is_better = rng.random(4000) < 1 / (1 + np.exp(-logits))
    told = 3 * np.where(first_is_better, logits, -logits)  # rewards that say three times as much
    fitted = fit_calibration(told, np.zeros(4000))
    assert fitted.temperature == pytest.approx(3, rel=0.1)
    assert fitted.center == pytest.approx(told.mean() / 2)
    raw, mended = (ece(reliability(told, t)[1].sum(0)) for t in (1.0, fitted.temperature))
    assert mended < 0.03 < raw


def test_the_temperature_stays_sane_at_the_ends():
    perfect = fit_calibration([2.0] * 8, [0.0] * 8)
    assert 1 / (1 + math.exp(-2 / perfect.temperature)) == pytest.approx(9 / 10, abs=1e-3)
    useless = fit_calibration([0.0, 1.0], [1.0, 0.0])
    assert 1 / (1 + math.exp(-1 / useless.temperature)) < 0.78
    assert fit_calibration([1.0], [1.0]).temperature > 0
    with pytest.raises(TrainingError, match="no validation pairs"):
        fit_calibration([], [])


def test_reliability_by_hand():
    # Odds of 3 at temperature 1: confidence 0.75, of which two of three are right; a tie is confidence 0.5, half right.
    told = [math.log(3), math.log(3), -math.log(3), 0.0]
    bins, counts = reliability(told, 1.0, n_bins=5)
    assert [(b.n, b.accuracy) for b in bins] == [(1, 0.5), (3, pytest.approx(2 / 3))]
    assert bins[1].confidence == pytest.approx(0.75)
    assert ece(counts.sum(axis=0)) == pytest.approx(3 / 4 * (0.75 - 2 / 3))
