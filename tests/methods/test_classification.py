"""Classification and regression: losses on hand-written logits; resume, micro-batches and workers change nothing; the model is what was
trained."""

import json
import math

import pytest

from lib.errors import UsageError
from tests import stages
from tests.methods import classified, embedded
from tests.methods.as_worker import Two


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    return classified.rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def encoder(tiny_model, tmp_path_factory) -> str:
    return embedded.base(tiny_model, tmp_path_factory.mktemp("encoder"))


def exported(trainer, argv: list[str], folder) -> str:
    from lib.models import export, load

    job = stages.planned("classify", argv).job
    if job.model.adapter != "none":
        load.prepare_adapter(trainer, job.model.adapter)
    export.export(trainer, job.model, folder)
    return str(folder / "model")


def logits(trainer, texts, seconds=(None,) * 9) -> list[list[float]]:
    """Returns the logits of each row by itself, without padding."""
    import torch

    from lib.models import text_pairs

    model, found = trainer.model.eval(), []
    for text, second in zip(texts, seconds, strict=False):
        read = text_pairs.tokens(trainer.processing_class, text, second)
        with torch.no_grad():
            found.append(model(**{k: torch.tensor([v]) for k, v in read.items()}).logits[0].tolist())
    return found


def test_losses_of_hand_written_logits():
    """Softmax of (0, ln 3) is (¼, ¾), and of (0, 0) is (½, ½)."""
    import torch

    from lib.methods.classification.trainer import losses

    total, right = losses(torch.tensor([[0, math.log(3)], [0, 0], [0, math.log(3)]]), torch.tensor([1, 1, 0]))
    assert total.item() == pytest.approx(math.log(4 / 3) + math.log(2) + math.log(4)) and right.item() == 1
    total, right = losses(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 0.5]))
    assert total.item() == pytest.approx(1 + 6.25) and right is None


