"""lib/models/lm_head.py: the head computes only the labelled positions, and loss and gradients stay the same."""

import pytest


@pytest.fixture
def trl_utils(monkeypatch):
    from trl.trainer import utils

    for name in ("_use_triton", "_ChunkedLogProbFunction"):
        monkeypatch.setattr(utils, name, getattr(utils, name))  # restores whatever the test replaces
    return utils


def one_step(utils, folder):
    """Returns (number of rows that reached the head, loss, gradients) of a forward and a backward pass over two rows of 12
    tokens, 5 of them labelled."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    projected, real = [], utils._ChunkedLogProbFunction

    class Recorded:
        @staticmethod
        def apply(hidden, *rest):
            projected.append(len(hidden))
            return real.apply(hidden, *rest)

    utils._ChunkedLogProbFunction = Recorded
    try:
        ids = torch.randint(0, 1000, (2, 12), generator=torch.Generator().manual_seed(0))
        labels = torch.full_like(ids, -100)
        labels[0, 9:], labels[1, 10:] = ids[0, 9:], ids[1, 10:]
        out = model(input_ids=ids, labels=labels, fused_lm_head=True)
        out.loss.backward()
    finally:
        utils._ChunkedLogProbFunction = real
    return projected, out.loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_only_labelled_positions_are_projected_and_nothing_else_changes(tiny_model, trl_utils):
    import torch

    from lib.models.lm_head import project_labelled_only

    before, loss, gradients = one_step(trl_utils, tiny_model)
    project_labelled_only()
    assert trl_utils._ChunkedLogProbFunction.tiled
    after, same_loss, same_gradients = one_step(trl_utils, tiny_model)
    assert before == [22], "TRL takes only labelled positions by itself now: lib/models/lm_head.py can go"
    assert after == [5]
    assert same_loss == pytest.approx(loss, abs=1e-6)
    for a, b in zip(gradients, same_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_head_that_does_not_train_is_computed_once(trl_utils, monkeypatch, kind):
    """Log-probabilities, gradients, entropies, mean logits and hits equal those of TRL's tiles; 600 rows are three tiles of ours."""
    import torch

    from lib.models.lm_head import project_labelled_only

    tiles = trl_utils._ChunkedLogProbFunction
    project_labelled_only()
    ours, real = trl_utils._ChunkedLogProbFunction, tiles.apply
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(600, 16, generator=draw), torch.randn(300, 16, generator=draw)
    targets, weights = torch.randint(0, 300, (600,), generator=draw), torch.randn(600, generator=draw)
    targets[:200] = (hidden @ weight.t()).argmax(1)[:200]
    found = []
    for function in (tiles, ours):
        h = hidden.clone().requires_grad_()
        outputs = ("log_probs", "entropy", "mean_logits", "is_top1")
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
            out = function.apply(h, weight, None, targets, 1.0, 128, None, 1.0, outputs)
        (out[0] * weights).sum().backward()
        found.append([x.float() for x in (out[0], out[1], out[3], out[4], h.grad)])
        assert out[2] is None
        monkeypatch.setattr(tiles, "apply", lambda *a: pytest.fail("TRL's tiles were used"))
    monkeypatch.setattr(tiles, "apply", real)
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= (1e-5 if kind == "float32" else 5e-3) * a.norm()
    assert found[1][3].sum() >= 190
    # Cases that it doesn't support are left to TRL: here the weight's own gradient, and a temperature.
    w = weight.clone().requires_grad_()
    ours.apply(hidden, w, None, targets, 2.0, 128, None, 1.0, ("log_probs",))[0].sum().backward()
    assert w.grad.abs().sum() > 0
