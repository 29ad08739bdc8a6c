"""Generation: compared with plain forward passes, and independent of the batch."""

import math

import pytest

from lib.generation.generator import Begun
from lib.generation.sampling import Sampling, choose, race
from lib.generation.transformers_generator import TransformersGenerator


@pytest.mark.parametrize(
    "sampling", [Sampling(max_new_tokens=12), Sampling(1.0, 0.9, 12, seed=3), Sampling(1.0, 1.0, 12, n=2)]
)
def test_one_batch_of_8_is_8_batches_of_1(generator, prompts, sampling):
    generator.batch_rows = 64
    together = generator.generate(prompts, sampling)
    generator.batch_rows = 1
    alone = generator.generate(prompts, sampling)
    generator.batch_rows = 64
    assert together == alone
    assert generator.generate(prompts[::-1], sampling) == together[::-1]


def test_greedy_is_transformers_own(generator, prompts):
    import torch

    for prompt, answer in zip(prompts[:4], generator.generate(prompts[:4], Sampling(max_new_tokens=10)), strict=True):
        ids = torch.tensor([generator.encoder.render(prompt, answering=True)])
        own = generator.model.generate(ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :].tolist()
        assert list(answer[0].tokens) == own


def test_beam_search_is_transformers_own_and_likelier_than_greedy(generator, prompts):
    """One prompt at a time and all together give the same, and no answer is less likely per token than the greedy one."""
    sampling = Sampling(max_new_tokens=6, beams=3)
    together = [a[0] for a in generator.generate(prompts, sampling)]
    assert together == [generator.generate([p], sampling)[0][0] for p in prompts]
    import torch

    for prompt, answer in list(zip(prompts, together, strict=True))[:4]:
        ids = torch.tensor([generator.encoder.render(prompt, answering=True)])
        out = generator.model.generate(
            ids, num_beams=3, do_sample=False, max_new_tokens=6, eos_token_id=sorted(generator.ends), pad_token_id=3
        )
        assert tuple(out[0, ids.shape[1] :].tolist()[: len(answer.tokens)]) == answer.tokens
    greedy = [a[0] for a in generator.generate(prompts, Sampling(max_new_tokens=6))]
    mean = lambda answers: [s.logprob / s.tokens for s in generator.score(prompts, answers)]  # noqa: E731
    better = [b >= g - 1e-4 for b, g in zip(mean(together), mean(greedy), strict=True)]
    assert sum(better) >= 0.9 * len(better)  # greedy's prefix may have fallen out of the beam


def test_an_answer_that_is_begun_goes_on_as_if_it_had_never_stopped(generator, prompts):
    whole = [a[0] for a in generator.generate(prompts, Sampling(max_new_tokens=10))]
    begun = [Begun(p, a.tokens[:4]) for p, a in zip(prompts, whole, strict=True)]
    rest = [a[0] for a in generator.generate(begun, Sampling(max_new_tokens=6))]
    assert [(a.text, a.tokens, a.begun) for a in rest] == [(a.text, a.tokens, 4) for a in whole]


def test_contrastive_decoding(tiny_model, generator, prompts):
    """Compared with a plain loop over whole forward passes of both models; with itself as amateur it equals greedy decoding."""
    import torch

    weak, dice = TransformersGenerator(tiny_model), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in weak.model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=dice))
    sampling = Sampling(max_new_tokens=6, amateur="weak", contrast=0.7, plausible=0.3)
    greedy = generator.generate(prompts, Sampling(max_new_tokens=6))
    assert generator.generate(prompts, sampling, other=generator) == greedy
    got = generator.generate(prompts, sampling, other=weak)
    assert got != greedy
    for prompt, answer in zip(prompts[:3], got, strict=False):
        ids, want = generator.encoder.render(prompt, answering=True), []
        for _ in range(len(answer[0].tokens)):
            e, a = (m.model(torch.tensor([ids + want])).logits[0, -1] for m in (generator, weak))
            scores = 1.7 * e - 0.7 * a
            scores[e.softmax(-1) < 0.3 * e.softmax(-1).max()] = -torch.inf
            want.append(int(scores.argmax()))
        assert list(answer[0].tokens) == want


def test_an_amateur_with_other_words_is_refused(generator, tiny_model, prompts, tmp_path):
    import shutil

    from transformers import AutoTokenizer

    other = shutil.copytree(tiny_model, tmp_path / "other")
    tok = AutoTokenizer.from_pretrained(tiny_model)
    tok.add_tokens(["zebra"])
    tok.save_pretrained(other)
    sampling = Sampling(max_new_tokens=2, amateur="other")
    with pytest.raises(ValueError, match=r"^decoding: other: .*another vocabulary.*same family"):
        generator.generate(prompts[:1], sampling, other=TransformersGenerator(str(other)))


def test_it_stops_at_the_end_token(tiny_model, prompts):
    """With the likeliest first token declared an end token, every row stops there, and the rest of the batch continues."""
    g = TransformersGenerator(tiny_model)
    free = g.generate(prompts, Sampling(max_new_tokens=8))
    first = free[0][0].tokens[3]
    g.ends = {first}
    for stopped, whole in zip(g.generate(prompts, Sampling(max_new_tokens=8)), free, strict=True):
        tokens = whole[0].tokens
        cut = tokens[: tokens.index(first) + 1] if first in tokens else tokens
        assert (stopped[0].tokens, stopped[0].finished) == (cut, first in tokens)


