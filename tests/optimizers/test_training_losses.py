"""The losses against values worked out by hand."""

import copy
import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import KTOTrainer
from trl.trainer.utils import add_fused_lm_head

from optimizers.errors import TrainingError
from optimizers.local_lm import forget_engines, load_weights, local_lm
from optimizers.local_lm.prompts import encode_completion
from optimizers.local_lm.tiny import write_tiny_model
from optimizers.local_lm.training import objectives
from optimizers.local_lm.training.labelled import labelled
from optimizers.local_lm.training.losses import (
    cpo_loss,
    divergence,
    orpo_loss,
    sampled_divergence,
    simpo_loss,
    token_logps,
    with_rest,
)
from optimizers.local_lm.training.reference import with_reference
from optimizers.local_lm.training.rows import encode
from optimizers.local_lm.training.settings import settings_from


def test_token_logps_are_of_the_next_token_and_of_labelled_ones_alone():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.9, 0.05, 0.05]]]))
    logps, mask = token_logps(logits, torch.tensor([[0, -100, 2]]))
    assert mask.tolist() == [[False, True]]
    assert logps[0, 0] == 0
    assert logps[0, 1].item() == pytest.approx(math.log(0.7))


def test_orpo_of_equal_odds_and_of_a_known_ratio():
    half = torch.tensor([math.log(0.5)])
    loss, told = orpo_loss(half, half, beta=0.1)
    assert loss.item() == pytest.approx(math.log(2) + 0.1 * math.log(2))
    assert told["odds_ratio_loss"] == pytest.approx(math.log(2))
    # Odds 3 against 1/3: log ratio log 9, -log sigmoid(log 9) = log(1 + 1/9).
    loss, told = orpo_loss(torch.tensor([math.log(0.75)]), torch.tensor([math.log(0.25)]), beta=1.0)
    assert loss.item() == pytest.approx(-math.log(0.75) + math.log(10 / 9))
    assert told["accuracy"] == 1.0


def test_orpo_stays_finite_where_the_chosen_is_certain():
    certain = torch.tensor([0.0], requires_grad=True)
    loss, _ = orpo_loss(certain, torch.tensor([-2.0]), beta=0.1)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(certain.grad).all()


def test_cpo_and_simpo_by_hand():
    chosen, rejected, nll = torch.tensor([-1.0]), torch.tensor([-3.0]), torch.tensor([0.4])
    loss, _ = cpo_loss(chosen, rejected, nll, beta=0.5, alpha=2.0, label_smoothing=0.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.0)) + 0.8)
    smoothed, _ = cpo_loss(chosen, rejected, nll, beta=0.5, alpha=0.0, label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(0.9 * math.log(1 + math.exp(-1)) + 0.1 * math.log(1 + math.exp(1)))
    loss, told = simpo_loss(chosen, rejected, beta=2.0, gamma=1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-3.0)))
    assert told["accuracy"] == 1.0


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_divergences_vanish_for_equals_and_match_the_hand(kind):
    p, q = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.9, 0.1]]))
    assert divergence(p, p, kind=kind)[0].item() == pytest.approx(0.0, abs=1e-7)
    by_hand = {
        "forward_kl": 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1),
        "reverse_kl": 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5),
        "jsd": 0.5 * (0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3))
        + 0.5 * (0.9 * math.log(0.9 / 0.7) + 0.1 * math.log(0.1 / 0.3)),
    }
    assert divergence(p, q, kind=kind)[0].item() == pytest.approx(by_hand[kind], rel=1e-5)


def test_the_rest_bucket_holds_what_is_left():
    logps = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    assert with_rest(logps, torch.tensor([[0]])).exp().tolist()[0] == pytest.approx([0.5, 0.5])
    assert with_rest(logps, None) is logps


# -- through the trainers, one step from the base: the first loss is that of the untouched model

BETA = 0.5
PROMPT = [{"role": "user", "content": "Which law?"}]
PAIR = {"prompt": PROMPT, "chosen": "Ohio", "rejected": "I would not know"}
SHIFT = (1.5, -0.7)  # what the reference says less than the model: log ratios, in nats


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("losses")
    yield local_lm(write_tiny_model(folder / "tiny", context_tokens=256), work_dir=folder / "work")
    forget_engines()


