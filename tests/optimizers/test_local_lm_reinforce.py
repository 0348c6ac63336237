"""GRPO on tiny models: losses against hand-computed values, rollouts found again, the job, and DSPy's own optimizer."""

import math
import threading
from dataclasses import replace

import dspy
import pytest
import torch
from dspy.teleprompt.grpo import GRPO
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimizers.errors import TrainingError
from optimizers.local_lm import local_lm
from optimizers.local_lm.reinforce import GRPOSettings, LocalReinforceJob, job, policy
from optimizers.local_lm.reinforce.losses import LOSS_TYPES, group_advantages, grpo_loss, kl_k3
from optimizers.local_lm.reinforce.policy import Sample, Update, completion_logps, update_policy
from optimizers.local_lm.reinforce.rollouts import encode_groups, fields_of, match, read_groups
from optimizers.local_lm.reinforce.settings import grpo_settings
from optimizers.local_lm.serving.engine import Completion
from optimizers.local_lm.tiny import write_tiny_model
from optimizers.local_lm.tuning.adapters import training
from optimizers.local_lm.tuning.tuners import tuner_from

ANSWERS = ["yes", "no", "perhaps", "never"]
QUICK = {"rank": 4, "alpha": 8, "learning_rate": 3e-3}
CHAT = dspy.ChatAdapter(use_json_adapter_fallback=False)


def spoken(answer):
    return f"Well.\n[[ ## answer ## ]]\n{answer}\n\n[[ ## completed ## ]]"


def write_choosing_model(folder, texts):
    """A model that says one of `texts`, each as likely, by construction: each is one token, behind a line's end.

    Attention and feed-forward add nothing to the residual stream, so the head sees the last token's embedding alone.
    """
    write_tiny_model(folder, hidden=64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in texts])
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.config.tie_word_embeddings = False
    directions = torch.linalg.qr(torch.randn(64, 64, generator=torch.manual_seed(0)))[0]
    embeddings = torch.randn(len(tokenizer), 64, generator=torch.manual_seed(1))
    embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
    line_end, said = tokenizer.encode("\n")[0], [tokenizer.encode(text)[0] for text in texts]
    embeddings[line_end], embeddings[said] = directions[0], directions[1].expand(len(said), -1)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(embeddings))
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(embeddings)
        for at, token in enumerate(said):
            model.lm_head.weight[token] = 4 * directions[0] + directions[2 + at]
        model.lm_head.weight[tokenizer.eos_token_id] = 4 * directions[1]
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


pytestmark = pytest.mark.usefixtures("fresh_engines")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_choosing_model(tmp_path_factory.mktemp("choosing") / "tiny", [spoken(answer) for answer in ANSWERS])


@pytest.fixture
def lm(folder, tmp_path):
    return local_lm(folder, work_dir=tmp_path / "work", max_tokens=8, temperature=1.0)


def examples(count=2):
    return [dspy.Example(question=f"q {i}").with_inputs("question") for i in range(count)]


def says_yes(example, prediction, trace=None):
    return float(prediction.answer == "yes")


def reinforced(program, lm, steps=4, metric=says_yes, adapter=None, trainset=None, **train_kwargs):
    """The program that stock GRPO makes, and the job it ran."""
    program.set_lm(lm)
    jobs, real = [], lm.provider.ReinforceJob
    lm.provider.ReinforceJob = lambda **kwargs: jobs.append(real(**kwargs)) or jobs[-1]
    grpo = GRPO(
        metric=metric, multitask=True, exclude_demos=True, num_threads=8, num_train_steps=steps, adapter=adapter,
        num_dspy_examples_per_grpo_step=2, num_rollouts_per_grpo_step=8, train_kwargs={**QUICK, **train_kwargs},
    )  # fmt: skip
    try:
        return grpo.compile(program, trainset=trainset or examples()), jobs[0]
    finally:
        lm.provider.ReinforceJob = real


