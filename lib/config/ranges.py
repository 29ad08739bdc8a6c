"""Valid numbers and words of keys whose type alone is too permissive.

TRL, transformers and PEFT accept most invalid values silently, or fail on the workers minutes later.
"""

from __future__ import annotations

from lib.errors import nearest

RANGES = {
    "train.learning_rate": "(0, inf)",
    "train.adam_beta1": "[0, 1)",
    "train.adam_beta2": "[0, 1)",
    "train.max_steps": "[-1, 1e10]",
    "train.num_train_epochs": "[0, 1e6]",
    "train.logging_steps": "(0, inf)",
    "train.save_steps": "(0, inf)",
    "train.eval_steps": "(0, inf)",
    "train.save_total_limit": "[1, inf)",
    "train.seed": "[0, 4294967295]",  # numpy's
    "train.data_seed": "[0, 4294967295]",
    "train.max_length": "[2, 1e9]",  # a token to learn and one before it
    "train.label_smoothing_factor": "[0, 1)",
    "train.label_smoothing": "[0, 0.5)",
    "train.beta": "(0, inf)",
    "train.discopop_tau": "(0, inf)",
    "train.ld_alpha": "[0, 1]",
    "train.f_alpha_divergence_coef": "(-inf, inf)",
    "train.ref_model_mixup_alpha": "[0, 1]",
    "train.ref_model_sync_steps": "[1, inf)",
    "train.precompute_ref_batch_size": "[1, inf)",
    "train.torch_empty_cache_steps": "[1, inf)",
    "train.eval_accumulation_steps": "[1, inf)",
    "train.dataloader_prefetch_factor": "[1, inf)",
    "train.dataset_num_proc": "[1, inf)",
    "train.pad_to_multiple_of": "[1, inf)",
    "train.ddp_bucket_cap_mb": "[1, inf)",
    "train.ddp_timeout": "[1, inf)",
    "train.local_rank": "[-1, inf)",
    "train.temperature": "(0, inf)",
    "train.matryoshka_dims": "[1, inf)",
    "train.num_negatives": "[1, 1000]",
    "train.relative_margin": "[0, 1]",
    "train.dropout": "[0, 1)",
    "train.mlm_probability": "(0, 1)",
    "train.generator_size": "(0, 1]",
    "train.noise_density": "(0, 1)",
    "train.mean_noise_span_length": "[1, inf)",
    "model.vocab_size": "[512, 1000000]",  # 256 bytes, special tokens, and some to merge
    "model.peft.r": "[1, 65536]",
    "model.peft.init_r": "[1, 65536]",
    "model.peft.target_r": "[1, 65536]",
    "model.peft.deltaT": "[1, inf)",
    "model.peft.beta1": "(0, 1)",
    "model.peft.beta2": "(0, 1)",
    "model.peft.lora_alpha": "(0, inf)",  # 0 would train nothing
    "model.peft.lora_dropout": "[0, 1)",
    "model.peft.rank_pattern": "[1, 65536]",
    "model.peft.alpha_pattern": "(0, inf)",
    "model.peft.layers_to_transform": "[0, inf)",
    "model.peft.qalora_group_size": "[1, inf)",
    "model.peft.num_virtual_tokens": "[1, 65536]",
    "model.peft.encoder_hidden_size": "[1, inf)",
    "model.peft.encoder_num_layers": "[1, inf)",
    "model.peft.encoder_dropout": "[0, 1)",
    "model.peft.scaling": "(0, inf)",
    "model.peft.alpha": "(0, inf)",
    "model.peft.rank_dropout": "[0, 1)",
    "model.peft.module_dropout": "[0, 1)",
    "model.peft.vera_dropout": "[0, 1)",
    "model.peft.miss_dropout": "[0, 1)",
    "model.peft.decompose_factor": "[-1, inf)",  # -1: chosen by PEFT
    "schedule.learning_rate": "(0, inf)",
    "schedule.weight_decay": "(0, inf)",  # groups of parameters without decay are recognised by 0
    "data.heldout_fraction": "[0, 1]",
    "data.limit": "[1, inf)",
    "data.heldout_limit": "[1, inf)",
    "scale.workers": "[1, 100000]",
    "scale.min_workers": "[1, inf)",
    "scale.global_batch": "[1, inf)",
    "scale.micro_batch": "[1, inf)",
    "scale.cpus_per_worker": "[1, inf)",
    "scale.max_failures": "[-1, inf)",
    "rollouts.batch": "[1, inf)",
    "eval.limit": "[1, inf)",
    "eval.max_new_tokens": "[1, 1e6]",
    # of jobs/eval.py and jobs/quantize.py
    "limit": "[1, inf)",
    "max_new_tokens": "[1, 1e6]",
    "workers": "[1, inf)",
    "seed": "[0, 4294967295]",
    "accuracy_floor": "[0, 1]",
    "kl_ceiling": "(0, inf)",
    "gate": "(-inf, inf)",
    "judge.max_tokens": "(0, inf)",
    "judge.timeout_s": "(0, inf)",
    "judge.at_once": "(0, inf)",
}
"""{key: interval of its number, or of each number in its list or dictionary}. Brackets include the end, parentheses exclude it. Numbers of
other keys: [0, inf)."""