@pytest.fixture(scope="module")
def known(lm):
    """Of chosen and rejected: log probability under the base (nats, with the end of turn) and number of tokens."""
    (row,) = with_reference(lm.engine, lm.model, [PAIR], bf16=False)
    logps = (row["ref_chosen_logps"], row["ref_rejected_logps"])
    texts = (PAIR["chosen"], PAIR["rejected"])
    return logps, tuple(len(encode_completion(lm.engine.weights, PROMPT, text, with_end=True)) for text in texts)


def first_loss(lm, rows, **kwargs):
    quiet = {"max_steps": 1, "batch_size": len(rows), "bf16": False, "progress": False, "rank": 2, "resume": False}
    job = lm.finetune(rows, None, {**quiet, "beta": BETA, "learning_rate": 1e-3, **kwargs})
    job.result()
    return job.log["history"][0]["loss"]


def softplus(x):
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("told", "by_hand"),
    [
        ({"loss_type": "sigmoid"}, lambda d, logps, n: softplus(-BETA * d)),
        ({"loss_type": "hinge"}, lambda d, logps, n: max(0.0, 1 - BETA * d)),
        ({"loss_type": "ipo"}, lambda d, logps, n: (SHIFT[0] / n[0] - SHIFT[1] / n[1] - 1 / (2 * BETA)) ** 2),
        (
            {"loss_type": "robust", "label_smoothing": 0.1},
            lambda d, logps, n: (0.9 * softplus(-BETA * d) - 0.1 * softplus(BETA * d)) / 0.8,
        ),
        (
            {"loss_type": ("sigmoid", "sft"), "loss_weights": (1.0, 0.3)},
            lambda d, logps, n: softplus(-BETA * d) - 0.3 * logps[0] / n[0],
        ),
    ],
)
def test_dpo_and_its_kin_by_hand_with_a_reference_of_the_rows_own(lm, known, told, by_hand):
    logps, n = known
    row = PAIR | {"ref_chosen_logps": logps[0] - SHIFT[0], "ref_rejected_logps": logps[1] - SHIFT[1]}
    loss = first_loss(lm, [row], method="dpo", **told)
    assert loss == pytest.approx(by_hand(SHIFT[0] - SHIFT[1], logps, n), abs=2e-4)
    # Without one, the reference is the model itself: no log ratio at all.
    if told == {"loss_type": "sigmoid"}:
        assert first_loss(lm, [PAIR], method="dpo", **told) == pytest.approx(math.log(2), abs=1e-5)


def test_reference_free_losses_by_hand_through_the_trainer(lm, known):
    logps, n = known
    chosen, rejected = (logp / count for logp, count in zip(logps, n, strict=True))
    log_odds = [p - math.log1p(-math.exp(p)) for p in (chosen, rejected)]
    orpo = -chosen + BETA * softplus(-(log_odds[0] - log_odds[1]))
    assert first_loss(lm, [PAIR], method="orpo") == pytest.approx(orpo, abs=2e-4)
    cpo = softplus(-BETA * (logps[0] - logps[1])) - 0.7 * chosen
    assert first_loss(lm, [PAIR], method="cpo", cpo_alpha=0.7) == pytest.approx(cpo, abs=2e-4)
    simpo = softplus(-(BETA * (chosen - rejected) - 0.4))
    assert first_loss(lm, [PAIR], method="cpo", loss_type="simpo", simpo_gamma=0.4) == pytest.approx(simpo, abs=2e-4)


def test_an_answer_that_is_good_by_itself_is_learnt_by_likelihood_alone(lm, known):
    logps, n = known
    row = PAIR | {"rejected": None}
    nll = -logps[0] / n[0]
    mixed = {"method": "dpo", "loss_type": ("sigmoid", "sft"), "loss_weights": (1.0, 0.3)}
    assert first_loss(lm, [row], **mixed) == pytest.approx(math.log(2) + 0.3 * nll, abs=2e-4)
    assert first_loss(lm, [row], method="orpo") == pytest.approx(nll + BETA * math.log(2), abs=2e-4)
    # What compares it with itself moves nothing, however much it weighs: several steps end at the same loss.
    ends = []
    for beta in (0.1, 5.0):
        told = {"max_steps": 4, "batch_size": 1, "bf16": False, "progress": False, "rank": 2, "resume": False}
        job = lm.finetune([row], None, {**told, **mixed, "beta": beta, "learning_rate": 0.05})
        job.result()
        ends.append([step["loss"] for step in job.log["history"] if "loss" in step][-1])
    assert ends[0] == pytest.approx(ends[1], abs=1e-4) and ends[0] < math.log(2) + 0.3 * nll - 0.01


