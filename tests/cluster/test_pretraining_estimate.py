"""Estimates of pre-training: a generator, a decoder and whole logits are counted as they are in the real models."""

import numpy as np
import pytest
import torch
from transformers import ElectraConfig, T5Config, T5ForConditionalGeneration

from cluster.estimate import anatomy, memory
from cluster.estimate.anatomy import Pretraining
from lib.config.job import Model
from lib.methods.pretraining import span_corruption
from lib.methods.pretraining.electra import Pair, generator_config
from lib.models import masking
from tests.cluster import autograd


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def electra() -> ElectraConfig:
    sizes = {"hidden_size": 64, "embedding_size": 32, "intermediate_size": 128, "num_attention_heads": 4}
    return ElectraConfig(vocab_size=500, num_hidden_layers=3, attn_implementation="eager", **sizes)


@pytest.fixture
def t5() -> T5Config:
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4}
    return T5Config(vocab_size=500, num_layers=3, num_decoder_layers=2, decoder_start_token_id=0, **sizes)


def test_electra_has_two_models(electra, tmp_path):
    electra.save_pretrained(tmp_path)
    a = anatomy.study(
        Model(base=str(tmp_path)), 16, False, "fp32", "discriminator", pretraining=Pretraining(generator=0.5)
    )
    pair = Pair(electra, 0.5).train()
    assert a.parameters == a.trainable == sum(p.numel() for p in pair.parameters())
    small = generator_config(electra, 0.5)
    layer = lambda c: 4 * c.hidden_size**2 + 2 * c.hidden_size * c.intermediate_size  # noqa: E731
    assert a.multiplied == 3 * (layer(electra) + layer(small)) and a.attention == 64 + 32
    assert a.head == 500 * 32 and a.head_trains
    ids = torch.zeros(2, 16, dtype=torch.long)
    where = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    both = lambda: (pair.electra(**where), pair.generator.electra(**where))  # noqa: E731
    assert a.copies + 2 * a.sequence == pytest.approx(autograd.saved_bytes(both, pair.parameters()), rel=0.01)


def test_the_decoder_reads_fewer_tokens(t5, tmp_path):
    t5.save_pretrained(tmp_path)
    base = Model(base=str(tmp_path))
    a = anatomy.study(base, 40, False, "fp32", "seq2seq_lm", pretraining=Pretraining(decoder=10))
    net = T5ForConditionalGeneration(t5).train()
    assert a.parameters == sum(p.numel() for p in net.parameters())
    attention, mlp = 4 * 64 * 64, 2 * 64 * 128
    relative = 32 * 4  # the first layer's table of distances in each half, which is no matrix product
    assert a.multiplied == pytest.approx(3 * (attention + mlp) + 2 * (2 * attention + mlp) / 4, abs=2 * relative)
    assert a.attention == round(64 * (3 + 2 * (1 / 16 + 1 / 4)) / 5)
    ids, read = torch.zeros(2, 40, dtype=torch.long), torch.zeros(2, 10, dtype=torch.long)
    encoded = lambda: net.get_encoder()(input_ids=ids, attention_mask=torch.ones_like(ids))[0]  # noqa: E731
    run = lambda: net.get_decoder()(input_ids=read, encoder_hidden_states=encoded(), use_cache=False)  # noqa: E731
    assert a.copies + 2 * a.sequence == pytest.approx(autograd.saved_bytes(run, net.parameters()), rel=0.02)


@pytest.mark.parametrize("tokens", [2, 7, 128, 512])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 64.0), (0.9, 1.5)])
def test_the_lengths_are_those_of_corrupted_blocks(tokens, density, mean):
    at_T = masking.spans(tokens, density, mean, np.random.default_rng(0))
    ids_T = np.arange(tokens)
    sentinels = list(range(1000, 1000 + tokens))
    made = [len(list(masking.replaced(ids_T, which, sentinels))) + 1 for which in (at_T, ~at_T)]
    assert list(span_corruption.lengths(tokens, "spans", density, mean)) == made


def test_whole_logits_need_more_than_a_tile():
    """As in jobs/pretrain.py, which computes those of a micro-batch at once: 16 blocks of 1,024 tokens and GPT-2's vocabulary."""
    a = anatomy.Anatomy(0, 0, 0, 0, 0, 0, 50257 * 768, True, 12, 768, 768, 50257, 0, 0, 0, 1024)
    whole = memory.Setting(True, "bf16", labelled=16 * 1024, logit_bytes=memory.PRETRAINED)
    assert memory.footprint(a, whole).parts["logits"] == 12 * 16 * 1024 * 50257