def rollout(answer, reward, question="q"):
    """A rollout as dspy.GRPO sends it."""
    signature = dspy.Signature("question -> answer")
    rows = CHAT.format_finetune_data(signature, [], {"question": question}, dspy.Prediction(answer=answer))["messages"]
    return {"messages": rows[:-1], "completion": rows[-1], "reward": reward}


def groups(*rewards):
    """One group per tuple of rewards, each rollout another text."""
    return [
        {"batch_id": i, "group": [rollout(ANSWERS[at % 4], reward) for at, reward in enumerate(group)]}
        for i, group in enumerate(rewards)
    ]


def start(lm, **train_kwargs):
    return lm.reinforce({**QUICK, "max_unmatched": 1.0, **train_kwargs})


def chances(lm, model=None):
    chat = [{"role": "user", "content": "q"}]
    return lm.engine.score(chat, [spoken(answer) for answer in ANSWERS], model)


# -- losses


def test_advantages_by_hand():
    each = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    assert group_advantages(torch.tensor([1.0, 0, 0, 1])).tolist() == pytest.approx([each, -each, -each, each])
    assert group_advantages(torch.tensor([3.0, 1, 2]), scale=False).tolist() == [1.0, -1.0, 0.0]
    assert group_advantages(torch.tensor([0.1, 0.1, 0.1])).tolist() == [0.0] * 3
    assert group_advantages(torch.tensor([5.0])).tolist() == [0.0]


def test_kl_k3_by_hand():
    kl = kl_k3(torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1.0, -1.5, -0.5]))
    assert kl.tolist() == pytest.approx([0.0, math.exp(-0.5) - 0.5, math.exp(0.5) - 1.5])


# Ratios: row 0 (A=1) 1.5 → held at 1.2, 1, 0.5 → 0.5; row 1 (A=-2) 0.5 → held at 0.8, and two tokens of padding.
OLD = torch.full((2, 3), -1.0)
NEW = OLD + torch.tensor([[1.5, 1.0, 0.5], [0.5, 9.0, 9.0]]).log()
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])
GAINS = torch.tensor([1.0, -2.0])


@pytest.mark.parametrize(
    ("loss_type", "by_hand"),
    [
        ("grpo", (-(1.2 + 1 + 0.5) / 3 + 1.6) / 2),
        ("bnpo", (-(1.2 + 1 + 0.5) + 1.6) / 4),
        ("dapo", (-(1.2 + 1 + 0.5) + 1.6) / 4),
        ("dr_grpo", (-(1.2 + 1 + 0.5) + 1.6) / (2 * 10)),
    ],
)
def test_the_clipped_loss_by_hand(loss_type, by_hand):
    loss, metrics = grpo_loss(NEW, OLD, GAINS, MASK, loss_type=loss_type, max_tokens=10)
    assert float(loss) == pytest.approx(by_hand, abs=1e-6)
    assert metrics == {"tokens": 4.0, "clipped": 2.0, "kl": 0.0}


def test_the_kl_penalty_and_the_upper_clip_by_hand():
    ref = NEW - 0.5
    loss, metrics = grpo_loss(NEW, OLD, GAINS, MASK, ref, beta=0.1, epsilon_high=0.28, loss_type="dapo")
    each = math.exp(-0.5) - 0.5
    assert float(loss) == pytest.approx((-(1.28 + 1 + 0.5) + 1.6 + 0.1 * 4 * each) / 4, abs=1e-6)
    assert metrics["kl"] == pytest.approx(4 * each, abs=1e-5)


