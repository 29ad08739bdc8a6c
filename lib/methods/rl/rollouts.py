"""Rollouts: the answers that the model under training gives to a step's prompts.

The random numbers of an answer depend on (seed, step, prompt, number of the answer) alone. A resumed run therefore draws the same
answers, and so do several workers, up to rounding (lib/generation/transformers_generator.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from lib.data import reasoning
from lib.generation.live_generator import LiveGenerator
from lib.generation.sampling import Sampling


@dataclass(frozen=True)
class Rollout:
    prompt: list[int]
    """The ids that the model read."""
    answer: list[int]
    """The ids that it generated, with the one that ended the answer."""
    finished: bool
    """The model ended the answer itself, before its longest length."""
    text: str
    """The answer without special tokens."""

    @property
    def final(self) -> str:
        """What follows the answer's reasoning, which is what tasks score."""
        return reasoning.answer(self.text)


class Rollouts:
    """Draws answers with `sampling`, whose n and seed are replaced. model: the model under training, without DDP's wrapper;
    args: the TrainingArguments of its steps, which give the device and the precision."""

    def __init__(self, model, tokenizer, model_dir: str, sampling: Sampling, args):
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
        self.generator = LiveGenerator(model, tokenizer, model_dir, args.device.type, precision)
        self.sampling = sampling

    def answers(self, prompts: list[list[dict]], numbers: list[int], step: int) -> list[Rollout]:
        """Returns one answer to each prompt. numbers: which of its prompt's answers each is, from 0; step: the optimizer step."""
        key = hashlib.sha256(f"rollout {self.sampling.seed} {step}".encode()).digest()
        return self._written(prompts, replace(self.sampling, n=1, seed=int.from_bytes(key[:8], "big") >> 1), numbers)

    def greedy(self, prompts: list[list[dict]]) -> list[Rollout]:
        """Returns the greedy answer to each prompt."""
        return self._written(prompts, Sampling(max_new_tokens=self.sampling.max_new_tokens), None)

    def _written(self, prompts: list[list[dict]], sampling: Sampling, numbers: list[int] | None) -> list[Rollout]:
        ids = [self.generator.ids(p) for p in prompts]
        found = self.generator.generate([tuple(i) for i in ids], sampling, numbers=numbers)
        return [Rollout(prompt, list(a.tokens), a.finished, a.text) for prompt, (a,) in zip(ids, found, strict=True)]
