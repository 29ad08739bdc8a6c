"""Prints what nvidia-smi and torch report about this machine's GPUs, as JSON. Sent to a node by ssh_runner.py and judged by driver.py.

{"simulated", "smi_error"? | "driver": "580.65.06", "cuda": 13.0, "gpus": 1, "torch": "2.13.0", "torch_cuda": "13.0" or null,
"torch_error": why torch can't compute on a GPU, or null}
"""

import json
import os
import re
import subprocess


def driver(output: str) -> dict:
    """Returns {"driver", "cuda"} from the output of nvidia-smi; {} if it has no versions."""
    found = re.search(r"Driver Version: *([\d.]+)", output), re.search(r"CUDA (?:\w+ )?Version: *(\d+\.\d+)", output)
    return {"driver": found[0][1], "cuda": float(found[1][1])} if all(found) else {}


def report() -> dict:
    found = {"simulated": "SHOESTRING_SIMULATED" in os.environ}
    try:
        head = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=120)
        if not (told := driver(head.stdout)):
            return found | {
                "smi_error": (head.stdout + head.stderr).strip()[-300:] or f"it ended with {head.returncode}"
            }
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=120).stdout
    except (OSError, subprocess.TimeoutExpired) as e:
        return found | {"smi_error": str(e)}
    found |= told | {"gpus": len(re.findall(r"^GPU \d+:", listed, re.M))}
    import torch

    found |= {"torch": torch.__version__, "torch_cuda": torch.version.cuda, "torch_error": None}
    try:
        for i in range(found["gpus"]):  # fails if this torch has no kernels for a GPU that is too old
            torch.ones(1, device=f"cuda:{i}").add_(1).item()
    except (RuntimeError, AssertionError) as e:  # AssertionError: a torch without CUDA
        found["torch_error"] = str(e).strip().splitlines()[0]
    return found


if __name__ == "__main__":
    print(json.dumps(report()))