def test_clipped_and_padded_tokens_have_no_gradient_and_the_others_that_of_the_policy_gradient():
    new = NEW.clone().requires_grad_()
    grpo_loss(new, OLD, GAINS, MASK, loss_type="dapo")[0].backward()
    assert new.grad.tolist() == [pytest.approx([0.0, -1 / 4, -0.5 / 4]), pytest.approx([0.0, 0.0, 0.0])]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_losses_of_a_batchs_parts_add_up_to_the_batchs(loss_type):
    mask = torch.tensor([[1, 1, 1], [1, 1, 1]]) if loss_type == "bnpo" else MASK
    whole, _ = grpo_loss(NEW, OLD, GAINS, mask, loss_type=loss_type, max_tokens=10)
    told = {"loss_type": loss_type, "max_tokens": 10, "batch_rows": 2, "batch_tokens": int(mask.sum())}
    parts = [grpo_loss(NEW[i : i + 1], OLD[i : i + 1], GAINS[i : i + 1], mask[i : i + 1], **told)[0] for i in (0, 1)]
    assert float(sum(parts)) == pytest.approx(float(whole), abs=1e-6)


def test_unknown_losses_are_refused():
    for told, message in [({"loss_type": "ppo"}, "ppo"), ({"loss_type": "dr_grpo"}, "max_tokens")]:
        with pytest.raises(TrainingError, match=message):
            grpo_loss(NEW, OLD, GAINS, MASK, **told)


# -- the policy


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("random") / "tiny")


def test_log_probabilities_are_those_of_each_row_alone(random_folder, tmp_path):
    model = local_lm(random_folder, work_dir=tmp_path).engine.weights.model
    rows = [Sample((5, 6, 7), (8, 9), 1.0), Sample((9,), (10,), 1.0), Sample((3, 4), (11, 12, 13), 1.0)]
    with torch.no_grad():
        together, mask = completion_logps(model, rows, temperature=0.7)
        for at, row in enumerate(rows):
            ids = torch.tensor([row.prompt_ids + row.completion_ids])
            logps = (model(ids).logits[0] / 0.7).log_softmax(-1)
            first = len(row.prompt_ids)
            alone = [float(logps[first + i - 1, token]) for i, token in enumerate(row.completion_ids)]
            assert together[at][mask[at].bool()].tolist() == pytest.approx(alone, abs=1e-4)
        assert mask.sum(-1).tolist() == [2, 1, 3] and together[mask == 0].abs().sum() == 0


def test_an_opening_stands_before_every_row(random_folder, tmp_path):
    weights = local_lm(random_folder, work_dir=tmp_path).engine.weights
    opening = (40, 41, 42)
    with torch.no_grad():
        cache = weights.model(torch.tensor([opening]), use_cache=True).past_key_values
        kv = [(layer.keys, layer.values) for layer in cache.layers]
        for rows in ([Sample((5, 6), (8, 9), 1.0)], [Sample((5, 6), (8, 9), 1.0), Sample((7,), (3,), 1.0)]):
            before = [Sample(opening + row.prompt_ids, row.completion_ids, 1.0) for row in rows]
            expected = completion_logps(weights.model, before)[0]
            assert torch.allclose(completion_logps(weights.model, rows, opening=kv)[0], expected, atol=1e-4)


def moved(weights, how, samples, calls, carry):
    torch.manual_seed(0)
    with training(weights, tuner=tuner_from("lora", {"rank": 2})) as model:
        moments = {}
        for seed in range(calls):
            metrics, after = update_policy(model, samples, how, moments, seed=seed, stop=threading.Event())
            moments = after if carry else {}
        trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        return trained, after, metrics["loss"]


def test_adams_moments_carry_over_and_micro_batches_change_nothing(random_folder, tmp_path):
    weights = local_lm(random_folder, work_dir=tmp_path).engine.weights
    samples = [Sample((5, 6, 7), (8, 9), 1.0), Sample((5, 6, 7), (10, 11, 12), -1.0), Sample((4,), (2, 3), 0.5)]
    how = Update(learning_rate=1e-2, max_grad_norm=1e9)
    carried, moments, loss = moved(weights, how, samples, 3, carry=True)
    forgot, _, _ = moved(weights, how, samples, 3, carry=False)
    assert {float(state["step"]) for state in moments.values()} == {3.0}
    assert any(not torch.allclose(carried[name], forgot[name], atol=1e-4) for name in carried)
    for other in (replace(how, micro_batch_size=1), replace(how, recompute=True)):
        same, _, same_loss = moved(weights, other, samples, 3, carry=True)
        assert all(torch.allclose(carried[name], same[name], atol=1e-4) for name in carried)
        assert same_loss == pytest.approx(loss, abs=1e-5)
    assert not weights.model.is_activation_checkpointing and not weights.model.training


