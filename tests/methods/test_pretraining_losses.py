"""Attention patterns and losses of the objectives of pre-training, on hand-written tensors."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from lib.models.masking import generator
from tests.methods.handwritten import batch, objective

# -- attention --------------------------------------------------------------------------------------------------------


def test_who_sees_whom():
    import torch

    from lib.methods.pretraining.attention import packed, seen

    texts, prefix = torch.tensor([[0, 0, 0, 1, 1]]), torch.tensor([[True, True, False, True, False]])
    assert seen(texts, prefix)[0].int().tolist() == [
        [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1],
    ]  # fmt: skip
    assert packed(texts, prefix)["position_ids"].tolist() == [[0, 1, 2, 0, 1]]


def test_every_text_has_a_prefix_and_something_to_predict():
    from lib.methods.pretraining.prefix_lm import prefixes

    texts, seen = np.array([0, 0, 0, 0, 1, 1, 2]), set()
    for n in range(50):
        found = prefixes(texts, generator(str(n))).tolist()
        assert (
            found[4:] == [1, 0, 1] and found[:1] + found[3:4] == [1, 0] and found[:4] == sorted(found[:4], reverse=True)
        )
        seen.add(sum(found[:4]))
    assert seen == {1, 2, 3}
    made = batch("prefix_lm")
    for ids, labels, prefix in zip(made["input_ids"], made["labels"], made["prefix"], strict=True):
        assert labels == [-100 if p else i for i, p in zip(ids, prefix, strict=True)]


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_changed_token_is_noticed_by_those_that_see_it(kernel):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lib.methods.pretraining.attention import packed, seen

    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, attn_implementation=kernel, **shape)).eval()
    texts = torch.tensor([[0] * 5 + [1] * 4])
    prefix = torch.tensor([[True, True, True, False, False, True, True, False, False]])
    ids, sees = torch.randint(0, 64, (1, 9)), seen(texts, prefix)[0]
    with torch.no_grad():
        before = model(input_ids=ids, **packed(texts, prefix)).logits
        for j in range(9):
            changed = ids.clone()
            changed[0, j] = (ids[0, j] + 1) % 64
            apart = (model(input_ids=changed, **packed(texts, prefix)).logits - before).abs().amax(-1)[0]
            assert [bool(a > 1e-6) for a in apart] == sees[:, j].tolist()


def test_the_first_token_of_a_separate_text_is_not_predicted():
    labels = batch("clm", separate_texts=True)["labels"]
    assert [[i for i, label in enumerate(row) if label == -100] for row in labels] == [[0, 5, 9]] * 3
    assert [[i for i, label in enumerate(row) if label == -100] for row in batch("clm")["labels"]] == [[0]] * 3


# -- losses -----------------------------------------------------------------------------------------------------------


def found(parts: dict) -> dict:
    return {name: (float(p.total), p.count, p.weight) for name, p in parts.items()}


def test_the_loss_of_a_causal_model():
    """Three tokens; the model gives the second probability ½ and the third ¼."""
    import torch

    logits = torch.log(torch.tensor([[[0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]]))
    inputs = {
        "input_ids": torch.tensor([[0, 1, 2]]),
        "attention_mask": torch.ones(1, 3),
        "labels": torch.tensor([[-100, 1, 2]]),
    }
    parts, metrics = objective("clm").losses(lambda **_: SimpleNamespace(logits=logits), inputs)
    assert found(parts)["nll"] == (pytest.approx(math.log(2) + math.log(4)), 2, 1.0)
    assert found(metrics)["mean_token_accuracy"] == (1.0, 2, 1.0)


def test_the_losses_of_a_masked_model_and_the_next_segment():
    import torch

    tokens = torch.log(torch.tensor([[[0.5, 0.25, 0.25]] * 3] * 2))
    following = torch.log(torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    labels = torch.tensor([[-100, 0, -100], [-100, 1, -100]])
    inputs = {k: torch.zeros(2, 3, dtype=torch.long) for k in ("input_ids", "attention_mask", "token_type_ids")}
    out = SimpleNamespace(logits=tokens, prediction_logits=tokens, seq_relationship_logits=following)
    parts, _ = objective("mlm").losses(lambda **_: out, inputs | {"labels": labels})
    assert found(parts) == {"nll": (pytest.approx(math.log(2) + math.log(4)), 2, 1.0)}
    parts, metrics = objective("nsp").losses(
        lambda **_: out, inputs | {"labels": labels, "wrong": torch.tensor([1, 0])}
    )
    assert found(parts)["next_nll"] == (pytest.approx(math.log(4) + math.log(2)), 2, 1.0)
    assert found(metrics)["next_accuracy"] == (1.0, 2, 1.0)


def test_both_losses_of_electra():
    """One of four tokens is masked. The generator gives the original ½; the discriminator σ(0) everywhere but σ(ln 3) = ¾ where the token
    was replaced."""
    import torch

    labels = torch.tensor([[-100, 5, -100, -100]])
    said = torch.log(torch.tensor([[0.25] * 2 + [0.0] * 3 + [0.5]]).clamp(min=1e-9))
    replaced = torch.tensor([[False, True, False, False]])
    logits = torch.tensor([[0.0, math.log(3), 0.0, 0.0]])
    parts, metrics = objective("electra").losses(lambda **_: (said, logits, replaced), {"labels": labels})
    assert found(parts)["generator_nll"] == (pytest.approx(math.log(2), rel=1e-5), 1, 1.0)
    assert found(parts)["discriminator_nll"] == (pytest.approx(3 * math.log(2) + math.log(4 / 3)), 4, 50.0)
    assert found(metrics)["replaced_share"] == (1.0, 4, 1.0)


def test_the_generators_draws_have_its_distribution():
    import torch

    from lib.methods.pretraining.electra import drawn

    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).expand(5, 3)
    assert drawn(logits, torch.tensor([0.0, 0.49, 0.51, 0.79, 0.999])).tolist() == [0, 0, 1, 1, 2]