SHARES = ("train.logging_steps", "train.save_steps", "train.eval_steps", "train.warmup_steps")
"""Keys whose value is a share of all steps if below 1, otherwise a number of steps."""

WORDS = {
    "train.packing_strategy": ("bfd", "bfd_split", "wrapped"),
    "train.truncation_mode": ("keep_start", "keep_end"),
    "train.f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    "train.train_sampling_strategy": ("random", "sequential", "group_by_length", "batch_rebalance"),
    "train.include_num_input_tokens_seen": ("all", "non_padding", "no", True, False),
    "train.log_level": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "train.log_level_replica": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "train.torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "train.dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
}
"""Values of keys whose type is any text. tests/stage/test_limits.py compares them with the installed libraries."""


def values(tree: dict, prefix: str = "") -> list[str]:
    """Returns the problems in a job's keys (nested sections): numbers outside RANGES, words outside WORDS, blank addresses."""
    out = []
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key in (
            "model",
            "model.peft",
            "data",
            "train",
            "scale",
            "schedule",
            "rollouts",
            "eval",
            "judge",
            "lm_eval",
        ):
            out += values(value, f"{key}.")
        elif isinstance(value, str) and not value.strip() and (key == "run" or key.startswith(("model.", "data."))):
            out.append(f"{key}: is empty. Leave the key out, or give it a value.")
        elif key in WORDS and value not in (None, *WORDS[key]):
            known = ", ".join(str(w) for w in WORDS[key])
            out.append(
                f"{key}: there is no {value}. Known: {known}.{nearest(str(value), [w for w in WORDS[key] if isinstance(w, str)])}"
            )
        else:
            out += [f"{key}: {p}" for p in dict.fromkeys(_number(key, x, value) for x in _numbers(value)) if p]
    return out


def _numbers(value: object) -> list[int | float]:
    if isinstance(value, dict | list | tuple):
        return [x for v in (value.values() if isinstance(value, dict) else value) for x in _numbers(v)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _number(key: str, x: int | float, value: object) -> str | None:
    """Returns what is wrong with the number `x` in a key's value; None if nothing is."""
    if not abs(x) < 2**63:  # also true for NaN
        return f"must be a number of less than 20 digits, is {x}."
    bounds = RANGES.get(key, "(-inf, inf)" if isinstance(value, dict) else "[0, inf)")
    left, right = bounds[0], bounds[-1]
    low, high = bounds[1:-1].split(", ")
    fits = (x >= float(low) if left == "[" else x > float(low)) and (
        x <= float(high) if right == "]" else x < float(high)
    )
    if not fits:
        words = [f"{'at least' if left == '[' else 'above'} {low}"] if low != "-inf" else []
        words += [f"{'at most' if right == ']' else 'below'} {high}"] if high != "inf" else []
        return f"must be {' and '.join(words)}, is {x}."
    if key in SHARES and x > 1 and x != int(x):
        return f"must be a whole number of steps, or a share of all steps below 1, is {x}."
    return None
