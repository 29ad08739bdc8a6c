"""Contrastive training: losses on hand-written vectors; resume, micro-batches and workers change nothing; the model is what was trained."""

import json
import math

import numpy as np
import pytest

from lib.errors import UsageError
from lib.methods.embedding import mining
from lib.run import Run
from lib.stage.training_arguments import arguments
from tests import stages
from tests.methods import embedded
from tests.methods.as_worker import Two


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    return embedded.rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def encoder(tiny_model, tmp_path_factory) -> str:
    return embedded.base(tiny_model, tmp_path_factory.mktemp("encoder"))


def weights(trainer) -> dict:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def test_losses_of_hand_written_vectors():
    """Similarities of two anchors to the positives: 1 and 0.6, 0 and 0.8; to their negatives: 0, −1 and 1, 0."""
    import torch

    from lib.methods.embedding.losses import InfoNce, Triplet

    columns = [[[1.0, 0], [0, 1]], [[1.0, 0], [0.6, 0.8]], [[0, 1.0], [-1, 0]]]
    nce = InfoNce(torch.nn.Sequential(torch.nn.Identity()), scale=2, mini_batch_size=1)

    def of(loss, n: int):
        reps = [
            [torch.tensor(v, dtype=torch.float).view(1, 2).requires_grad_() for v in column] for column in columns[:n]
        ]
        return loss.calculate_loss(reps, with_backward=True).item(), [r.grad for r in reps[0]]

    first = math.log(1 + math.exp(1.2 - 2)), math.log(1 + math.exp(-1.6))
    assert of(nce, 2)[0] == pytest.approx(sum(first) / 2) == pytest.approx(0.27751, abs=5e-5)
    second = (
        math.log(1 + math.exp(-0.8) + math.exp(-2) + math.exp(-4)),
        math.log(1 + math.exp(-1.6) + math.exp(0.4) + math.exp(-1.6)),
    )
    assert of(nce, 3)[0] == pytest.approx(sum(second) / 2)
    loss, gradients = of(Triplet(torch.nn.Identity(), 0.9, 1), 3)  # 0 − 1 + 0.9 < 0, and 0 − 0.8 + 0.9
    assert loss == pytest.approx(0.05)
    assert not gradients[0].any() and gradients[1].any()


def test_dropout_of_a_row_depends_on_its_key_and_place_alone():
    import torch

    from lib.methods.dropout import RowDropout, kept, key

    keys = torch.tensor([key(0, row, 0) for row in range(64)])
    assert kept(keys, 1, torch.Size([64, 12, 40]), 0.1).float().mean() == pytest.approx(0.9, abs=0.005)
    assert kept(keys, 1, torch.Size([64, 4, 12, 12]), 0.5).float().mean() == pytest.approx(0.5, abs=0.01)
    wide, narrow = (kept(keys, 3, torch.Size([64, 4, t, t]), 0.5) for t in (12, 7))
    assert torch.equal(wide[:, :, :7, :7], narrow)
    assert torch.equal(wide[5:7], kept(keys[5:7], 3, torch.Size([2, 4, 12, 12]), 0.5))
    for other in (
        kept(keys, 4, wide.shape, 0.5),
        wide.roll(1, 0),
        wide.roll(1, 1),
        wide.roll(1, 2),
        wide.roll(1, 3),
    ):
        assert (wide == other).float().mean() == pytest.approx(0.5, abs=0.03)
    x = torch.ones(64, 12, 40)
    with RowDropout(keys):
        dropped = torch.nn.Dropout(0.2)(x)
        again = torch.nn.functional.dropout(x, 0.2)
    assert sorted(set(dropped.flatten().tolist())) == [0, 1.25] and not torch.equal(dropped, again)
    assert torch.equal(torch.nn.Dropout(0.2).eval()(x), x)