def test_inner_epochs_use_the_log_probabilities_from_before_the_first(random_folder, tmp_path):
    weights = local_lm(random_folder, work_dir=tmp_path).engine.weights
    samples = [Sample((5, 6, 7), (8, 9), 1.0), Sample((5, 6, 7), (10, 11, 12), -1.0)]
    with training(weights, tuner=tuner_from("lora", {"rank": 2})) as model:
        how = Update(learning_rate=5e-2, inner_epochs=6, batch_size=1, epsilon=0.05)
        metrics, _ = update_policy(model, samples, how, {}, seed=0, stop=threading.Event())
    assert metrics["updates"] == 12 and metrics["clip_share"] > 0  # the ratio left 1, so it is to the old policy


# -- rollouts found again


def entry(text, chat=None, model="local/x", ids=(1, 2), reason="stop"):
    return Completion(model, tuple(chat or [{"role": "user", "content": "q"}]), text, ids, reason)


def item(text, chat=None, reward=1.0):
    chat = chat or [{"role": "user", "content": "q"}]
    return {"messages": chat, "completion": {"role": "assistant", "content": text}, "reward": reward}


def test_fields_do_not_depend_on_the_adapter_or_on_white_space():
    signature, answer = dspy.Signature("question, passage -> answer, why: list[str]"), {"answer": "A <b", "why": ["x"]}
    inputs = {"question": "Renews?", "passage": "The term\n\nrenews."}
    rendered = [
        adapter.format_finetune_data(signature, [], inputs, dspy.Prediction(**answer))["messages"]
        for adapter in (CHAT, dspy.XMLAdapter())
    ]
    assert len({fields_of(messages[-2]["content"]) for messages in rendered}) == 1
    raw = 'So:\n[[ ## answer ## ]]   A  <b\n[[ ## why ## ]]\n[ "x" ]\n[[ ## completed ## ]] Bye. [[ ## answer ## ]]'
    assert fields_of(raw) == fields_of(rendered[0][-1]["content"])
    assert fields_of("no marker") != fields_of("another") != fields_of("")


def test_each_rollout_is_matched_with_its_own_entry_from_the_strictest_key_down():
    demos = [{"role": "user", "content": "d"}, {"role": "assistant", "content": "e"}]
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    a, b = entry("[[ ## answer ## ]]\nyes", [chat[0], *demos, chat[1]]), entry("[[ ## answer ## ]] yes ", chat)
    c, d = entry("[[ ## answer ## ]]\nno", chat), entry("garbage", [{"role": "user", "content": "second"}])
    yes, no = "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]\n", "[[ ## answer ## ]]\nno"
    assert match([item(yes, chat), item(yes, chat), item(no, chat)], [a, b, c]) == [b, a, c]  # newest first, each once
    assert match([item(yes, chat)] * 3, [a]) == [a, a, a]  # more than were said: the same again
    assert match([item("garbage", chat)], [a, d]) == [d]  # an unparsable later predictor, asked something else
    assert match([item("garbage", chat)], [a, d, entry("garbage", demos[:1])]) == [None]  # which of the two?
    true, also_true = "[[ ## answer ## ]]\nTrue", entry("[[ ## answer ## ]]\ntrue, so it is", chat)
    assert match([item(yes, chat), item(true, chat)], [b, also_true]) == [b, also_true]  # the one left over
    assert match([item(true, chat), item("garbage", chat)], [a, c]) == [None, None]
    assert match([item("garbage", chat)], [entry("noise", chat)]) == [None]


