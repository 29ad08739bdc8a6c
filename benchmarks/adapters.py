"""Fine-tunes one base with every adapter on the same rows and compares what trains, memory, speed, size and answers.

    python benchmarks/adapters.py [--only lora ia3] [--limit 200] [--folder FOLDER] [--KEY VALUE …]

Each is the job of configs/sft.yaml on seven linear layers of each block (norms for ln_tuning, PEFT's own choice for ia3, 20 vectors for
prompt, p_tuning and prefix, bottlenecks of 64 channels), with the learning rate in RATES: neither ranks nor rates were searched for. Then
one evaluation of all runs. Other options go to the jobs. A run in FOLDER that has finished is not repeated. Prints a table and exits with 0.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAYERS = "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"
RATES = {
    "none": 2e-4, "lora": 2e-3, "rslora": 1e-3, "dora": 2e-3, "pissa": 5e-4, "adalora": 3e-3, "vera": 2e-2, "loha": 5e-3, "lokr": 5e-3,
    "miss": 1e-3, "oft": 2e-3, "ia3": 3e-2, "ln_tuning": 2e-2, "parallel": 1e-2, "prompt": 1e-1, "p_tuning": 3e-3,
    "prefix": 1e-1, "houlsby": 3e-3, "pfeiffer": 3e-3,
}  # fmt: skip
FIELDS = {
    **{name: {"r": 16, "lora_alpha": 32, "target_modules": LAYERS} for name in ("lora", "rslora", "dora")},
    "pissa": {"r": 16, "lora_alpha": 16, "target_modules": LAYERS},
    "adalora": {"init_r": 24, "target_r": 16, "lora_alpha": 384, "tinit": 10, "tfinal": 10, "target_modules": LAYERS},
    "vera": {"r": 256, "target_modules": LAYERS},
    "loha": {"r": 8, "alpha": 16, "target_modules": LAYERS},
    "lokr": {"r": 8, "alpha": 16, "target_modules": LAYERS},
    "miss": {"r": 32, "target_modules": LAYERS},
    "parallel": {"r": 32, "scaling": 4},
    "prompt": {"num_virtual_tokens": 20, "prompt_tuning_init": "SAMPLE_VOCAB"},
    "p_tuning": {"num_virtual_tokens": 20},
    "prefix": {"num_virtual_tokens": 20},
    "houlsby": {"r": 64},
    "pfeiffer": {"r": 64},
    "oft": {"oft_block_size": 32, "target_modules": LAYERS},
}
"""{adapter: its model.peft}"""


def run(*command: object) -> None:
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def train(adapter: str, where: Path, options: list[str]) -> dict:
    """Trains, unless the run has finished already. Returns its numbers."""
    from cluster.estimate.anatomy import study
    from lib.config.job import Job
    from lib.run import Run

    made = Run(where)
    if not (made.is_run() and made.finished()):
        fields = [f"--model.peft.{key}={value}" for key, value in FIELDS.get(adapter, {}).items()]
        job = (ROOT / "configs/sft.yaml").read_text().splitlines()
        config = where.with_suffix(".yaml")
        config.write_text("\n".join(line for line in job if not line.strip().startswith("peft:")))
        chosen = ["--model.adapter", adapter, "--train.learning_rate", RATES[adapter], *fields]
        run("jobs/sft.py", "--config", config, *chosen, "--run", where, *options)
    said = made.provenance()
    of = study(Job.from_dict(made.job()).model, 64, False, said["precision"])
    files = [where / f"{folder}adapter/adapter_model.safetensors" for folder in ("", "model/")]
    weights = next((file for file in files if file.exists()), where / "model/model.safetensors")
    return {
        "trainable": of.trainable, "share": of.trainable / of.parameters, "memory": said["peak_memory_bytes"],
        "speed": said["tokens_per_second"], "bytes": weights.stat().st_size,
    }  # fmt: skip


def exact(folder: Path, runs: dict[str, Path], limit: int) -> dict[str, str]:
    """Returns {adapter: its share of exact answers with its interval}."""
    names = {adapter: "full" if adapter == "none" else adapter for adapter in runs}
    given = [f"--runs.{names[adapter]}={where}" for adapter, where in runs.items()]
    run("jobs/eval.py", *given, "--tasks", "demo", "--limit", limit, "--max_new_tokens", 48, "--run", folder / "eval")
    report = json.loads((folder / "eval/reports/report.json").read_text())
    found = {m["run"]: m for m in report["metrics"] if m["metric"] == "exact"}
    percent = lambda m: f"{m['value']:.0%} [{100 * m['low']:.0f}–{100 * m['high']:.0f}]"  # noqa: E731
    return {adapter: percent(found[name]) for adapter, name in names.items()}


def main() -> None:
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=None)
    asked, options = parser.parse_known_args()
    folder = asked.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    runs = {adapter: folder.absolute() / adapter for adapter in asked.only}
    numbers = {}
    for adapter, where in runs.items():
        numbers[adapter] = train(adapter, where, options)
        print(f"{adapter}: {numbers[adapter]['speed']:.0f} tokens/s", file=sys.stderr, flush=True)
    answers = exact(folder.absolute(), runs, asked.limit)
    print(f"| `model.adapter` | weights that train | memory | tokens/s | on disk | exact answers (n={asked.limit}) |")
    print("|---|---:|---:|---:|---:|---|")
    for adapter, n in numbers.items():
        size = f"{n['bytes'] / 1e6:.1f} MB"
        share = f"{n['trainable']:,} ({n['share']:.2%})"
        print(
            f"| `{adapter}` | {share} | {n['memory'] / 2**30:.2f} GiB | {n['speed']:.0f} | {size} | {answers[adapter]} |"
        )


if __name__ == "__main__":
    main()
