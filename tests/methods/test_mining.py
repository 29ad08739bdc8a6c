"""Hard negatives: the same passages as sentence-transformers' mine_hard_negatives, the same on a resume and on two workers."""

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.estimate.workload import Work
from lib.errors import UsageError
from lib.methods.embedding import mining
from lib.run import Run
from tests import stages
from tests.methods import embedded


@pytest.fixture(scope="module")
def encoder(tiny_model, tmp_path_factory) -> str:
    return embedded.base(tiny_model, tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> str:
    return embedded.pairs(tmp_path_factory.mktemp("pairs"))


def test_passages_chosen_by_hand():
    """Similarities of the passages to the first anchor: 1, 0.8, 0.6, 0, −1; to the second, whose text is that of p0: its own is 0."""
    passages = {"p0": [1.0, 0.0], "p1": [0.8, 0.6], "p2": [0.6, 0.8], "p3": [0.0, 1.0], "p4": [-1.0, 0.0]}
    anchors, positives = ["a", "a", "p0", "b"], ["p1", "p2", "p3", "p4"]
    asked = {"a": [1.0, 0.0], "p0": [1.0, 0.0], "b": [-1.0, 0.0]}

    def chosen(count: int, margin: float | None, positives=positives) -> dict:
        vectors = np.array([*asked.values()]), np.array([*passages.values()])
        return mining.choose([*anchors, "a"], [*positives, "p0"], [*asked], [*passages], *vectors, count, margin)

    found = chosen(1, None)  # an anchor of three rows has three positives; p0 is the text of the second anchor
    assert found["rows"] == [0, 1, 2, 3, 4] and found["negatives"] == [[2], [2], [0], [2], [2]]
    found = chosen(1, 0.0)  # p1 and p2 are above p3 for p0; nothing is above p4 for b
    assert found["negatives"] == [[2], [2], [3], [2], [2]]
    assert found["counts"] == {"rows": 5, "rows_left_out": 0, "negatives": 1, "passages": 5, "too_near": 2}
    found = chosen(2, 0.05)  # p3 has 0 for a, and 0 for b: at most 0.95 · 0.6, and 0.95 · 1
    assert found["rows"] == [0, 1, 3, 4] and found["counts"]["rows_left_out"] == 1


@pytest.mark.parametrize("margin", [None, 0.001])
def test_the_passages_are_those_of_sentence_transformers(margin, encoder, pairs, tmp_path):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    rows = [json.loads(line) for line in Path(pairs).read_text().splitlines()]
    anchors, positives = ([row[side] for row in rows] for side in ("anchor", "positive"))
    model = SentenceTransformer(encoder)
    theirs = mine_hard_negatives(
        Dataset.from_dict({"anchor": anchors, "positive": positives}), model, num_negatives=2, relative_margin=margin, range_max=len(rows) - 1,
        output_format="n-tuple", verbose=False,
    )  # fmt: skip
    asked, passages = list(dict.fromkeys(anchors)), list(dict.fromkeys(positives))
    vectors = [model.encode(texts, normalize_embeddings=True) for texts in (asked, passages)]
    ours = mining.choose(anchors, positives, asked, passages, *vectors, 2, margin)
    made = {
        (anchors[row], positives[row], *(positives[n] for n in found))
        for row, found in zip(ours["rows"], ours["negatives"], strict=True)
    }
    assert made == {tuple(row.values()) for row in theirs} and len(made) > 15


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mnrl", "triplet"])
def test_a_resumed_run_has_the_same_negatives(loss, encoder, pairs, tmp_path, monkeypatch, capsys):
    import torch

    from lib import data

    given = {"hard_negatives": encoder, "num_negatives": 2, "save_steps": 4, "relative_margin": 0.0}
    whole = embedded.built(loss, encoder, pairs, str(tmp_path / "whole"), **given)
    said = capsys.readouterr().out
    embedded.losses(whole)
    resumed = embedded.built(loss, encoder, pairs, str(tmp_path / "resumed"), **given)
    resumed.train(resume_from_checkpoint=f"{tmp_path}/whole/checkpoint-4")
    after = dict(resumed.model.named_parameters())
    assert all(torch.equal(w, after[name]) for name, w in whole.model.named_parameters())

    kept = Run(f"{tmp_path}/whole/run").read_json(mining.FILE, "")
    counts = kept["train"]["counts"]
    assert f"negatives: 2 for each of {counts['rows']} train rows from 19 passages" in said
    assert ("rows have too few" in said) == any(side["counts"]["rows_left_out"] for side in kept.values())
    assert len(whole.train_dataset) >= counts["rows"] > 10 and ("heldout" in kept) == (loss == "triplet")
    anchor, positive, *negatives = whole.train_dataset[0][1]
    assert len({anchor, positive, *negatives}) == 4

    options = embedded.options(loss, encoder, pairs, str(tmp_path / "read"), **given)
    plan = stages.planned("embed", options)
    assert ("hard negatives", f"{encoder}  ({plan.identities['train.hard_negatives']})") in plan.lines()
    assert Work(plan.job, stages.stage("embed"), plan.check.rows).pairs == 4, (
        "texts of a row, for python -m cluster plan"
    )
    job = plan.job
    Run(job.run).write_json(mining.FILE, kept)
    monkeypatch.setattr(mining, "_mine", None)  # what the run keeps is read, and not looked for again
    inputs = data.load(job.data, ("contrastive", "text"))
    rows, _ = mining.mined(job, whole.args, inputs)
    assert rows[0]["negatives"] == negatives and inputs.check.summary()["mined"]["train"] == counts


@pytest.mark.parametrize(
    ("loss", "given", "said"),
    [
        ("simcse", "{encoder}", "train.hard_negatives: simcse's rows are plain texts"),
        ("mnrl", "{encoder}", "train.hard_negatives: rows of data.source have negatives already"),
        ("mnrl", "{lm}", "train.hard_negatives: {lm} is a language model. Name an embedding model"),
        ("mnrl", "./nowhere", "train.hard_negatives: there is no run or model folder"),
    ],
)
def test_what_has_no_negatives_to_find_is_refused(loss, given, said, encoder, tiny_model, tmp_path):
    source = embedded.rows(tmp_path)[loss]
    named = {"encoder": encoder, "lm": tiny_model}
    argv = [*embedded.options(loss, encoder, source, str(tmp_path)), "--train.hard_negatives", given.format(**named)]
    with pytest.raises(UsageError) as e:
        stages.planned("embed", argv)
    assert said.format(**named) in str(e.value)