def test_fillers_count_once_and_other_shapes_are_refused():
    one, two = item("a"), item("b")
    assert read_groups([{"batch_id": 0, "group": [one, two, one, two]}, [two]]) == [[one, two], [two]]
    for rows, message in [
        ([], "no groups"), ([{"batch_id": 0}], "group 0 is"), ([[{"messages": []}]], "give {'messages'"),
        ([[item("a", reward=math.nan)]], "finite"), ([[{**one, "messages": []}]], "no messages"),
    ]:  # fmt: skip
        with pytest.raises(TrainingError, match=message):
            read_groups(rows)


def test_the_engines_own_tokens_are_trained_on_with_the_end_that_was_said(lm):
    weights = lm.engine.weights
    with dspy.context(lm=lm, adapter=CHAT):
        answer = dspy.Predict("question -> answer")(question="q").answer
    lm("q", max_tokens=1)
    lm("q", stop=[" ##"])
    said, cut, stopped = lm.engine.completions
    asked = rollout(answer, 1.0)
    (((found,), (short,), (held,), (foreign,)),) = [
        encode_groups(weights, [[asked], [item(cut.text)], [item(stopped.text)], [item("hm")]], [said, cut, stopped])
    ]
    end = weights.tokenizer.eos_token_id
    assert found.said is said and found.completion_ids == (*said.ids, end) and not found.truncated
    assert weights.tokenizer.decode(found.completion_ids[:-1]).startswith("Well.")  # as said, not as rendered anew
    assert short.completion_ids == cut.ids and short.truncated
    assert held.said is stopped and held.completion_ids == stopped.ids and not held.truncated
    assert foreign.said is None and weights.tokenizer.decode(foreign.completion_ids) == "hm<|im_end|>"


# -- settings and the job's protocol


def test_settings_know_their_keys_and_ranges():
    settings, tuner = grpo_settings({"loss_type": "dr_grpo", "rank": 4, "num_generations": 8})
    assert settings == GRPOSettings(loss_type="dr_grpo", num_generations=8) and tuner == tuner_from("lora", {"rank": 4})
    for kwargs, message in [
        ({"learnin_rate": 1}, "learnin_rate.*learning_rate"), ({"loss_type": "ppo"}, "dr_grpo"),
        ({"inner_epochs": 0}, "above 0"), ({"beta": -1}, "beta"), ({"tuner": "nothing"}, "nothing"),
    ]:  # fmt: skip
        with pytest.raises(TrainingError, match=message):
            grpo_settings(kwargs)


def test_a_step_moves_the_lm_and_leaves_base_and_checkpoints_alone(lm):
    base, before = lm.model, chances(lm)
    work = start(lm, beta=0.0)
    assert isinstance(work, LocalReinforceJob) and work.status() == "running"
    for step in range(4):
        work.step(groups((1, 0, 0, 0)), "grpo_chat")
        if step == 1:
            work.save_checkpoint("second")
    assert lm.model != base and lm.model == work.get_status()["current_model"] == lm.engine.model_string(work.adapter)
    assert [row["step"] for row in work.log] == [1, 2, 3, 4] and len({row["adapter"] for row in work.log}) == 4
    assert all(row["updates"] == 1 and row["kl"] is None and row["unmatched"] == 4 for row in work.log)
    kept = {path.name for path in lm.engine.adapters_dir.iterdir()}
    assert kept == {row["adapter"] for row in (work.log[1], work.log[3])}
    assert work.checkpoints == {"second": lm.engine.model_string(work.log[1]["adapter"])}
    assert work.last_checkpoint == "second"
    with pytest.raises(TrainingError, match="exists"):
        work.save_checkpoint("second")
    assert chances(lm) == before  # bit for bit
    second, last = chances(lm, work.checkpoints["second"]), chances(lm, lm.model)
    assert sum(before) / 4 != second[0] and last != second


