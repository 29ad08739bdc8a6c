"""Compares vLLM with transformers on the same tiny model. `make test` runs these in an environment with vLLM (.venv-vllm)."""

import pytest

from lib.generation import vllm_generator
from lib.generation.generator import Begun
from lib.generation.sampling import Sampling
from lib.generation.transformers_generator import TransformersGenerator

pytestmark = pytest.mark.vllm
PROMPTS = [[{"role": "user", "content": f"what is {w}?"}] for w in ("lamp", "the red table", "a garden near the river")]


@pytest.fixture(scope="module")
def both(tiny_model, tmp_path_factory):
    """The tiny model with heads of 32, since vLLM's attention for CPUs doesn't support 16."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = str(tmp_path_factory.mktemp("vllm"))
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    config = LlamaConfig.from_pretrained(tiny_model, head_dim=32)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return vllm_generator.VllmGenerator(folder), TransformersGenerator(folder)


def test_greedy_answers_are_the_same(both):
    ours, theirs = (g.generate(PROMPTS, Sampling(max_new_tokens=10)) for g in both)
    assert ours == theirs
    begun = [Begun(p, a[0].tokens[:4]) for p, a in zip(PROMPTS, ours, strict=True)]
    assert [a[0].tokens for a in both[0].generate(begun, Sampling(max_new_tokens=6))] == [a[0].tokens for a in ours]


def test_log_probabilities_are_the_same(both):
    prompts = [*PROMPTS, "the lamp is", None]
    completions = [[{"role": "assistant", "content": "a lamp"}]] * 3 + [
        " near the river",
        "the red table is near. " * 9,
    ]
    ours, theirs = (g.score(prompts, completions) for g in both)
    assert [s.logprob for s in ours] == pytest.approx([s.logprob for s in theirs], abs=1e-3)
    assert [(s.tokens, s.bytes, s.greedy) for s in ours] == [(s.tokens, s.bytes, s.greedy) for s in theirs]
    answers = [a[0] for a in both[0].generate(PROMPTS, Sampling(max_new_tokens=5))]
    assert all(s.greedy and s.tokens == 5 for s in both[0].score(PROMPTS, answers))


def test_draws_depend_on_seed_prompt_and_number_alone(both):
    sampling = Sampling(1.0, 0.9, max_new_tokens=8, seed=3, n=2)
    together = both[0].generate(PROMPTS, sampling)
    assert together == [both[0].generate([p], sampling)[0] for p in PROMPTS]
    assert together[0][0] != together[0][1] and together != both[0].generate(PROMPTS, Sampling(1.0, 0.9, max_new_tokens=8, seed=4, n=2))  # fmt: skip


def test_it_stops_at_a_text(both):
    whole = both[0].generate(PROMPTS[:1], Sampling(max_new_tokens=12))[0][0]
    stop = whole.text[4:6]
    stopped = both[0].generate(PROMPTS[:1], Sampling(max_new_tokens=12, stop=(stop,)))[0][0]
    assert stop in stopped.text and len(stopped.tokens) < len(whole.tokens)
