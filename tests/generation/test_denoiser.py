"""Measures of encoders and encoder-decoders agree with their definitions, text by text."""

import json

import numpy as np
import pytest

from lib.config.job import Data
from lib.evals.evaluate import measure
from lib.evals.job import EvalJob
from lib.evals.measures.denoising import pairs
from lib.evals.plan import plan
from lib.generation.denoiser import Denoiser
from lib.generation.pool import Engine
from lib.models import masking
from tests import stages
from tests.conftest import WORDS
from tests.methods import pretrained

TEXTS = [f"the {a} {b} is near the {c}." for a, b, c in zip(WORDS, WORDS[5:], WORDS[7:], strict=False)]
OBJECTIVES = {
    "pseudo_perplexity": "mlm",
    "denoising_loss": "span_corruption",
    "replaced_f1": "electra",
    "next_segment": "nsp",
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, str]:
    """{objective: a run with random weights}"""
    folder = tmp_path_factory.mktemp("bases")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 3))
    with pytest.MonkeyPatch.context() as m:
        m.setenv("SHOESTRING_CACHE", str(folder / "cache"))

        def base(name: str) -> str:
            argv = pretrained.options(name, str(folder / "texts.jsonl"), str(folder / name))
            return stages.planned("pretrain", argv).job.model.base

        yield {name: base(name) for name in OBJECTIVES.values()}


def denoiser(bases: dict[str, str], name: str) -> Denoiser:
    makes = stages.stage("pretrain").makes
    return Denoiser(f"{bases[name]}/model", makes[name])


def test_pseudo_perplexity_masks_each_token_by_itself(bases):
    import torch

    d = denoiser(bases, "mlm")
    [(nats, tokens)] = d.denoise(TEXTS[:1], [None], ["pseudo_perplexity"])
    t, ids = d.tokenizer, d.tokenizer(TEXTS[0])["input_ids"]
    assert (ids[0], ids[-1]) == (t.cls_token_id, t.sep_token_id) and tokens == len(ids) - 2
    total = 0.0
    for i in range(1, len(ids) - 1):
        row = torch.tensor([[*ids[:i], t.mask_token_id, *ids[i + 1 :]]])
        with torch.no_grad():
            total -= d.model(row).logits[0, i].log_softmax(-1)[ids[i]].item()
    assert nats == pytest.approx(total, rel=1e-5)


def test_a_text_longer_than_the_model_reads_is_cut(bases):
    d = denoiser(bases, "mlm")
    whole = len(d.tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"])
    d.window = 7
    [(nats, tokens)] = d.denoise(TEXTS[:1], [None], ["pseudo_perplexity"])
    assert tokens == whole > 5 and nats > 0


def test_denoising_loss_is_that_of_the_masked_tokens(bases):
    import torch

    d = denoiser(bases, "span_corruption")
    [(nats, tokens)] = d.denoise(TEXTS[:1], [None], ["denoising_loss"])
    t, ids = d.tokenizer, np.array(d.tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"])
    noise = masking.spans(len(ids), 0.15, 3.0, masking.generator(TEXTS[0]))
    assert tokens == noise.sum() == max(1, round(0.15 * len(ids)))
    sentinel = t.convert_tokens_to_ids("<extra_id_0>")
    [at] = [i for i in range(len(ids)) if noise[i] and not noise[i - 1]]
    source = [*ids[:at], sentinel, *ids[~noise][at:], t.eos_token_id]
    labels = torch.tensor([[-100, *ids[noise].tolist(), -100]])
    start = torch.tensor([[t.pad_token_id, sentinel, *ids[noise].tolist()]])
    with torch.no_grad():
        loss = d.model(input_ids=torch.tensor([source]), decoder_input_ids=start, labels=labels).loss.item()
    assert nats / tokens == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(("logit", "said"), [(1.0, True), (-1.0, False)])
def test_f1_of_one_who_always_says_the_same(logit, said, bases):
    import torch
    from transformers.utils import ModelOutput

    d = denoiser(bases, "electra")
    d.model = lambda input_ids, attention_mask: ModelOutput(logits=torch.full(input_ids.shape, logit))
    for text, (top, bottom) in zip(
        TEXTS, d.denoise(TEXTS, [None] * len(TEXTS), ["replaced_f1"] * len(TEXTS)), strict=True
    ):
        n = len(d.tokenizer(text, add_special_tokens=False)["input_ids"])
        fakes = max(1, round(0.15 * n))
        assert (top, bottom) == ((2 * fakes, n + fakes) if said else (0, fakes))


def test_half_of_the_second_segments_are_of_another_text():
    first, second, follows = pairs([*TEXTS, "single"])
    assert len(first) == len(second) == len(follows) == len(TEXTS) and {True, False} == set(follows)
    for n, (a, b, same) in enumerate(zip(first, second, follows, strict=True)):
        assert (f"{a} {b}" == TEXTS[n]) == same


def test_next_segment_needs_its_head(bases):
    d = denoiser(bases, "mlm")
    with pytest.raises(ValueError, match=r"next_segment needs a head that train.objective nsp trains"):
        d.denoise(TEXTS[:1], ["a b"], ["next_segment"])


@pytest.mark.parametrize("how", OBJECTIVES)
def test_a_texts_result_doesnt_depend_on_the_others(how, bases):
    d, seconds = denoiser(bases, OBJECTIVES[how]), ["is near"] * len(TEXTS)
    together = d.denoise(TEXTS, seconds, [how] * len(TEXTS))
    alone = [r for text in TEXTS for r in d.denoise([text], ["is near"], [how])]
    assert np.array(together) == pytest.approx(np.array(alone), rel=1e-4)


@pytest.mark.parametrize("how", OBJECTIVES)
def test_an_evaluation_reports_it(how, bases, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    data = Data(str(file), heldout_fraction=1.0)
    planned = plan(EvalJob(run=str(tmp_path / "run"), runs={"start": bases[OBJECTIVES[how]]}, tasks=[how], data=data))
    with Engine(planned.specs, here=True, say=lambda line: None) as engine:
        _, [scores] = measure(planned, engine, None)
    assert (scores.task, scores.run, scores.headline) == (how, "start", True) and len(scores.tops) == len(TEXTS)


def test_tasks_of_different_kinds_and_runs_that_dont_fit_are_refused(bases, tmp_path):
    job = EvalJob(run=str(tmp_path / "run"), runs={"a": bases["mlm"]}, tasks=["pseudo_perplexity", "perplexity"])
    with pytest.raises(
        ValueError, match="tasks: these need different kinds of model: perplexity a language model; pseudo_perplexity"
    ):
        plan(job)
    job.tasks = ["replaced_f1"]
    with pytest.raises(ValueError, match=r"runs\.a: .* is a masked language model. Name a discriminator"):
        plan(job)
