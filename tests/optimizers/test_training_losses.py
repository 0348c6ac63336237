"""The losses against values worked out by hand."""

import math

import pytest
import torch

from optimizers.local_lm.training.losses import cpo_loss, divergence, orpo_loss, simpo_loss, token_logps, with_rest


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
