"""lib/head.py: the head sees the labelled positions only, and loss and gradients stay what they were."""

import pytest


@pytest.fixture
def trl_utils(monkeypatch):
    from trl.trainer import utils

    monkeypatch.setattr(utils, "_use_triton", utils._use_triton)  # put back whatever the test makes of it
    return utils


def one_step(utils, folder):
    """(rows that the head saw, loss, gradients) of a forward and a backward over two rows of 12 tokens, 5 labelled."""
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

    from lib.head import project_labelled_only

    before, loss, gradients = one_step(trl_utils, tiny_model)
    project_labelled_only()
    after, same_loss, same_gradients = one_step(trl_utils, tiny_model)
    assert before == [22], "TRL takes only labelled positions by itself now: lib/head.py can go"
    assert after == [5]
    assert same_loss == pytest.approx(loss, abs=1e-6)
    for a, b in zip(gradients, same_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
