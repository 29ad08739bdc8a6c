"""Parsing of decodings, and each one's effect on the next token's distribution compared with its paper."""

import math

import pytest

from lib.generation import decoding
from lib.generation.sampling import Sampling, choose, contrast, penalise, race


def test_words():
    assert decoding.parse("greedy", 9, 3).sampling == Sampling(max_new_tokens=9)
    read = decoding.parse("t=0.7, top_p=0.9,top_k=5", 9, 3)
    assert read.sampling == Sampling(0.7, 0.9, top_k=5, max_new_tokens=9, seed=3)
    best = decoding.parse("best_of_8,t=0.5", 9, 3)
    assert best.by_reward and best.sampling == Sampling(0.5, n=8, max_new_tokens=9, seed=3)
    assert str(best) == "best of T=0.5, seed 3, 8 each"
    majority = decoding.parse("majority_5,t=0.7,think=no", 9, 3)
    assert majority.sampling == Sampling(0.7, n=5, max_new_tokens=9, seed=3, begins="<think>\n\n</think>\n\n")
    assert (majority.written, str(majority)) == (5, "majority of T=0.7, seed 3, without reasoning, 5 each")
    assert decoding.parse("majority_5", 9, 3).sampling.temperature == 1.0 and not majority.by_reward
    assert decoding.parse("greedy,think=no", 9, 3).sampling == Sampling(
        max_new_tokens=9, begins=majority.sampling.begins
    )
    weighted = decoding.parse("reward_weighted_4,beta=0.5,top_p=0.9", 9, 3)
    assert weighted.beta == 0.5 and weighted.sampling == Sampling(1.0, 0.9, n=4, max_new_tokens=9, seed=3)
    beam = decoding.parse("reward_beam_2,chunk=8", 9, 3)
    assert (beam.chunk, beam.written, beam.sampling.n) == (8, 4, 2)
    against = decoding.parse("contrastive_my_base,alpha=0.2", 9, 3)
    assert against.sampling == Sampling(amateur="my_base", plausible=0.2, max_new_tokens=9)
    assert str(against) == "against my_base, plausible=0.2"
    assert decoding.parse("contrastive_base,beta=1,t=0.7", 9, 3).sampling.seed == 3
    assert decoding.parse("beam_4", 9, 3).sampling == Sampling(max_new_tokens=9, beams=4)
    assert str(decoding.parse("beam_4,repetition_penalty=1.2", 9, 3)) == "4 beams, repetition_penalty=1.2"
    assert str(decoding.parse("greedy,repetition_penalty=1.1", 9, 3)) == "greedy, repetition_penalty=1.1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gredy", r"no 'gredy'.*[Nn]earest.*greedy"),
        ("top_q=0.9", r"no 'top_q'.*top_p"),
        ("top_p=high", r"top_p is a number \(float\), not 'high'"),
        ("top_p=0", "top_p must be above 0"),
        ("t=0", "t must be above 0.*greedy"),
        ("greedy,t=1", "greedy has no t"),
        ("beam_1", "2 beams or more"),
        ("beam_4,top_p=0.9", "top_p=0.9 bends a distribution that beam search doesn't draw from"),
        ("best_of_1", "2 samples or more"),
        ("majority_1", "majority_N needs 2 samples or more"),
        ("majority_4,beta=1", "no 'beta'"),
        ("greedy,think=yes", "think=no leaves reasoning out"),
        ("greedy,thnk=no", "no 'thnk'. Nearest: think"),
        ("reward_weighted_4,beta=0", "beta must be above 0"),
        ("reward_beam_4,chunk=0", "chunk must be 1 token or more"),
        ("contrastive_base,alpha=2", "alpha must be from 0 to 1"),
        ("best_of_4,beta=1", "no 'beta'"),
        ("greedy,top_k=5", "top_k=5 bends a distribution that greedy doesn't draw from"),
        ("t=nan", "t must be above 0"),
        ("contrastive_base,beta=-1", "beta must be 0 or more"),
        ("contrastive", "no 'contrastive'.*contrastive_base"),
        ("greedy,draft=", "say what drafts.*draft=RUN or draft=lookup"),
        ("beam_4,draft=lookup", "draft guesses what one distribution chooses, not beam"),
        ("min_p=1", "min_p must be from 0 to below 1"),
        ("", "no ''"),
    ],
)
def test_words_that_are_wrong(text, says):
    with pytest.raises(ValueError, match=rf"^decoding: .*{says}"):
        decoding.parse(text, 9, 0)


def drawn(sampling: Sampling, probabilities: list[float], draws: int = 4000) -> list[float]:
    """Returns the share of draws that each token got."""
    import torch

    logits = torch.tensor([probabilities]).log().expand(draws, -1)
    dice = [torch.Generator().manual_seed(i) for i in range(draws)]
    counts = choose(logits, sampling, race(dice, len(probabilities), "cpu")).bincount(minlength=len(probabilities))
    return (counts / draws).tolist()


@pytest.mark.parametrize(
    ("sampling", "want"),
    [
        (Sampling(1.0), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(1.0, top_k=2), [0.625, 0.375, 0, 0]),
        (Sampling(1.0, top_p=0.8), [0.625, 0.375, 0, 0]),
        (Sampling(1.0, min_p=0.2), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (Sampling(0.5), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
    ],
)
def test_what_is_cut_is_never_drawn_and_the_rest_keeps_its_proportions(sampling, want):
    for got, p in zip(drawn(sampling, [0.5, 0.3, 0.15, 0.05]), want, strict=True):
        assert abs(got - p) <= 4 * math.sqrt(p * (1 - p) / 4000)  # p = 0 requires exactly 0


def test_penalty_of_seen_tokens():
    """Keskar et al. 2019, eq. 5.1: positive logits of seen tokens are divided, negative ones multiplied."""
    import torch

    logits = torch.tensor([[2.0, -1.0, 3.0], [2.0, -1.0, 3.0]])
    got = penalise(logits, [[0, 0, 1], [2]], 2.0)
    assert got.tolist() == [[1.0, -2.0, 3.0], [2.0, -1.0, 1.5]]


def test_contrast_is_the_papers_formula():
    """O'Brien and Lewis 2023, eq. 2: (1 + β) s_e − β s_a where p_e ≥ α max p_e; nothing else may be taken."""
    import torch

    expert, amateur = torch.tensor([[2.0, 1.5, -3.0]]), torch.tensor([[2.5, 0.0, -9.0]])
    got = contrast(expert, amateur, Sampling(amateur="a", contrast=0.5, plausible=0.1))
    assert got[0, :2].tolist() == [1.5 * 2.0 - 0.5 * 2.5, 1.5 * 1.5] and got[0, 2] == -math.inf
    assert contrast(expert, expert, Sampling(amateur="a", plausible=0))[0].tolist() == pytest.approx(expert[0].tolist())
