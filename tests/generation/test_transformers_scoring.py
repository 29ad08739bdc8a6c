"""Scoring: compared with plain forward passes, and independent of the batch."""

import pytest

from lib.generation.batching import batches, windows
from lib.generation.generator import Answer
from lib.generation.sampling import Sampling
from lib.generation.transformers_generator import TransformersGenerator
from tests.conftest import ASKED_FOR


def test_score_is_the_sum_of_a_plain_forward_pass(generator, prompts):
    import torch

    answers = [[{"role": "assistant", "content": f"it is {w}, near the {w}"}] for w in ASKED_FOR]
    scores = generator.score(prompts, answers)
    for prompt, answer, score in zip(prompts, answers, scores, strict=True):
        begin = generator.encoder.render(prompt, answering=True)
        ids = torch.tensor([generator.encoder.render(prompt + answer, answering=False)])
        with torch.no_grad():
            logp = generator.model(ids).logits.double().log_softmax(-1)
        want = sum(logp[0, t - 1, ids[0, t]].item() for t in range(len(begin), ids.shape[1]))
        assert score.tokens == ids.shape[1] - len(begin)
        assert score.logprob == pytest.approx(want, abs=1e-3)
        assert score.bytes == len((answer[0]["content"] + "\n").encode())


def test_score_does_not_depend_on_the_batch(generator, prompts):
    answers = [[{"role": "assistant", "content": w}] for w in ASKED_FOR]
    generator.batch_rows, together = 64, generator.score(prompts, answers)
    generator.batch_rows, alone = 1, generator.score(prompts, answers)
    generator.batch_rows = 64
    assert [(a.tokens, a.bytes) for a in together] == [(a.tokens, a.bytes) for a in alone]
    assert [a.logprob for a in together] == pytest.approx([a.logprob for a in alone], abs=1e-4)


def test_a_prompt_that_is_there_several_times_is_read_once(generator, prompts):
    """A multiple-choice question is read once, with its answers after it, and the scores equal those of a pass over
    both; so is a prompt with several samples, and the samples are the same."""
    context, fed = "the red lamp is near the", []
    questions = [f"{context} {w}" for w in ASKED_FOR[:3] for _ in range(3)] + [context]
    answers = [" red", " small round stone", " it"] * 3 + [" door and door"]
    forward = generator.model.forward

    def counted(*args, input_ids, attention_mask, **kwargs):
        fed.append(int(attention_mask[:, -input_ids.shape[1] :].sum()))
        return forward(*args, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(generator, "tree", False)  # the tree reads everything once anyway (the next test)
        m.setattr(generator.model, "forward", counted)
        together = generator.score(questions, answers)
        seen, fed[:] = sum(fed), []
        alone = [generator.score([q], [a])[0] for q, a in zip(questions, answers, strict=True)]
        assert seen < 0.6 * sum(fed)
        fed.clear()
        several = generator.generate(prompts[:2], Sampling(1.0, n=4, max_new_tokens=1))
        a, b = (generator.encoder.render(p, answering=True) for p in prompts[:2])
        same = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)  # the template's prefix
        assert sum(fed) == len(a) + len(b) - same
    for a, b in zip(together, alone, strict=True):
        assert (a.tokens, a.bytes, a.greedy) == (b.tokens, b.bytes, b.greedy)
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
    generator.batch_rows = 1
    assert several == generator.generate(prompts[:2], Sampling(1.0, n=4, max_new_tokens=1))
    generator.batch_rows = 64


def test_on_a_cpu_what_several_rows_begin_with_is_read_once(generator, prompts, monkeypatch):
    answers = [[{"role": "assistant", "content": w}] for w in ASKED_FOR]
    read = []
    hook = generator.model.base_model.embed_tokens.register_forward_hook(lambda m, x, y: read.append(x[0].numel()))
    by_tree = generator.score(prompts, answers)
    hook.remove()
    rows = {tuple(generator.encoder.render(p + a, answering=False)[:-1]) for p, a in zip(prompts, answers, strict=True)}
    assert sum(read) == len({row[: i + 1] for row in rows for i in range(len(row))})
    monkeypatch.setattr(generator, "tree", False)
    whole = generator.score(prompts, answers)
    assert [a.greedy for a in by_tree] == [a.greedy for a in whole]
    assert [a.logprob for a in by_tree] == pytest.approx([a.logprob for a in whole], abs=1e-4)


