"""What nvidia-smi and torch say of this machine's GPUs, as JSON: driver.py sends this file to a box and reads what it prints.

{"simulated", "smi_error"? | "driver": "580.65.06", "cuda": 13.0, "gpus": 1, "torch": "2.13.0", "torch_cuda": "13.0" or null,
"torch_error": why a GPU can't be computed on, or null}
"""

import json
import os
import re
import subprocess

report = {"simulated": "SHOESTRING_SIMULATED" in os.environ}
try:
    head = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=120)
    driver = re.search(r"Driver Version: *([\d.]+)", head.stdout)
    cuda = re.search(r"CUDA (?:\w+ )?Version: *(\d+\.\d+)", head.stdout)
    if driver and cuda:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=120).stdout
        report |= {"driver": driver[1], "cuda": float(cuda[1]), "gpus": len(re.findall(r"^GPU \d+:", listed, re.M))}
    else:
        report["smi_error"] = (head.stdout + head.stderr).strip()[-300:] or f"it ended with {head.returncode}"
except (OSError, subprocess.TimeoutExpired) as e:
    report["smi_error"] = str(e)
if "smi_error" not in report:
    import torch

    report |= {"torch": torch.__version__, "torch_cuda": torch.version.cuda, "torch_error": None}
    try:
        for i in range(report["gpus"]):  # also where this torch has no kernels for so old a GPU
            torch.ones(1, device=f"cuda:{i}").add_(1).item()
    except (RuntimeError, AssertionError) as e:  # AssertionError: a torch without CUDA
        report["torch_error"] = str(e).strip().splitlines()[0]
print(json.dumps(report))