def test_samples_differ_by_seed_and_draw_and_follow_the_distribution(generator, prompts):
    import torch

    one = generator.generate(prompts[:1], Sampling(1.0, max_new_tokens=1, n=1500))[0]
    assert len({a.tokens for a in one}) > 300
    other = generator.generate(prompts[:1], Sampling(1.0, max_new_tokens=1, n=10, seed=1))[0]
    assert other != one[:10]
    ids = torch.tensor([generator.encoder.render(prompts[0], answering=True)])
    with torch.no_grad():
        p = generator.model(ids).logits[0, -1].softmax(-1)
    half = torch.searchsorted(p.cumsum(0), 0.5).item()
    drawn = sum(a.tokens[0] <= half for a in one) / 1500
    assert abs(drawn - p[: half + 1].sum().item()) < 4 * math.sqrt(0.25 / 1500)


@pytest.mark.parametrize(
    ("sampling", "want"),
    [
        (Sampling(1.0), (0.5, 0.3, 0.2)),
        (Sampling(1.0, 0.6), (5 / 8, 3 / 8, 0.0)),  # the fewest tokens that reach 0.6 are 0.5 and 0.3
        (Sampling(0.5), (0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38)),  # T = 1/2 squares and renormalises
        (Sampling(0.0), (1.0, 0.0, 0.0)),
    ],
)
def test_choose_follows_the_distribution(sampling, want):
    import torch

    logits = torch.tensor([[0.5, 0.3, 0.2]] * 4000).log()
    dice = [torch.Generator().manual_seed(i) for i in range(4000)]
    picked = choose(logits, sampling, race(dice, 3, "cpu"))
    for token, p in enumerate(want):
        assert abs((picked == token).float().mean().item() - p) <= 4 * math.sqrt(p * (1 - p) / 4000)


def test_grouped_attention_is_sdpa(tiny_model, prompts):
    """lib/models/cpu_attention.py compared with transformers' own sdpa, for one decoding step with a cache and padding."""
    import torch

    from lib.models import prefixes

    g = TransformersGenerator(tiny_model)
    assert (
        g.model.config._attn_implementation == prefixes.NAME
    )  # all masks but its own are left to lib/models/cpu_attention.py
    ids = torch.tensor([g.encoder.render(prompts[0], True)] * 3)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    out = {}
    for name in ("sdpa", prefixes.NAME):
        g.model.set_attn_implementation(name)
        with torch.inference_mode():
            cache = g.model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=True).past_key_values
            out[name] = g.model(input_ids=ids[:, -1:], attention_mask=mask, past_key_values=cache).logits
    assert not torch.equal(out["sdpa"][0], out["sdpa"][1])  # the mask matters
    torch.testing.assert_close(out["sdpa"], out[prefixes.NAME], rtol=0, atol=1e-5)


def test_another_template_is_refused(tiny_model):
    with pytest.raises(ValueError, match="not the one this model was trained with"):
        TransformersGenerator(tiny_model, trained_template="0" * 64)


def test_tools_reach_the_template(generator):
    """The tiny template ignores tools; a model without a template raises an error."""
    from lib.models.encode import Encoder

    e = Encoder(generator.encoder.model_dir)
    e.tokenizer.chat_template = (
        "{% for t in tools %}{{ t.name }} {% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with_tools = e.render([{"role": "user", "content": "hello"}], False, '[{"name": "salt"}]')
    assert e.text(with_tools) == "salt hello"
    e.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        e.render([{"role": "user", "content": "hello"}], False)


def test_answers_begin_with_the_given_text(generator, prompts):
    """The tokens are those of the training text: a last line break that would merge with the next one is left to the model."""
    text = "<think>\n\n</think>\n\n"
    sampling = Sampling(max_new_tokens=6, begins=text)
    (answer,), (again,) = generator.generate(prompts[:2], sampling)
    bare = generator.encoder.bare
    assert answer.begun == again.begun == len(answer.tokens) - 6 and answer.text.startswith("<think>\n\n</think>")
    assert list(answer.tokens[: answer.begun]) == bare(text + "a")[: answer.begun] and text.startswith(
        generator.encoder.text(answer.tokens[: answer.begun])
    )
    rest = generator.generate([Begun(prompts[0], answer.tokens[: answer.begun])], Sampling(max_new_tokens=6))
    assert rest[0][0] == answer
    assert generator.generate([Begun(prompts[0], answer.tokens[:8])], sampling)[0][0].begun == 8  # begun already
    template = generator.encoder.tokenizer.chat_template
    try:  # a template that begins the reasoning itself, as DeepSeek-R1's
        generator.encoder.tokenizer.chat_template = template + "{{ '<think>\\n' if add_generation_prompt else '' }}"
        ids, given = generator.opened(prompts[0], text)
        assert generator.encoder.text(ids).rstrip().endswith("<think>\n</think>") and len(given) < answer.begun
    finally:
        generator.encoder.tokenizer.chat_template = template
