"""lib/models/prefixes.py: rows as a tree, and a decoder that reads each node once, with the loss and gradients of the plain one."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lib.models import prefixes

SHAPE = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def made(kind: str = "llama", auto=AutoModelForCausalLM, **settings):
    """Returns (plain model, a model with the same weights and lib/models/prefixes.py)."""
    torch.manual_seed(0)
    settings = SHAPE | ({"head_dim": 8} if kind == "qwen3" else {}) | settings
    if kind == "mistral":
        settings = {"sliding_window": None} | settings
    plain = auto.from_config(AutoConfig.for_model(kind, **settings), attn_implementation="eager").float().train()
    shared = copy.deepcopy(plain)
    assert prefixes.install(shared)
    return plain, shared


def pairs():
    """Four rows: two with a common prefix, one that is a prefix of another, one separate; padded on the right."""
    ids = torch.randint(3, 100, (4, 12), generator=torch.Generator().manual_seed(0))
    ids[1, :7], ids[2, :5] = ids[0, :7], ids[0, :5]
    lengths = torch.tensor([12, 10, 5, 8])
    mask = (torch.arange(12) < lengths[:, None]).long()
    return ids * mask, mask


def test_the_tree_of_two_pairs():
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 0], [7, 6, 0, 0]])
    tree = prefixes.Tree(ids, torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]))
    assert tree.tokens_N.tolist() == [5, 6, 7, 8, 9, 7, 6]
    assert tree.depth_N.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert tree.node_RT.tolist() == [0, 1, 2, 3, 0, 1, 4, 0, 5, 6, 0, 0]
    assert tree.later_M.tolist() == [4, 5] and tree.of_M.tolist() == [0, 1]
    with pytest.raises(ValueError, match="padded on the right"):
        prefixes.Tree(ids, torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]))


@pytest.mark.parametrize("kind", sorted(prefixes.ARCHITECTURES))
def test_logits_and_gradients_are_the_plain_ones(kind):
    plain, shared = made(kind)
    ids, mask = pairs()
    read = []
    shared.base_model.embed_tokens.register_forward_hook(lambda m, x, y: read.append(x[0].numel()))
    weights = torch.randn(4, 12, 100, generator=torch.Generator().manual_seed(1)) * mask[..., None]
    logits = []
    for model in (plain, shared):
        out = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        (out.log_softmax(-1) * weights).sum().backward()
        logits.append(out[mask.bool()])
    assert read == [23], "12 + 3 + 0 + 8 tokens are to be read, of 48"
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    for a, b in zip(plain.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_and_bfloat16():
    plain, shared = made()
    ids, mask = pairs()
    shared.gradient_checkpointing_enable()
    labels, losses = ids.masked_fill(mask == 0, -100), []
    for model in (plain, shared):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss)
        losses[-1].backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=0.01)
    for a, b in zip(plain.parameters(), shared.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 0.05 * a.grad.norm()


def test_a_classifier_gives_the_plain_rewards():
    plain, shared = made(auto=AutoModelForSequenceClassification, num_labels=1)
    ids, mask = pairs()
    a, b = (m(input_ids=ids, attention_mask=mask, use_cache=False).logits for m in (plain, shared))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_rows_padded_on_the_left_are_read_as_before():
    plain, shared = made()
    ids, mask = (x.flip(1) for x in pairs())
    ask = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "use_cache": False,
    }
    a, b = (m(**ask).logits[mask.bool()] for m in (plain, shared))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    a, b = (m(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()] for m in (plain, shared))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_answers_are_written_as_before():
    plain, shared = (m.eval() for m in made())
    ids, mask = pairs()
    ask = {"input_ids": ids.flip(1), "attention_mask": mask.flip(1), "max_new_tokens": 5, "do_sample": False}
    assert plain.generate(**ask).tolist() == shared.generate(**ask).tolist()


@pytest.mark.parametrize(
    "settings", [{"attention_dropout": 0.1}, {"sliding_window": 8, "kind": "mistral"}, {"kind": "gpt2"}]
)
def test_unsupported_models_are_left_alone(settings):
    kind = settings.pop("kind", "llama")
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 100} if kind == "gpt2" else SHAPE
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **shape | settings), attn_implementation="eager"
    )
    assert not prefixes.install(model)
    assert model.config._attn_implementation == "eager"
