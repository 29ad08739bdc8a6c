"""On-policy distillation: the student answers some batches while it trains, and the teacher scores these answers, so the student
learns to recover from its own mistakes.

A share λ of the batches is on-policy (Agarwal et al. 2024, https://arxiv.org/abs/2306.13649, algorithm 1). Which ones, and the
sampled answers, depend only on the seed, the step and the batch, so a resumed run samples what an uninterrupted one does. As in
the paper, no gradient flows through the sampling.
"""

from __future__ import annotations

import hashlib

from lib.methods.distillation.teacher import unpadded


def _number(args, step: int, batch: dict) -> int:
    """Returns a pseudo-random number below 2⁶³."""
    digest = hashlib.sha256(f"{args.seed} {step} {batch['input_ids'].tolist()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def drawn(args, step: int, batch: dict) -> bool:
    """Whether the student answers this batch."""
    return _number(args, step, batch) / 2**63 < args.on_policy


def answered(trainer, model, batch: dict) -> dict:
    """Returns the batch with the data's answers replaced by the student's, sampled at temperature 1 and labelled in full."""
    import torch
    from transformers import GenerationConfig

    from lib.generation.batching import left_pad

    args, device = trainer.args, batch["input_ids"].device
    tokenizer, student = trainer.processing_class, trainer.accelerator.unwrap_model(model)
    prompts = [
        ids[: next(i for i, label in enumerate(labels) if label != -100)]
        for ids, labels in unpadded(batch)
        if any(label != -100 for label in labels)
    ]
    ids_BT, mask_BT = left_pad(prompts, tokenizer.pad_token_id, device)
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=args.answer_tokens, use_cache=True,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    was = student.training
    student.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_number(args, trainer.state.global_step, batch))
        out_BT = student.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=config)
    student.train(was)
    rows = []
    for prompt, answer in zip(prompts, out_BT[:, ids_BT.shape[1] :].tolist(), strict=True):
        end = next((i + 1 for i, t in enumerate(answer) if t == tokenizer.eos_token_id), len(answer))
        rows.append({"input_ids": prompt + answer[:end], "labels": [-100] * len(prompt) + answer[:end]})
    return {name: value.to(device) for name, value in trainer.collate(rows).items()}