def test_batch_ids_are_always_pending_and_an_ended_job_says_so(lm):
    work = start(lm)
    first = work.get_status()["pending_batch_ids"]
    work.step(groups((1, 0)))
    second = work.get_status()["pending_batch_ids"]
    assert len(first) >= 2 and len(second) >= 2 and not set(first) & set(second)
    work.terminate()
    work.terminate()
    assert work.status() == "succeeded"
    for call in (work.get_status, lambda: work.step(groups((1, 0)))):
        with pytest.raises(TrainingError, match="has ended"):
            call()


def test_repeated_and_stale_groups_and_fillers_are_trained_on_once(lm):
    work, (one, two) = start(lm), groups((1, 0), (0, 1))
    one["group"] += one["group"]
    work.step([one, two, {"batch_id": 9, "group": one["group"]}])
    assert (work.log[0]["groups"], work.log[0]["rollouts"]) == (2, 4)
    assert (work.log[0]["repeated"], work.log[0]["fillers"]) == (1, 2)
    (three,) = groups((1, 0))
    work.step([one, three])
    assert (work.log[1]["groups"], work.log[1]["repeated"]) == (1, 1)
    with pytest.raises(TrainingError, match="last step"):
        work.step([three])


def test_equal_rewards_move_nothing(lm):
    work, model = start(lm), lm.model
    work.step(groups((1, 1), (0, 0)))
    assert lm.model == model and work.log[0]["updates"] == 0 and work.log[0]["silent_groups"] == 2
    assert not lm.engine.adapters_dir.exists()


def test_unmatched_rollouts_above_the_limit_and_other_formats_are_refused(lm):
    for kwargs, rows, kind, message in [
        ({"max_unmatched": 0.5}, groups((1, 0)), None, "2 of 2 rollouts"),
        ({}, groups((1, 0)), "chat", "grpo_chat"),
        ({"max_length_tokens": 10}, groups((1, 0)), None, "2 of 2 rollouts exceed 10"),
    ]:
        with pytest.raises(TrainingError, match=message):
            start(lm, **kwargs).step(rows, kind)


def test_one_answer_over_and_over_at_temperature_0_is_refused(lm):
    cold = lm.copy(temperature=0.0)
    rows = [{"batch_id": 0, "group": [rollout("yes", 1.0), rollout("yes", 0.0)]}]
    with pytest.raises(TrainingError, match="temperature=1.0"):
        start(cold).step(rows)
    start(lm).step(rows)


def test_a_failed_step_is_raised_and_undone_and_the_next_one_works(lm, monkeypatch):
    work = start(lm)
    work.step(groups((1, 0)))
    model, moments, adapters = lm.model, work._moments, list(lm.engine.adapters_dir.iterdir())
    before, served = chances(lm), chances(lm, model)
    real = policy.grpo_loss
    broken = {
        "nan": (lambda *a, **k: (real(*a, **k)[0] * math.nan, real(*a, **k)[1]), TrainingError, "norm is nan"),
        "bug": (lambda *a, **k: 1 / 0, TrainingError, "ZeroDivisionError"),
        "ctrl-c": (lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()), KeyboardInterrupt, None),
        "memory": (lambda *a, **k: (_ for _ in ()).throw(MemoryError()), TrainingError, "micro_batch_size=8"),
    }
    for fake, error, message in broken.values():
        monkeypatch.setattr(policy, "grpo_loss", fake)
        with pytest.raises(error, match=message):
            work.step(groups((1, 0)))
        assert lm.model == model and work._moments is moments and len(work.log) == 1
        assert list(lm.engine.adapters_dir.iterdir()) == adapters
        assert chances(lm) == before and chances(lm, model) == served and lm("q")
    monkeypatch.setattr(policy, "grpo_loss", real)
    work.step(groups((1, 0)))
    assert lm.model != model and len(work.log) == 2