@pytest.mark.parametrize("loss", ["mnrl", "triplet", "simcse"])
def test_a_resumed_run_and_the_saved_model_are_what_was_trained(loss, encoder, files, tmp_path):
    """Saved in the second epoch, whose dropout isn't that of the first."""
    import torch
    from sentence_transformers import SentenceTransformer

    from lib.generation.embedder import Embedder
    from lib.models import export
    from lib.run import Run

    more = {"matryoshka_dims": "[32,8]"} if loss == "mnrl" else {}
    whole = embedded.built(loss, encoder, files[loss], str(tmp_path / "whole"), save_steps=4, **more)
    before = weights(whole)
    of_whole = embedded.losses(whole)
    assert of_whole[-2] < of_whole[0] and whole.state.num_input_tokens_seen > 0
    resumed = embedded.built(loss, encoder, files[loss], str(tmp_path / "resumed"), save_steps=4, **more)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-4"))
    after = weights(resumed)
    assert all(torch.equal(w, after[name]) for name, w in weights(whole).items())
    assert not any(torch.equal(w, after[name]) for name, w in before.items() if "key.bias" not in name)

    job = stages.planned("embed", embedded.options(loss, encoder, files[loss], str(tmp_path), **more)).job
    export.export(whole, job.model, tmp_path / "made")
    texts = ["a short one", "a text with several more words in it", "x"]
    batch = whole.processing_class(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        trained = whole.model.eval()({**batch})["sentence_embedding"].numpy()
    folder = str(tmp_path / "made/model")
    assert np.abs(SentenceTransformer(folder).encode(texts) - trained).max() < 1e-6
    assert np.abs(np.array(Embedder(folder, torch.float32, "cpu").embed(texts)) - trained).max() < 1e-6
    assert not Run(folder).fs.exists(f"{folder}/README.md")


@pytest.mark.parametrize("loss", ["mnrl", "simcse"])
def test_micro_batches_change_no_loss(loss, encoder, files, tmp_path):
    """With dropout, too."""
    found = [
        embedded.losses(
            embedded.built(loss, encoder, files[loss], str(tmp_path / str(micro)), micro=micro, max_steps=3)
        )
        for micro in (8, 1)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.slow
def test_two_workers_take_the_steps_of_one(encoder, files, tmp_path):
    (tmp_path / "rows").mkdir()
    files = files | {"mined": embedded.pairs(tmp_path / "rows")}
    names = [*files]
    where = [str(tmp_path / "two"), encoder, str(tmp_path / "rows")]
    both = Two("tests.methods.embedded", *where, *names, cache=str(tmp_path / "hf"))
    one = {
        name: embedded.losses(embedded.built(name, encoder, files[name], str(tmp_path / name), max_steps=3))
        for name in names
    }
    two = both.result()
    for name in names:
        assert two[name] == pytest.approx(one[name], rel=1e-5), name
    of_one, of_two = (Run(f"{tmp_path}/{folder}mined/run").read_text(mining.FILE) for folder in ("", "two/"))
    assert of_one == of_two


@pytest.mark.parametrize("pooling", ["last", "cls"])
def test_a_decoder_is_pooled_by_the_settings_in_its_folder(pooling, tiny_model, files, tmp_path):
    import torch
    from sentence_transformers import SentenceTransformer

    from lib.generation.embedder import Embedder

    trainer = embedded.built("mnrl", tiny_model, files["mnrl"], str(tmp_path / "run"), pooling=pooling)
    trainer.save_model(str(tmp_path / "model"))
    trainer.processing_class.save_pretrained(str(tmp_path / "model"))
    texts = ["a short one", "a text with several more words in it"]
    both = SentenceTransformer(str(tmp_path / "model")).encode(texts)
    embedder = Embedder(str(tmp_path / "model"), torch.float32, "cpu")
    assert embedder.pooling == pooling and np.abs(np.array(embedder.embed(texts)) - both).max() < 1e-6
    settings = tmp_path / "model/config_sentence_transformers.json"
    settings.write_text(
        json.dumps(json.loads(settings.read_text()) | {"prompts": {"query": "what about ", "document": ""}})
    )
    asked = SentenceTransformer(str(tmp_path / "model")).encode_query(texts)
    assert np.abs(np.array(embedder.embed(texts, ["query", "query"])) - asked).max() < 1e-6 < np.abs(asked - both).max()


REFUSED = [
    ("mnrl", ["--model.adapter", "lora"], "model.adapter: jobs/embed.py trains all weights"),
    ("mnrl", ["--model.chat_template", "x.jinja"], "model.chat_template: texts are embedded as they are"),
    ("mnrl", ["--train.gradient_checkpointing", "true"], "train.gradient_checkpointing: one micro-batch"),
    ("mnrl", ["--scale.workers", "2", "--scale.strategy", "zero2"], "scale.strategy: zero2 can't repeat"),
    ("mnrl", ["--train.dropout", "1"], "train.dropout: must be at least 0 and below 1"),
    ("mnrl", ["--train.matryoshka_dims", "[8,8]"], "train.matryoshka_dims: must be different numbers"),
    ("mnrl", ["--train.loss", "simcse"], "train.loss: simcse learns from plain texts, and data.source has contrastive rows"),
    ("simcse", ["--train.dropout", "0"], "train.dropout: simcse compares a text with itself"),
    ("simcse", ["--train.loss", "triplet"], "train.loss: triplet needs pairs of texts, and data.source has plain texts"),
    ("mnrl", ["--train.max_length", "16"], "train.max_length: 16 tokens are too few for"),
    ("mnrl", ["--train.loss", "infonce"], "train.loss: must be one of"),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "argv", "said"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_wrong_combinations_are_refused_before_anything_starts(loss, argv, said, encoder, files, tmp_path):
    with pytest.raises(UsageError) as e:
        stages.planned("embed", [*embedded.options(loss, encoder, files[loss], str(tmp_path)), *argv])
    assert said in str(e.value) and not (tmp_path / "run").exists()


def test_triplet_needs_a_negative_in_each_row(encoder, tmp_path):
    rows = [{"anchor": f"row {n}", "positive": f"{n}!", "negatives": ["x"] * (n % 3)} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = embedded.options("triplet", encoder, str(tmp_path / "rows.jsonl"), str(tmp_path))
    with pytest.raises(UsageError, match=r"train.loss: triplet needs a negative in each row, and some have none"):
        stages.planned("embed", argv)
    plan = stages.planned("embed", [*argv, "--train.loss", "mnrl"])
    assert "0 to 2 negatives a row, of which the first 0 are used" in "\n".join(text for _, text in plan.lines())


def test_rows_that_share_a_text_are_counted(encoder, tmp_path, capsys):
    """Two rows share an anchor, and three a positive."""
    rows = [{"anchor": f"row {n // 2 if n < 2 else n}", "positive": f"{n}!" if n > 4 else "same"} for n in range(9)]
    rows = [row | {"positive": f"{n}!"} if n < 2 else row for n, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = embedded.options("mnrl", encoder, str(tmp_path / "rows.jsonl"), str(tmp_path))
    job = stages.planned("embed", [*argv, "--data.heldout_fraction", "0"]).job
    stages.built(job, arguments(job, stages.stage("embed").config, 1, str(tmp_path))[0])
    assert "5 of 9 rows share a text with another row" in capsys.readouterr().out