@pytest.mark.parametrize("task", ["classes", "pairs", "scores"])
def test_a_resumed_run_and_the_saved_model_are_what_was_trained(task, encoder, files, tmp_path):
    """Saved in the second epoch, whose dropout isn't that of the first."""
    import torch

    from lib.generation.classifier import Classifier
    from lib.models import locate

    whole = classified.built(encoder, files[task], str(tmp_path / "whole"), save_steps=4)
    before = {name: p.detach().clone() for name, p in whole.model.named_parameters()}
    found = embedded.losses(whole)
    assert whole.state.num_input_tokens_seen > 0
    assert ("eval_accuracy" in whole.state.log_history[-1]) == (task != "scores")
    resumed = classified.built(encoder, files[task], str(tmp_path / "resumed"), save_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-4"))
    after = dict(resumed.model.named_parameters())
    assert all(torch.equal(w, after[name]) for name, w in whole.model.named_parameters())
    unmoved = [name for name, w in before.items() if torch.equal(w, after[name]) and "key.bias" not in name]
    assert [n for n in unmoved if "token_type" not in n] == [] and found[-2] != found[0]

    folder = exported(whole, classified.options(encoder, files[task], str(tmp_path)), tmp_path / "made")
    assert locate.kind(folder) == "classifier"
    texts, seconds = ["a short one", "a text with several more words in it", "x"], [None, "and another", "y"]
    model = Classifier(folder, torch.float32, "cpu")
    assert model._logits(texts, seconds) == [pytest.approx(row, abs=1e-6) for row in logits(whole, texts, seconds)]
    names = {"classes": ["0", "1", "2"], "pairs": classified.NAMES, "scores": ["score"]}[task]
    assert list(model.model.config.id2label.values()) == names
    rows = [max(range(len(row)), key=row.__getitem__) for row in logits(whole, texts, seconds)]
    assert model.classify(texts, seconds) == [names[i] for i in rows]
    if task == "scores":
        assert [[score] for score in model.rate(texts, seconds)] == model._logits(texts, seconds)


@pytest.mark.parametrize("task", ["pairs", "scores"])
def test_micro_batches_change_no_loss(task, encoder, files, tmp_path):
    """With dropout, too."""
    found = [
        embedded.losses(classified.built(encoder, files[task], str(tmp_path / str(m)), micro=m, max_steps=3))
        for m in (8, 1)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.slow
def test_two_workers_take_the_steps_of_one(encoder, files, tmp_path):
    names = ["pairs", "scores"]
    (tmp_path / "rows").mkdir()
    where = [str(tmp_path / "two"), encoder, str(tmp_path / "rows")]
    both = Two("tests.methods.classified", *where, *names, cache=str(tmp_path / "hf"))
    one = {n: embedded.losses(classified.built(encoder, files[n], str(tmp_path / n), max_steps=3)) for n in names}
    two = both.result()
    for name in names:
        assert two[name] == pytest.approx(one[name], rel=1e-5), name


def test_an_adapter_trains_the_head_too_and_is_merged(encoder, files, tmp_path):
    """The base has no pooler: the one that was drawn isn't in the merged model unless it was saved with the adapter."""
    import torch
    from transformers import AutoModel

    from lib.generation.classifier import Classifier

    AutoModel.from_pretrained(encoder, add_pooling_layer=False).save_pretrained(tmp_path / "base")
    copy_tokenizer(encoder, tmp_path / "base")
    more = ["--model.adapter", "lora", "--model.peft.lora_alpha", "64"]
    trainer = classified.built(str(tmp_path / "base"), files["pairs"], str(tmp_path / "trained"), *more, dropout=0)
    trained = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert {n for n in trained if "lora" not in n} and any("pooler" in n for n in trained)
    trainer.train()
    moved = dict(trainer.model.named_parameters())
    assert [n for n, w in trained.items() if torch.equal(w, moved[n])] == []
    argv = [*classified.options(str(tmp_path / "base"), files["pairs"], str(tmp_path), dropout=0), *more]
    folder = exported(trainer, argv, tmp_path / "made")
    texts = ["a short one", "a text with several more words in it"]
    found = Classifier(folder, torch.float32, "cpu")._logits(texts, [None, "b"])
    assert found == [pytest.approx(row, abs=1e-5) for row in logits(trainer, texts, [None, "b"])]


def copy_tokenizer(source: str, target) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(source).save_pretrained(target)


def test_a_decoder_reads_the_last_token_and_separates_pairs(tiny_model, files, tmp_path):
    import torch

    from lib.generation.classifier import Classifier
    from lib.models import text_pairs

    trainer = classified.built(tiny_model, files["pairs"], str(tmp_path / "trained"), dropout=0)
    trainer.train()
    argv = classified.options(tiny_model, files["pairs"], str(tmp_path), dropout=0)
    folder = exported(trainer, argv, tmp_path / "made")
    texts, seconds = ["a short one", "a text with several more words in it"], ["b", None]
    model = Classifier(folder, torch.float32, "cpu")
    assert model._logits(texts, seconds) == [pytest.approx(row, abs=1e-5) for row in logits(trainer, texts, seconds)]
    read = text_pairs.tokens(model.tokenizer, "one", "two")["input_ids"]
    assert model.tokenizer.decode(read) == "one\ntwo"


@pytest.mark.parametrize("kind", ["masked_lm", "discriminator"])
def test_pretrained_models_keep_their_layers(kind, tiny_model, files, tmp_path, capsys):
    """Only the head, and the pooler that BERT's masked language model lacks, are drawn."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, ElectraConfig, ElectraForPreTraining

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    of = {"masked_lm": (BertForMaskedLM, BertConfig), "discriminator": (ElectraForPreTraining, ElectraConfig)}[kind]
    made = of[0](of[1](vocab_size=1024, max_position_embeddings=64, **shape))
    made.save_pretrained(tmp_path / "base")
    copy_tokenizer(tiny_model, tmp_path / "base")
    trainer = classified.built(str(tmp_path / "base"), files["pairs"], str(tmp_path / "trained"), max_steps=2)
    own, theirs = trainer.model.base_model.state_dict(), made.base_model.state_dict()
    assert theirs and all(torch.equal(w, own[n]) for n, w in theirs.items())
    new = {"masked_lm": "bert.pooler.dense, classifier", "discriminator": "classifier.dense, classifier.out_proj"}[kind]
    assert f"drawn with train.seed, since the base has none: {new}\n" in capsys.readouterr().out
    trainer.train()


def test_a_classifier_keeps_its_head_if_the_classes_are_the_same(encoder, files, tmp_path):
    import torch

    first = classified.built(encoder, files["pairs"], str(tmp_path / "first"), max_steps=2)
    first.train()
    folder = exported(first, classified.options(encoder, files["pairs"], str(tmp_path)), tmp_path / "made")
    head = first.model.classifier.weight
    again = classified.built(folder, files["pairs"], str(tmp_path / "again"))
    other = classified.built(folder, files["classes"], str(tmp_path / "other"))  # as many classes of other names
    assert torch.equal(again.model.classifier.weight, head) and not torch.equal(other.model.classifier.weight, head)
    layer = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(other.model.get_parameter(layer), first.model.get_parameter(layer))
    with pytest.raises(ValueError, match=r"model.adapter: .* is a classifier of other classes"):
        classified.built(folder, files["classes"], str(tmp_path / "lora"), "--model.adapter", "lora", dropout=0)


REFUSED = [
    (["--model.quantization", "4bit", "--model.adapter", "lora"], "model.quantization: jobs/classify.py trains unquantised"),
    (["--model.chat_template", "x.jinja"], "model.chat_template: texts are read as they are"),
    (["--scale.workers", "2", "--scale.strategy", "zero2"], "scale.strategy: zero2 hasn't been tried"),
    (["--train.gradient_checkpointing", "true"], "train.gradient_checkpointing: computes a layer twice"),
    (["--train.max_length", "8"], "train.max_length: 8 tokens are too few for"),
    (["--train.dropout", "1"], "train.dropout: must be at least 0 and below 1"),
    (["--model.adapter", "prompt"], "model.adapter: prompt trains with jobs/sft.py only"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "said"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_wrong_combinations_are_refused_before_anything_starts(argv, said, encoder, files, tmp_path):
    with pytest.raises(UsageError) as e:
        stages.planned("classify", [*classified.options(encoder, files["pairs"], str(tmp_path)), *argv])
    assert said in str(e.value) and not (tmp_path / "run").exists()


LABELS = [
    (["same"] * 30, [], "data.source: all 30 training rows have the label same"),
    ([f"row {n}" for n in range(1001)], [], "data.source: the training rows have 1,001 different labels, such as row 0, row 1, row 10; 1,000"),
    (["a", "b"] * 9, ["a", "c"], "data.heldout: 1 held-out rows have labels that no training row has: c."),
]  # fmt: skip


@pytest.mark.parametrize(("train", "held", "said"), LABELS, ids=["one", "many", "unknown"])
def test_labels_that_cannot_be_learnt_are_refused(train, held, said, encoder, tmp_path):
    for name, labels in (("train", train), ("held", held)):
        rows = [{"sentence": f"{name} {n}", "label": label} for n, label in enumerate(labels)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [*classified.options(encoder, str(tmp_path / "train.jsonl"), str(tmp_path)), "--data.heldout_fraction", "0"]
    with pytest.raises(UsageError) as e:
        stages.planned("classify", argv + ["--data.heldout", str(tmp_path / "held.jsonl")] * bool(held))
    assert said in str(e.value)


def test_the_plan_prints_the_classes_with_their_counts(encoder, files, tmp_path):
    plan = stages.planned("classify", classified.options(encoder, files["classes"], str(tmp_path)))
    counts = plan.check.classes
    assert [*plan.check.class_names()] == ["0", "1", "2"] and sum(counts.values()) == plan.check.rows
    said = "\n".join(text for _, text in plan.lines())
    assert f"3 classes: 0 ({counts['0']}), 1 ({counts['1']}), 2 ({counts['2']})" in said
    assert plan.check.summary()["classes"] == counts
    scores = stages.planned("classify", classified.options(encoder, files["scores"], str(tmp_path)))
    assert "scores from 0 to 5" in "\n".join(text for _, text in scores.lines())