@pytest.mark.parametrize("by", ["job", "provider"])
def test_a_job_is_cancelled_from_another_thread_within_a_step(lm, monkeypatch, by):
    work, model, inside, go_on = start(lm, micro_batch_size=1), lm.model, threading.Event(), threading.Event()
    real = policy.grpo_loss

    def slow(*args, **kwargs):
        inside.set()
        assert go_on.wait(30)
        return real(*args, **kwargs)

    monkeypatch.setattr(policy, "grpo_loss", slow)
    raised, end = [], work.cancel if by == "job" else lm.provider.stop

    def run():
        try:
            work.step(groups((1, 0, 0)))
        except TrainingError as err:
            raised.append(str(err))

    stepping, cancelling = threading.Thread(target=run), threading.Thread(target=end)
    stepping.start()
    assert inside.wait(30)
    cancelling.start()
    while not work._stop.is_set():
        pass
    go_on.set()
    stepping.join(30), cancelling.join(30)
    assert raised and "stopped" in raised[0] and lm.model == model and work.status() == "cancelled"
    with pytest.raises(TrainingError, match="cancelled"):
        work.get_status()


def test_from_an_adapter_the_reference_is_that_adapter_and_it_stays(lm):
    first = start(lm)
    first.step(groups((1, 0, 0, 0)))
    parent = lm.model
    before = chances(lm, parent)
    work = start(lm, beta=0.5)
    for _ in range(2):
        work.step(groups((1, 0, 0, 0)))
    assert work.log[0]["kl"] == pytest.approx(0.0, abs=1e-6) and work.log[1]["kl"] > 1e-6
    assert chances(lm, parent) == before and lm.model != parent


@pytest.mark.parametrize(
    "tuner",
    [
        {"tuner": "bottleneck", "width": 4, "learning_rate": 2e-2},
        {"tuner": "prefix", "tokens": 4, "learning_rate": 2e-2},
        {"tuner": "full", "learning_rate": 1e-3},
    ],
)
def test_other_tuners_move_too(random_folder, tmp_path, tuner):
    lm = local_lm(random_folder, work_dir=tmp_path / "work", temperature=1.0)
    rows = groups((1, 0))
    chat, texts = rows[0]["group"][0]["messages"], [row["completion"]["content"] for row in rows[0]["group"]]
    before = lm.engine.score(chat, texts)
    work = lm.reinforce({"max_unmatched": 1.0, **tuner})
    for _ in range(3):
        work.step(groups((1, 0)))
    after = lm.engine.score(chat, texts, lm.model)
    assert lm.engine.score(chat, texts) == before and work.log[-1]["kl"] > 0
    assert after[0] - after[1] > before[0] - before[1] + 1e-3


@pytest.mark.parametrize("tuner", ["lora", "full"])
@pytest.mark.parametrize("load", [{"dtype": "bfloat16"}, {"quantize": "nf4"}])
def test_half_precision_and_quantized_bases_move_too(random_folder, tmp_path, load, tuner):
    lm = local_lm(random_folder, work_dir=tmp_path / "work", temperature=1.0, device="cpu", **load)
    chat = [{"role": "user", "content": "q"}]
    before = lm.engine.score(chat, ["yes", "no"])
    work = lm.reinforce({"max_unmatched": 1.0, "tuner": tuner, "learning_rate": 1e-2})
    if tuner == "full" and "quantize" in load:
        with pytest.raises(TrainingError, match="4 bit|nf4"):
            work.step(groups((1, 0)))
        return
    for _ in range(2):
        work.step(groups((1, 0)))
    assert lm.engine.score(chat, ["yes", "no"]) == before != lm.engine.score(chat, ["yes", "no"], lm.model)
    assert work.log[1]["kl"] > 0 and math.isfinite(work.log[1]["loss"])


# -- stock GRPO


