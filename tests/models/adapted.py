"""A trainer with an adapter, as a worker makes it."""

from pathlib import Path

from lib.config.job import Data, Job, Model, Scale
from lib.models import load, merging
from lib.stage.training_arguments import arguments
from lib.stage.worker import save_work
from tests import stages


def adapted(stage: str, model: Model, source: str, folder: Path, train: dict, micro_batch: int = 4):
    """Returns the trainer of a job in float32 with batches of 4 rows, the first 8 of `source`; train: keys beside max_length."""
    scale = Scale(global_batch=4, micro_batch=micro_batch, precision="fp32")
    job = Job("unused", stage, model, Data(source, limit=8, heldout_fraction=0), {"max_length": 100} | train, scale)
    args, _ = arguments(job, stages.stage(stage).config, 1, str(folder))
    made = stages.built(job, args)
    load.prepare_adapter(made, model.adapter)
    merging.check(made.model)
    save_work(made, "ddp")
    return made
