"""Speculative decoding gives the same answers as decoding without it, whatever the draft; and dropped cache entries were never used."""

import pytest

from lib.generation.kv_cache import Cached
from lib.generation.sampling import Sampling
from lib.generation.speculative import Lookup
from lib.generation.transformers_generator import TransformersGenerator

PROMPTS = [
    [{"role": "user", "content": text}]
    for text in ("what is the red lamp?", "salt", "the door and the window and the door and the window and", "small stone? large stone?")
]  # fmt: skip


@pytest.fixture(scope="module")
def target(tiny_model):
    return TransformersGenerator(tiny_model)


@pytest.fixture(scope="module")
def near(tiny_model):
    """The target with a little noise: its guesses are sometimes right."""
    import torch

    model, dice = TransformersGenerator(tiny_model), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=dice))
    return model


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "n": 3}, {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 5}, {"stop": ("lamp", "e")}, {"max_new_tokens": 1}, {"max_new_tokens": 2}])  # fmt: skip
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.slow
def test_answers_are_those_without_a_drafter(target, near, settings, k, rows):
    settings = {"max_new_tokens": 24} | settings
    target.batch_rows = rows
    plain = target.generate(PROMPTS, Sampling(**settings))
    for name, drafter in (("lookup", Lookup()), ("near", near.drafter()), ("itself", target.drafter())):
        drafted = Sampling(**settings, draft=name, draft_tokens=k)
        assert target.generate(PROMPTS, drafted, drafter=drafter) == plain, name
        # All tokens but the first of each answer.
        settled = sum(len(a.tokens) for answers in plain for a in answers) - sum(map(len, plain))
        assert drafter.written >= settled
        if name == "itself":  # always right: a pass confirms its guesses and adds one token
            assert drafter.right == drafter.proposed
        if name == "near" and "temperature" in settings:
            assert 0 < sum(drafter.right) < sum(drafter.proposed)
            assert drafter.right == sorted(drafter.right, reverse=True)
    target.batch_rows = 64


def test_a_drafter_that_is_always_right_saves_passes(target):
    target.ends, ends = set(), target.ends
    drafter = target.drafter()
    target.generate(PROMPTS[:1], Sampling(max_new_tokens=21, draft="itself", draft_tokens=4), drafter=drafter)
    target.ends = ends
    assert (drafter.rounds, drafter.proposed, drafter.right) == (4, [4] * 4, [4] * 4)  # 1 + 4 × 5 tokens


def test_lookup_takes_what_followed_the_longest_match_last(target):
    find = Lookup().find
    assert find([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 4) == [
        9,
        2,
        3,
        8,
    ]  # a match of three tokens further back is preferred to one of two
    assert find([5, 2, 3, 9, 2, 3, 8, 1, 2, 3], 2) == [8, 1]
    assert find([1, 2, 3], 4) == [] and find([7], 4) == []
    assert find([4, 4], 3) == [4]


def test_what_is_forgotten_was_never_read(target):
    import torch

    prompts, more = [[5, 6, 7, 8], [9, 10]], [[11, 12, 13], [14, 15, 16]]
    with torch.inference_mode():
        cached = Cached(target.model, prompts, target.encoder.pad, "cpu")
        cached.feed(torch.tensor(more))
        cached.forget(torch.tensor([[1, 0, 0], [1, 1, 0]]))
        assert cached.cache.get_seq_length() == cached.mask_BT.shape[1] == 6  # the last column belongs to no row
        got = cached.feed(torch.tensor([[20], [21]]))[:, -1]
        for row, ids in zip(got, ([5, 6, 7, 8, 11, 20], [9, 10, 14, 15, 21]), strict=True):
            assert torch.allclose(row, target.model(torch.tensor([ids])).logits[0, -1], atol=1e-5)
