"""The Ray jobs of the check: the LoRA SFT for which the box is rented, and the tensor exchange between two boxes."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from cluster.check.pipeline import Failed
from cluster.check.rented import REPO, Asked
from cluster.head import DASHBOARD
from cluster.node.key_folder import Folder

STEPS = 20
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Jobs:
    """Submits the jobs. Their working directory has the code that `--working-dir .` would send, and a tiny model, so no hub is needed."""

    def __init__(self, folder: Folder, asked: Asked):
        self.asked, self.code = asked, folder.path / "code"
        for package in ("jobs", "lib"):
            shutil.copytree(REPO / package, self.code / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(Path(__file__).with_name("exchange.py"), self.code / "exchange.py")
        # In parallel with the head's start, since importing torch takes seconds.
        command = [sys.executable, "-m", "cluster.check.tiny_model", str(self.code / "model")]
        self._model = subprocess.Popen(
            command, cwd=REPO, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.place = f"{asked.store.rstrip('/')}/{folder.path.name}" if asked.store else None

    def close(self) -> None:
        if self._model.poll() is None:
            self._model.kill()

    def train(self) -> str:
        """Submits the SFT and returns its id. Its driver also runs on the box, which shares no folder with the head unless
        --store is set."""
        _, errors = self._model.communicate()
        if self._model.returncode:
            raise Failed(f"the tiny model could not be made: {errors.strip().splitlines()[-1]}")
        options = {
            "run": f"{self.place}/run" if self.place else "/tmp/shoestring/check/run", "model.base": "model", "model.adapter": "lora",
            "model.peft.r": 8, "model.peft.target_modules": "all-linear", "data.limit": 200, "data.heldout_limit": 4,
            "train.max_steps": STEPS, "train.logging_steps": 5, "train.learning_rate": 0.02, "train.lr_scheduler_type": "constant",
            "scale.device": self.asked.device, "scale.global_batch": 4, "scale.micro_batch": 4,
        }  # fmt: skip
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        return self._submit(shlex.join(["python", "jobs/sft.py", *words]), on_a_box=True)

    def exchange(self) -> str:
        return self._submit(f"python exchange.py {self.asked.device}")

    def _submit(self, entrypoint: str, on_a_box: bool = False) -> str:
        # The model is in the uploaded folder; SHOESTRING_HOME makes its relative path resolve there (lib/run.py).
        environment = {"HF_HUB_OFFLINE": "1", "SHOESTRING_HOME": "."} | (store_environment() if self.place else {})
        return self._client().submit_job(
            entrypoint=entrypoint,
            runtime_env={"working_dir": str(self.code), "env_vars": environment},
            entrypoint_num_cpus=1 if on_a_box else None,  # the head has no CPUs
        )

    def ended(self, id: str) -> str | None:
        """Returns the job's final status, or None while it is running."""
        try:
            status = self._client().get_job_status(id).value
        except (OSError, RuntimeError):  # a busy head answers the next time; the caller notices a dead one
            return None
        return status if status in ENDED else None

    def said(self, id: str) -> str:
        return self._client().get_job_logs(id) or ""

    def trained(self, id: str) -> str:
        """Returns a summary of the finished SFT. Raises Failed if it failed or its loss didn't fall."""
        if self.ended(id) != "SUCCEEDED":
            raise Failed(self.why(id))
        loss = re.search(r"loss\s+([\d.]+) → ([\d.]+)", self.said(id))
        if not loss:
            raise Failed("the job succeeded, but its log has no loss")
        if not float(loss[2]) < float(loss[1]):
            raise Failed(f"its loss doesn't fall: {loss[1]} → {loss[2]}")
        return f"{STEPS} steps on the {self.asked.device.upper()}, loss {loss[1]} → {loss[2]}"

    def exchanged(self, id: str) -> str:
        if self.ended(id) != "SUCCEEDED" or not (found := re.search(r"EXCHANGED (\{.*\})", self.said(id))):
            raise Failed(self.why(id))
        r = json.loads(found[1])
        return f"{r['backend']}: {r['mb']:.0f} MB summed in {r['seconds']:.2f} s, {r['mb'] / r['seconds']:.0f} MB/s"

    def why(self, id: str) -> str:
        """Returns the last lines of the job's output, or Ray's message about it."""
        lines = [
            line.strip() for line in self.said(id).splitlines() if line.strip() and "Running entrypoint" not in line
        ]
        return " ".join(lines[-3:]) or self._client().get_job_info(id).message or "it printed nothing"

    def _client(self):
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.WARNING)  # hides its upload messages
        return JobSubmissionClient(DASHBOARD)


def joined(ip: str) -> bool:
    """Returns whether a living node has this mesh address."""
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        return any(node.state == "ALIVE" and node.node_ip == ip for node in list_nodes(address=DASHBOARD))
    except (ConnectionError, RayStateApiException):  # a busy head answers the next time
        return False


def store_environment() -> dict[str, str]:
    """Returns the variables that the store's client reads. The bucket's credentials do reach the box."""
    return {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
