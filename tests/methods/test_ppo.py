"""PPO's arithmetic: the numbers on which TRL, OpenRLHF and verl agree (issue 19), and cases by hand."""

import pytest
import torch

from lib.methods.rl import kl
from lib.methods.rl.advantages import gae, whiten
from lib.methods.rl.ppo_losses import surrogate, value_loss

REWARDS = torch.tensor([[0, -0.1, 0.05, 1], [0.2, -0.3, 1.5, 0]])
VALUES = torch.tensor([[0.5, 0.4, 0.3, 0.2], [0.1, 0.2, 0.3, 0]])
MASK = torch.tensor([[True] * 4, [True, True, True, False]])
ADVANTAGES = torch.tensor([[0.350775, 0.4745, 0.71, 0.8], [1.193, 0.94, 1.2, 0]])
RETURNS = torch.tensor([[0.850775, 0.8745, 1.01, 1], [1.293, 1.14, 1.5, 0]])
WHITE = torch.tensor([[-1.395296, -1.019172, -0.303251, -0.029651], [1.165071, 0.395950, 1.186351, 0]])
LOGP = torch.tensor([[-0.9, -1.8, -0.6, -2], [-1, -1.4, -0.4, 0]])
OLD = torch.tensor([[-1, -2, -0.5, -1.5], [-1.3, -1, -0.5, 0]])


def near(found, wanted, to=1e-6):
    return torch.testing.assert_close(found, torch.as_tensor(wanted), atol=to, rtol=0)


def scribbled(x):
    """Returns x with other numbers outside of the mask."""
    return torch.where(MASK, x, 77.0)


def test_advantages_and_returns_are_the_reference_numbers_whatever_follows_an_answer():
    for change in (lambda x: x, scribbled):
        advantages, returns = gae(change(REWARDS), change(VALUES), MASK, gamma=1.0, lam=0.95)
        near(advantages, ADVANTAGES)
        near(returns, RETURNS)


def test_an_answer_in_the_middle_of_a_row_has_the_advantages_of_one_at_its_start():
    """γ = ½, λ = ½: A_2 = 1 − 0.5 = 0.5; δ_1 = 0.2 + 0.25 − 1 = −0.55, A_1 = −0.55 + 0.125 = −0.425."""
    mask = torch.tensor([[False, True, True, False]])
    advantages, returns = gae(
        torch.tensor([[9.0, 0.2, 1, 9]]), torch.tensor([[9.0, 1, 0.5, 9]]), mask, gamma=0.5, lam=0.5
    )
    near(advantages, [[0, -0.425, 0.5, 0]])
    near(returns, [[0, 0.575, 1, 0]])


def test_whitening_divides_by_the_unbiased_deviation_of_the_global_batch():
    near(whiten(scribbled(ADVANTAGES), MASK), WHITE)


def test_whitening_on_a_worker_uses_the_sums_of_all():
    """The other worker's answer has 3 tokens with the sum 3.333; their squared distances from the mean, 5.668275 ÷ 7, sum to 0.316134."""
    others = iter([torch.tensor([3.0, 3.333]), torch.tensor(0.316134)])
    near(whiten(ADVANTAGES[:1], MASK[:1], lambda mine: mine + next(others)), WHITE[:1], 2e-6)


def test_whitening_without_a_shift_keeps_the_mean():
    """1, 2, 3: mean 2, variance 1."""
    x, mask = torch.tensor([[2.0, 4.0, 6.0, 50.0]]), torch.tensor([[True, True, True, False]])
    near(whiten(x, mask, shift_mean=False), [[3.0, 4, 5, 0]])
    near(whiten(x, mask), [[-1.0, 0, 1, 0]])
    assert whiten(x, ~mask).tolist() == [[0, 0, 0, 0]] and whiten(x, mask & ~mask).abs().sum() == 0


def test_three_estimators_of_the_divergence():
    logp, ref = torch.tensor([-1.0, -2, -0.5]), torch.tensor([-1.2, -1.5, -0.5])
    near(kl.k1(logp, ref), [0.2, -0.5, 0])
    near(kl.k2(logp, ref), [0.02, 0.125, 0])
    near(kl.k3(logp, ref), [0.018731, 0.148721, 0])


def test_the_score_is_at_an_answers_last_token_and_the_divergence_at_each():
    k1 = torch.tensor([[0.1, 0.2, -0.4, 7], [8, 0.3, 0.4, 9]])
    mask = torch.tensor([[True, True, True, False], [False, True, True, False]])
    near(kl.token_rewards(k1, torch.tensor([3.0, 1.5]), mask, 0.5), [[-0.05, -0.1, 3.2, 0], [0, -0.15, 1.3, 0]])


def test_an_answer_that_fills_its_row_has_its_score_at_the_rows_end():
    near(kl.token_rewards(torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2).bool(), 1.0), [[0.0, 1]])


def test_the_adaptive_coefficient_moves_towards_its_target():
    higher = kl.adapted(0.2, kl=12, answers=256, target=6, horizon=1e4)
    assert higher == pytest.approx(0.201024, abs=1e-9)
    assert kl.adapted(higher, kl=1, answers=256, target=6, horizon=1e4) == pytest.approx(0.19999476, abs=1e-8)
    assert kl.adapted(0.2, kl=6.6, answers=100, target=6, horizon=1e3) == pytest.approx(0.2 * 1.01)


def test_the_value_loss_takes_the_larger_of_two_squares():
    new = torch.tensor([[0.9, 0.1, 0.3, 0.25], [0.1, 0.6, 0.3, 0]])
    for change in (lambda x: x, scribbled):
        loss, clipped = value_loss(change(new), VALUES, change(RETURNS), MASK, 0.2)
        near(loss / 7, 0.3642881)
        assert clipped == 2  # |0.9 − 0.5| and |0.6 − 0.2| are above 0.2, and both moved towards their returns


def test_the_surrogate_is_a_mean_over_the_tokens_of_all_answers():
    advantages = torch.tensor([[1, -0.5, 0.3, 2], [-1, 0.7, -0.2, 0]])
    for change in (lambda x: x, scribbled):
        loss, _ = surrogate(change(LOGP), OLD, change(advantages), MASK, 0.2)
        near(loss / 7, -0.1253305)
    rows = [surrogate(LOGP[i : i + 1], OLD[i : i + 1], advantages[i : i + 1], MASK[i : i + 1], 0.2)[0] for i in (0, 1)]
    near((rows[0] / 4 + rows[1] / 3) / 2, -0.0637613)


def test_the_surrogate_stops_pushing_a_token_that_has_moved_far_enough():
    """ε = 0.2, A = ±1: gradients vanish at ρ = 1.5 with A > 0 and at ρ = 0.5 with A < 0; a move in the wrong direction is undone."""
    logp = torch.tensor([[1.5, 0.5, 1.5, 0.5]]).log().requires_grad_()
    loss, clipped = surrogate(logp, torch.zeros(1, 4), torch.tensor([[1.0, -1, -1, 1]]), torch.ones(1, 4).bool(), 0.2)
    loss.backward()
    assert clipped == 2 and logp.grad.tolist()[0][:2] == [0, 0]
    near(logp.grad[0, 2:], [1.5, -0.5])