def test_reading_once_stays_within_the_batch(generator, monkeypatch):
    """Many continuations of one context are limited to batch_tokens; whole texts share only a start token, which isn't worth sharing."""
    rows = []
    forward = generator.model.forward

    def counted(*args, input_ids, attention_mask, **kwargs):
        rows.append(tuple(attention_mask.shape))
        return forward(*args, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(generator, "tree", False)
    monkeypatch.setattr(generator.model, "forward", counted)
    monkeypatch.setattr(generator, "batch_tokens", 100)
    context = "the red lamp is near the green chair and the blue table"
    generator.score([context] * 40, [f" {w} {v}" for w in ASKED_FOR[:8] for v in ASKED_FOR[:5]])
    assert len(rows) > 4 and all(b * t <= 100 for b, t in rows)
    monkeypatch.setattr(generator, "_after", None)  # not called
    generator.score([None] * 5, [context] * 5)


def test_an_answers_own_tokens_are_scored_not_its_text(generator, prompts):
    """Sampled tokens often differ from the tokenizer's own tokenisation of their text; the sampled ones must be scored."""
    drawn = generator.generate(prompts, Sampling(1.0, max_new_tokens=6))
    scores = generator.score(prompts, [a[0] for a in drawn])
    assert [s.tokens for s in scores] == [len(a[0].tokens) for a in drawn]
    assert generator.score(prompts[:1], [Answer("", (), True)])[0].logprob == 0.0


def test_text_is_scored_whole_in_windows(tiny_model):
    """A document longer than the window: every token is scored once; with a window as long as the document it equals a plain pass."""
    import torch

    text = " ".join(f"the {w} is near the {v}." for w in ASKED_FOR for v in ASKED_FOR[:3])
    whole, cut = TransformersGenerator(tiny_model, window=2048), TransformersGenerator(tiny_model, window=64)
    whole.window = 2048
    ids = torch.tensor([[whole.encoder.start, *whole.encoder.tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        logp = whole.model(ids).logits.double().log_softmax(-1)
    want = sum(logp[0, t - 1, ids[0, t]].item() for t in range(1, ids.shape[1]))
    a, b = whole.score([None], [text])[0], cut.score([None], [text])[0]
    assert a.logprob == pytest.approx(want, rel=1e-6) and a.bytes == len(text)
    assert a.tokens == b.tokens == ids.shape[1] - 1
    assert b.logprob == pytest.approx(a.logprob, rel=0.02) and b.logprob != a.logprob


def test_windows_by_hand():
    assert list(windows(list(range(11)), 4)) == [
        ([0], [1, 2, 3]),
        ([2, 3], [4, 5]),
        ([4, 5], [6, 7]),
        ([6, 7], [8, 9]),
        ([7, 8, 9], [10]),
    ]
    assert list(windows([7], 4)) == [] and list(windows([7, 8], 4)) == [([7], [8])]


def test_batches_by_hand():
    assert list(batches("abcde", [1, 9, 3, 3, 2], rows=2, tokens=None)) == [["b", "c"], ["d", "e"], ["a"]]
    assert list(batches("abcde", [1, 9, 3, 3, 2], rows=9, tokens=6)) == [["b"], ["c", "d"], ["e", "a"]]


def test_bfloat16_is_close_and_how_close(tiny_model, prompts):
    """In bfloat16, padding changes log-probabilities; this measures by how much (some 1e-2 per token) and checks the bound."""
    g = TransformersGenerator(tiny_model, dtype="bfloat16")
    answers = [[{"role": "assistant", "content": w}] for w in ASKED_FOR]
    together = g.score(prompts, answers)
    g.batch_rows = 1
    alone = g.score(prompts, answers)
    per_token = [abs(a.logprob - b.logprob) / a.tokens for a, b in zip(together, alone, strict=True)]
    assert max(per_token) < 0.05
