"""Trains to the end of a second epoch as one of two workers, then again from a checkpoint in the middle of that epoch.

RANK=0 WORLD_SIZE=2 … python -m tests.methods.resumed FOLDER TEXTS ENCODER BASE     prints {stage: [losses, losses of the resumed run]}
"""

import json
import sys
from pathlib import Path

from tests.methods import as_worker, embedded, pretrained, rewarded

if __name__ == "__main__":
    where, texts, encoder, base = sys.argv[1:]
    Path(where).mkdir(exist_ok=True)
    keys = {"workers": as_worker.workers(), "save_steps": 4}
    simcse = embedded.rows(Path(where))["simcse"]
    of = {
        "mlm": lambda folder: pretrained.built("mlm", texts, folder, **keys),
        "simcse": lambda folder: embedded.built("simcse", encoder, simcse, folder, **keys),
        "grpo": lambda folder: rewarded.built(base, folder, **keys),
    }
    found = {}
    for name, build in of.items():
        whole, again = build(f"{where}/{name}"), build(f"{where}/{name}-again")
        whole.train()
        again.train(resume_from_checkpoint=f"{where}/{name}/checkpoint-4")
        assert whole.state.epoch == 2
        found[name] = [rewarded.logged(trainer, "loss") for trainer in (whole, again)]
    print(json.dumps(found))