def test_kto_by_hand_through_the_trainer(lm):
    good = {"prompt": PROMPT, "completion": "Ohio", "label": True}
    bad = {"prompt": PROMPT, "completion": "No", "label": False}
    # From its own reference: no log ratio and no KL, 1 - sigmoid(0) for each, times its weight.
    told = {"method": "kto", "desirable_weight": 2.0, "undesirable_weight": 1.2}
    assert first_loss(lm, [good, bad], **told) == pytest.approx((2.0 * 0.5 + 1.2 * 0.5) / 2, abs=1e-5)


def test_kto_with_log_ratios_by_hand():
    """TRL's own loss on given likelihoods: good +2, bad -1 nats from the reference, KL 0.5."""
    logps = {"main": torch.tensor([[-3.0], [-5.0]]), "other": torch.tensor([[-4.0], [-4.0]])}

    def model(input_ids, **_):
        said = logps["main" if input_ids[0, 0] == 1 else "other"]
        zeros = torch.zeros_like(said)
        return SimpleNamespace(log_probs=said, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    ids, mask = torch.ones(2, 2, dtype=torch.long), torch.tensor([[0, 1], [0, 1]])
    batch = {
        "input_ids": ids, "attention_mask": ids, "completion_mask": mask, "label": torch.tensor([True, False]),
        "KL_input_ids": ids * 2, "KL_attention_mask": ids, "KL_completion_mask": mask,
        "ref_logps": torch.tensor([-5.0, -4.0]), "ref_KL_logps": torch.tensor([-4.5, -4.5]),
    }  # fmt: skip
    same = lambda x: x  # noqa: E731
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), precompute_ref_logps=True, calculate_KL=True, aux_loss_enabled=False,
        loss_type="kto", beta=BETA, desirable_weight=1.0, undesirable_weight=1.0, args=None,
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=same, gather=same),
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    trainer._compute_kl_logps = lambda *args: KTOTrainer._compute_kl_logps(trainer, *args)
    loss = KTOTrainer._compute_loss(trainer, model, batch, False)
    good = 1 - 1 / (1 + math.exp(-BETA * (2.0 - 0.5)))
    bad = 1 - 1 / (1 + math.exp(-BETA * (0.5 + 1.0)))
    assert loss.item() == pytest.approx((good + bad) / 2)


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ({"loss_type": "sigmoidal"}, "loss_type"),
        ({"loss_type": ("sigmoid", "sft"), "loss_weights": (1.0,)}, "loss_weights"),
        ({"loss_type": "robust"}, "robust"),
        ({"loss_type": "sigmoid", "label_smoothing": 0.5}, "label_smoothing"),
        ({"beta": 0.0}, "beta"),
        ({"method": "cpo", "loss_type": "hinge"}, "loss_type"),
    ],
)
def test_losses_that_are_none_are_refused_before_anything_runs(told, wrong):
    with pytest.raises(TrainingError, match=wrong):
        settings_from({"method": "dpo", **told})


def test_all_rows_bring_a_reference_or_none(lm):
    referred = PAIR | {"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0}
    for rows, told in (([referred, PAIR], "all of them, or none"), ([PAIR | {"ref_chosen_logps": -1.0}], "has keys")):
        with pytest.raises(TrainingError, match=told):
            encode(lm.engine.weights, rows, settings_from({"method": "dpo"})[0])
    with pytest.raises(TrainingError, match="has keys"):
        encode(lm.engine.weights, [referred], settings_from({"method": "orpo"})[0])


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_the_reference_is_asked_once_over_epochs_and_validations(lm, monkeypatch, method):
    kind = {"dpo": objectives._EncodedDPO, "kto": objectives._EncodedKTO}[method]
    asked, real = [], kind.compute_ref_log_probs

    def counting(self, model, inputs):
        asked.append(len(inputs["input_ids"]))
        return real(self, model, inputs)

    monkeypatch.setattr(kind, "compute_ref_log_probs", counting)
    rows = [PAIR | {"chosen": f"Ohio {i}"} for i in range(4)]
    if method == "kto":
        rows = [{"prompt": PROMPT, "completion": f"Ohio {i}", "label": i < 2} for i in range(4)]
    validated = []
    told = {"max_steps": -1, "epochs": 3.0, "validate": lambda model: float(validated.append(model) or 0)}
    first_loss(lm, rows, method=method, **told)
    # KTO's batches are fixed for all epochs, and with them whose answer is asked about whose prompt.
    assert len(validated) == 3 and sum(asked) == {"dpo": 2 * 4, "kto": 3 * 4}[method]


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "gpt2"])
def test_labelled_positions_alone_say_what_trls_own_head_says_of_all(tmp_path, kind):
    weights = load_weights(write_tiny_model(tmp_path / kind, kind=kind, context_tokens=256))
    ids = torch.randint(0, 200, (3, 40), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :20] = labels[1, :31] = labels[2, :25] = -100
    labels[2, 35:] = -100
    model = copy.deepcopy(weights.model).requires_grad_()
    ours = labelled(model)(input_ids=ids, labels=labels, fused_lm_head=True, use_cache=False)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    theirs = model(input_ids=ids, labels=labels, fused_lm_head=True)
    for name in ("log_probs", "entropy", "mean_logits"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-4, rtol=1e-4)
    assert torch.equal(ours.is_top1, theirs.is_top1) and torch.equal(ours.label_mask, theirs.label_mask)
    grads = []
    for said in (ours, theirs):
        model.zero_grad()
        said.log_probs.sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*grads, atol=1e-3, rtol=1e-3)