class Two(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = dspy.Predict("question -> answer"), dspy.Predict("statement -> answer")

    def forward(self, question):
        return self.second(statement=self.first(question=question).answer)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
def test_stock_grpo_raises_the_reward_and_leaves_the_base_alone(lm, loss_type):
    base, before = lm.model, chances(lm)
    with dspy.context(adapter=CHAT):
        program, work = reinforced(dspy.Predict("question -> answer"), lm, steps=6, loss_type=loss_type)
        rewards = [row["reward_mean"] for row in work.log]
        assert min(rewards[-2:]) > rewards[0] + 0.3
        assert program.lm.model != base and program.lm is lm and work.status() == "succeeded"
        asked = [program(question="q 0").answer for _ in range(8)]
    assert asked.count("yes") >= 6
    assert chances(lm) == before  # bit for bit
    for row in work.log:
        assert (row["groups"], row["rollouts"], row["unmatched"]) == (2, 16, 0)
    assert [path.name for path in lm.engine.adapters_dir.iterdir()] == [work.log[-1]["adapter"]]
    assert program.lm.cache is True


@pytest.mark.parametrize("adapter", [None, dspy.XMLAdapter()])
def test_rollouts_are_found_whatever_adapter_renders_the_training_text(lm, adapter):
    student = dspy.Predict("question -> answer")
    student.demos = [dspy.Example(question="demo", answer="yes")]
    seen, real = [], job.encode_groups

    def spy(weights, given, log):
        seen.extend(rollout for group in real(weights, given, log) for rollout in group)
        return real(weights, given, log)

    with pytest.MonkeyPatch.context() as patch, dspy.context(adapter=None):
        patch.setattr(job, "encode_groups", spy)
        _, work = reinforced(student, lm, steps=2, adapter=adapter)
    assert [row["unmatched"] for row in work.log] == [0, 0]
    decode = lm.engine.weights.tokenizer.decode
    assert all("[[ ## question ## ]]\ndemo" in decode(found.prompt_ids) for found in seen)
    assert all(decode(found.completion_ids).startswith("Well.\n[[ ## answer ## ]]") for found in seen)


def test_programs_of_two_predictors_and_answers_that_do_not_parse(tmp_path):
    folder = write_choosing_model(tmp_path / "tiny", [spoken("yes"), spoken("no"), "nonsense"])
    lm = local_lm(folder, work_dir=tmp_path / "work", max_tokens=8, temperature=1.0)
    with dspy.context(adapter=CHAT):
        # Any answer that can be read is right: one that cannot is what there is to unlearn.
        _, work = reinforced(Two(), lm, steps=6, trainset=examples(3), metric=lambda *_: 1.0)
    rewards = [row["reward_mean"] for row in work.log]
    assert min(rewards[-2:]) > rewards[0] + 0.3
    # One text said to two prompts in one step cannot always be told apart; it is then trained on as rendered.
    assert sum(row["unmatched"] for row in work.log) < 0.1 * sum(row["rollouts"] for row in work.log)
    assert work.log[-1]["groups"] > 2


def test_an_error_in_a_step_ends_stock_grpo(lm):
    with dspy.context(adapter=CHAT), pytest.raises(TrainingError, match="learnin_rate"):
        reinforced(dspy.Predict("question -> answer"), lm, learnin_rate=1)
    with dspy.context(adapter=CHAT), pytest.raises(TrainingError, match="temperature"):
        reinforced(dspy.Predict("question -> answer"), lm.copy(temperature=0.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_grpo_on_cuda(folder, tmp_path, quantize):
    lm = local_lm(folder, work_dir=tmp_path / "work", max_tokens=8, temperature=1.0, device="cuda", quantize=quantize)
    with dspy.context(adapter=CHAT):
        _, work = reinforced(dspy.Predict("question -> answer"), lm, steps=10)
    assert work.log[-1]["reward_mean"] > work.log[0]["reward_mean"] + 0.3
