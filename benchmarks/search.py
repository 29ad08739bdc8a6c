"""Compares TPE with ASHA to random search: how many tokens each trains on until it reaches the same held-out loss, and what matters.

    python benchmarks/search.py [--seeds 5] [--trials 20] [--rates 1e-4 1e-1] [--seed 1000] [--random-only] [--base MODEL]
        [--set.KEY VALUE …]

For each seed, random search trains `trials` LoRA fine-tunings of the demo to their end. TPE with ASHA, which draws its own random first trials,
searches until one of its reports is at least as good as the best of those. Searches are run by `python -m tune`, one after the other. The space is the
learning rate, the LoRA rank, and a weight decay so small that it has no effect, as a control. Importance is computed from the random
trials of all seeds together. --rates is the range of learning rates; with --random-only, importance is all that is computed. Without
--base, the model is a random 2-layer Llama. Prints a table and exits with 0.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
SPACE = {
    "train.learning_rate": {"loguniform": [1e-4, 1e-1]},
    "model.peft.r": {"choice": [1, 2, 4, 8, 16, 32]},
    "train.weight_decay": {"loguniform": [1e-9, 1e-8]},
}
JOB = {
    "data.limit": 640, "data.heldout_limit": 64, "train.logging_steps": 5, "train.warmup_steps": 0,
    "scale.workers": 1, "scale.precision": "fp32",
}  # fmt: skip


def small(folder: Path) -> str:
    """Creates a random Llama, 64 wide, with a tokenizer that needs few tokens for the demo's rows. Returns its folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    sys.path.insert(0, str(ROOT))
    from lib import data
    from lib.config.job import Data

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=special, initial_alphabet=alphabet)
    rows = data.load(Data(source="demo", limit=300), ("chat",)).train
    bpe.train_from_iterator([m["content"] for row in rows for m in row["messages"]], trainer)
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    LlamaForCausalLM(LlamaConfig(vocab_size=1024, max_position_embeddings=512, **shape, **ids)).save_pretrained(folder)
    return str(folder)


def search(folder: Path, name: str, job: dict, trials: int, **keys) -> tuple[list[dict], list[dict]]:
    """Runs a search. Returns (its trials besides the start, its reports in their order)."""
    run = folder / name
    tree = {"run": str(run), "stage": "sft", "config": str(ROOT / "configs/sft.yaml"), "set": job, "space": SPACE}
    tree |= {"every": 4, "confirm": 0, "budget": {"trials": trials}} | keys
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "tune", "--config", str(folder / f"{name}.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    found = json.loads((run / "report.json").read_text())["trials"]
    return [t for t in found if t["role"] == "search"], [e for e in events if e["event"] == "reported" and e["trial"]]


def until(reports: list[dict], loss: float) -> int | None:
    """Returns the tokens of all trials until one report has at most this loss; None if none has."""
    tokens: dict[int, int] = {}
    for e in reports:
        tokens[e["trial"]] = e["row"]["tokens"]
        if e["row"]["eval_loss"] <= loss:
            return sum(tokens.values())
    return None


def importance(trials: list[dict], good: bool) -> str:
    from tune.importance import importances
    from tune.journal import Trial
    from tune.settings import Settings
    from tune.space import read

    made = [Trial(n, t["settings"], status="finished", reports=t["reports"]) for n, t in enumerate(trials)]
    keys, _ = importances(made, read(SPACE)[0], Settings(space=SPACE), "min", good=good)
    return "\n".join(f"{k.key:<20} {k.value:.0%} [{k.low:.0%}, {k.high:.0%}]" for k in keys)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--rates", type=float, nargs=2, default=SPACE["train.learning_rate"]["loguniform"])
    parser.add_argument("--seed", type=int, default=1000, help="of the first random search")
    parser.add_argument("--random-only", action="store_true")
    parser.add_argument("--base")
    options, more = parser.parse_known_args()
    given = {k.removeprefix("--set."): yaml.safe_load(v) for k, v in zip(more[::2], more[1::2], strict=True)}
    SPACE["train.learning_rate"] = {"loguniform": options.rates}
    ratios, drawn = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        job = JOB | {"model.base": options.base or small(folder / "base")} | given
        print("seed  best of random  its tokens  TPE + ASHA: tokens until as good  trials  ratio")
        for seed in range(options.seeds):
            random, reports = search(
                folder, f"random-{seed}", job, options.trials, search="random", seed=options.seed + seed
            )
            best, total = min(t["value"] for t in random), sum(t["tokens"] for t in random)
            drawn += random
            if options.random_only:
                continue
            asha = {"search": "optuna", "scheduler": "asha", "seed": seed}
            trials, reports = search(folder, f"asha-{seed}", job, 3 * options.trials, **asha)
            tokens = until(reports, best)
            # A search that doesn't reach it counts with everything that it spent.
            ratios.append((tokens or sum(t["tokens"] for t in trials)) / total)
            many = len({e["trial"] for e in reports[: _place(reports, best)]})
            print(f"{seed:>4}  {best:14.4f}  {total:10,}  {f'{tokens:,}' if tokens else 'never':>32}  {many:>6}  {ratios[-1]:.2f}", flush=True)  # fmt: skip
    if ratios:
        print(f"median ratio {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"importance over {len(drawn)} random trials:\n{importance(drawn, good=False)}")
    print(f"importance in the better half of them:\n{importance(drawn, good=True)}")


def _place(reports: list[dict], loss: float) -> int:
    """Returns the number of reports until one has at most this loss, or all."""
    return next((i for i, e in enumerate(reports, 1) if e["row"]["eval_loss"] <= loss), len(reports))


if __name__ == "__main__":
    main()
