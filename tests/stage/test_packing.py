"""Packed documents don't see each other: a conversation in a full row has the logits and the loss that it has alone."""

from itertools import pairwise

import pytest

from lib.config.job import Data, Job, Model, Scale
from lib.stage.training_arguments import arguments
from lib.stage.worker import save_work
from tests import stages


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_packed_conversation_sees_only_itself(kernel, tiny_model, tmp_path):
    import torch

    job = Job(
        "unused", "sft", Model(tiny_model, attn_implementation=kernel), Data(limit=6, heldout_limit=1),
        {"packing": True, "max_length": 512}, Scale(global_batch=4, micro_batch=4, precision="fp32"),
    )  # fmt: skip
    args, _ = arguments(job, stages.stage("sft").config, 1, str(tmp_path))
    trainer = stages.built(job, args)
    save_work(trainer, "ddp")
    model, batch = trainer.model.eval(), trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    given = {k: v for k, v in batch.items() if k != "labels"}
    assert (
        "attention_mask" not in batch and len(batch["input_ids"]) == 1
    )  # rows are joined, and positions tell them apart
    starts = [*(batch["position_ids"][0] == 0).nonzero()[:, 0].tolist(), batch["input_ids"].shape[1]]
    assert len(starts) > 4
    with torch.no_grad():
        whole = model(**given).logits[0]
        for a, b in pairwise(starts):
            alone = model(batch["input_ids"][:, a:b]).logits[0]
            torch.testing.assert_close(whole[a:b], alone, atol=1e-5, rtol=1e-4)
        assert all(batch["labels"][0, a] == -100 for a in starts[:-1])  # the first token of a document follows nothing
        changed = batch["input_ids"].clone()
        changed[0, starts[1] - 2] += 1
        other = model(**given | {"input_ids": changed}).logits[0]
    assert not torch.equal(other[starts[1] - 1], whole[starts[1] - 1])
    assert torch.equal(other[starts[1] :], whole[starts[1] :])