def test_a_reference_that_is_known_is_not_computed_again(lm):
    rows, known, missing = [PAIR | {"chosen": f"Ohio {i}"} for i in range(4)], {}, []
    first, again = (
        with_reference(lm.engine, lm.model, rows, known, bf16=False, begun=missing.append) for _ in range(2)
    )
    assert missing == [4, 0] and first == again and len({row["ref_chosen_logps"] for row in first}) == 4


def test_generalised_jsd_by_hand():
    teacher, student = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    mixed = 0.3 * teacher + 0.7 * student
    by_hand = sum(
        0.3 * t * math.log(t / m) + 0.7 * s * math.log(s / m)
        for t, s, m in zip(teacher.tolist(), student.tolist(), mixed.tolist(), strict=True)
    )
    loss, _ = divergence(teacher.log()[None], student.log()[None], kind="jsd", jsd_beta=0.3)
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_top_k_divergence_by_hand():
    teacher, student = torch.log(torch.tensor([[0.6, 0.3, 0.1]])), torch.log(torch.tensor([[0.2, 0.3, 0.5]]))
    tokens = torch.tensor([[0]])
    loss, _ = divergence(with_rest(teacher, tokens), with_rest(student, tokens), kind="forward_kl")
    assert loss.item() == pytest.approx(0.6 * math.log(0.6 / 0.2) + 0.4 * math.log(0.4 / 0.8), rel=1e-5)


def test_sampled_divergence_by_hand_and_its_gradient_is_the_reverse_kls():
    loss, told = sampled_divergence(torch.tensor([-2.0, -1.0]), torch.tensor([-0.5, -3.0]))
    assert loss.item() == pytest.approx((1.5 * -0.5 + -2.0 * -3.0) / 2)
    assert told["kl"] == pytest.approx((1.5 - 2.0) / 2)
    teacher = torch.log(torch.tensor([0.2, 0.3, 0.5]))
    logits = torch.tensor([1.0, 0.0, -1.0], requires_grad=True)
    student = logits.log_softmax(0)
    expected = sum(student[i].exp().detach() * sampled_divergence(teacher[i : i + 1], student[i : i + 1])[0]
                   for i in range(3))  # fmt: skip
    (estimate,) = torch.autograd.grad(expected, logits, retain_graph=True)
    (exact,) = torch.autograd.grad(divergence(teacher[None], student[None], kind="reverse_kl")[0], logits)
    assert torch.allclose(estimate, exact, atol=1e-6)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "sampled"])
def test_every_divergence_moves_the_student_to_the_teacher(kind):
    teacher = torch.log(torch.tensor([[0.2, 0.3, 0.5]]))
    logits = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    student = logits.log_softmax(-1)
    if kind == "sampled":  # its likeliest token, of which the teacher thinks less
        loss, _ = sampled_divergence(teacher[:, 0], student[:, 0])
    else:
        loss, _ = divergence(teacher, student, kind=kind)
    (gradient,) = torch.autograd.grad(loss, logits)
    moved = (logits - 0.1 * gradient).log_softmax(-1)
    assert divergence(teacher, moved, kind="forward_kl")[0] < divergence(teacher, student, kind="forward_kl")[0]
