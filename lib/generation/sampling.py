"""Choice of the next token: the likeliest, or a sample from the model's distribution, truncated or reshaped as configured.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from lib.data.reasoning import NONE

LOOKUP = "lookup"
"""Name of the drafter of speculative decoding that needs no model."""


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.0
    """0 takes the likeliest token each time (greedy)."""
    top_p: float = 1.0
    """Nucleus sampling (Holtzman et al. 2020): sample from the smallest set of tokens whose total probability reaches this."""
    top_k: int = 0
    """Sample from this many of the likeliest tokens (Fan et al. 2018). 0: from all."""
    min_p: float = 0.0
    """Sample from tokens at least this times as likely as the likeliest (Nguyen et al. 2024). 0: from all."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that occur in prompt or answer, multiplies negative ones (Keskar et al. 2019). 1: none."""
    max_new_tokens: int = 64
    seed: int = 0
    n: int = 1
    """Answers per prompt."""
    beams: int = 1
    """Number of beams of beam search (Graves 2012), which returns the answer with the highest log probability divided by length
    (length normalisation as in transformers). 1: no beam search."""
    amateur: str | None = None
    """Amateur model of contrastive decoding, by its name in the engine. None: no contrastive decoding."""
    contrast: float = 0.5
    """β of contrastive decoding: weight of the amateur's logits, which are subtracted."""
    plausible: float = 0.1
    """α of contrastive decoding: tokens less than this times as likely as the likeliest are excluded."""
    draft: str | None = None
    """Drafter of speculative decoding (lib/generation/speculative.py): another model, by its name in the engine, or lookup. It changes
    the speed of answers, not their content. None: no speculative decoding."""
    draft_tokens: int = 4
    """Tokens that the drafter guesses at a time."""
    begins: str = ""
    """Text that every answer begins with, which the model continues."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; the answer includes the text that ended it."""

    @property
    def other(self) -> str | None:
        """Name in the engine of the second model needed, or None."""
        return self.amateur or (self.draft if self.draft != LOOKUP else None)

    def __str__(self) -> str:
        how = [
            f"{self.beams} beams"
            if self.beams > 1
            else f"against {self.amateur}"
            if self.amateur and self.temperature == 0
            else "greedy"
            if self.temperature == 0
            else f"T={self.temperature:g}, seed {self.seed}"
        ]
        if self.amateur and self.temperature:
            how.append(f"against {self.amateur}")
        plain = Sampling()
        for name in ("top_p", "top_k", "min_p", "repetition_penalty", "contrast", "plausible"):
            if getattr(self, name) != getattr(plain, name):
                how.append(f"{name}={getattr(self, name):g}")
        if self.begins == NONE:
            how.append("without reasoning")
        if self.draft:
            how.append(f"{self.draft_tokens} tokens at a time guessed by {self.draft}")
        return ", ".join(how + ([f"{self.n} each"] if self.n > 1 else []))


def seed(sampling: Sampling, prompt: list[int], draw: int) -> int:
    """Returns a number below 2⁶³ that depends on the seed, the prompt's ids and the draw's number."""
    key = hashlib.sha256(f"{sampling.seed} {draw} {prompt}".encode()).digest()
    return int.from_bytes(key[:8], "big") >> 1


def generator(sampling: Sampling, prompt: list[int], draw: int, device: str):
    """Returns a torch.Generator seeded only by the seed, the prompt and the draw's number. Two models thus get the same
    random numbers for the same prompt, which reduces noise when they are compared."""
    import torch

    return torch.Generator(device).manual_seed(seed(sampling, prompt, draw))


def contrast(expert_BV, amateur_BV, sampling: Sampling):
    """Logits (1 + β) expert − β amateur for tokens with p_expert ≥ α max p_expert, −inf for the others (O'Brien and Lewis
    2023, https://arxiv.org/abs/2309.09117; after Li et al. 2023, who have no (1 + β)). Vocabularies must be the same."""
    import torch

    width = min(expert_BV.shape[-1], amateur_BV.shape[-1])  # one vocabulary may be padded further, without tokens
    expert_BV, amateur_BV = expert_BV[:, :width].float(), amateur_BV[:, :width].float()
    p_BV = expert_BV.softmax(-1)
    out_BV = (1 + sampling.contrast) * expert_BV - sampling.contrast * amateur_BV
    return out_BV.masked_fill(p_BV < sampling.plausible * p_BV.max(-1, keepdim=True).values, -torch.inf)


def penalise(logits_BV, seen: list[list[int]], penalty: float):
    """Applies the repetition penalty to the tokens in each row's `seen`. That excludes padding, so other rows have no influence."""
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    one = RepetitionPenaltyLogitsProcessor(penalty)
    rows = [
        one(torch.tensor([ids], device=logits_BV.device), row_V[None].float())
        for ids, row_V in zip(seen, logits_BV, strict=True)
    ]
    return torch.cat(rows)


def race(dice: list, width: int, device):
    """Draws E ~ Exp(1) for `choose`, (B, width), one row from each torch.Generator."""
    import torch

    race_BV = torch.empty(len(dice), width, device=device)
    for row_V, die in zip(race_BV, dice, strict=True):
        row_V.exponential_(generator=die)
    return race_BV


def choose(logits_BV, sampling: Sampling, race_BV=None):
    """Returns the next token of each row (B,): the likeliest, or a sample argmax p / E with one E from `race` per token (the
    Gumbel-max trick, Maddison et al. 2014). Inverting the cumulative distribution would need only one random number, but
    there a rounding error shifts all later tokens of the vocabulary; here it affects only its own token.
    """
    import torch

    if sampling.temperature == 0:
        return logits_BV.max(-1).indices  # argmax is 5 times slower in bfloat16 on a CPU
    logits_BV = logits_BV.float() / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        logits_BV = logits_BV.masked_fill(logits_BV < logits_BV.topk(sampling.top_k).values[:, -1:], -torch.inf)
    p_BV = logits_BV.softmax(-1)
    if sampling.min_p > 0:
        p_BV = p_BV.masked_fill(p_BV < sampling.min_p * p_BV.max(-1, keepdim=True).values, 0)
    if sampling.top_p < 1:
        sorted_BV, order_BV = p_BV.sort(descending=True, stable=True)
        outside_BV = sorted_BV.cumsum(-1) - sorted_BV >= sampling.top_p
        p_BV = p_BV.masked_fill(outside_BV.gather(1, order_BV.argsort(-1)), 0)
    return (p_BV / race_BV).max(-1).indices
