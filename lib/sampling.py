"""How the next token is taken: the likeliest, or a draw from a distribution that was cut or bent first.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

LOOKUP = "lookup"
"""The drafter of speculative decoding that needs no model."""


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.0
    """0 takes the likeliest token each time (greedy)."""
    top_p: float = 1.0
    """Nucleus (Holtzman et al. 2020): draw from the fewest tokens whose probabilities reach this."""
    top_k: int = 0
    """Draw from the likeliest so many tokens (Fan et al. 2018). 0: from all."""
    min_p: float = 0.0
    """Draw from tokens at least this times as likely as the likeliest (Nguyen et al. 2024). 0: from all."""
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens that are in prompt or answer, multiplies the negative ones (Keskar et al. 2019)."""
    max_new_tokens: int = 64
    seed: int = 0
    n: int = 1
    """Answers per prompt."""
    beams: int = 1
    """Beam search keeps this many beginnings and answers with the likeliest whole, its log-probability divided by its length
    (Graves 2012; length normalisation as in transformers). 1: none."""
    amateur: str | None = None
    """Contrastive decoding against this model, by its name in the engine. None: none."""
    contrast: float = 0.5
    """β of contrastive decoding: how much what the amateur likes is held against a token."""
    plausible: float = 0.1
    """α of contrastive decoding: tokens less than this times as likely as the likeliest are out."""
    draft: str | None = None
    """Speculative decoding (lib/speculative.py): another model, by its name in the engine, or lookup. It changes how long
    answers take, not what they say. None: none."""
    draft_tokens: int = 4
    """Tokens that are guessed at a time."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; it still holds the one that did."""

    @property
    def other(self) -> str | None:
        """The second model that is needed, by its name in the engine."""
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
        if self.draft:
            how.append(f"{self.draft_tokens} tokens at a time guessed by {self.draft}")
        return ", ".join(how + ([f"{self.n} each"] if self.n > 1 else []))


def seed(sampling: Sampling, prompt: list[int], draw: int) -> int:
    """Below 2⁶³, of the seed, the prompt's ids and the draw's number."""
    key = hashlib.sha256(f"{sampling.seed} {draw} {prompt}".encode()).digest()
    return int.from_bytes(key[:8], "big") >> 1


def generator(sampling: Sampling, prompt: list[int], draw: int, device: str):
    """A torch.Generator that depends on the seed, the prompt and the draw's number only. Two models asked the same
    prompt thus meet the same random numbers, which takes noise out of their comparison."""
    import torch

    return torch.Generator(device).manual_seed(seed(sampling, prompt, draw))


def contrast(expert_BV, amateur_BV, sampling: Sampling):
    """Logits (1 + β) expert − β amateur for tokens with p_expert ≥ α max p_expert, −inf for the others (O'Brien and Lewis
    2023, https://arxiv.org/abs/2309.09117; after Li et al. 2023, who have no (1 + β)). Vocabularies must be the same."""
    import torch

    width = min(expert_BV.shape[-1], amateur_BV.shape[-1])  # one may be padded further; no token is there
    expert_BV, amateur_BV = expert_BV[:, :width].float(), amateur_BV[:, :width].float()
    p_BV = expert_BV.softmax(-1)
    out_BV = (1 + sampling.contrast) * expert_BV - sampling.contrast * amateur_BV
    return out_BV.masked_fill(p_BV < sampling.plausible * p_BV.max(-1, keepdim=True).values, -torch.inf)


def penalise(logits_BV, seen: list[list[int]], penalty: float):
    """Logits of the tokens in each row's `seen`, made smaller. Padding is not seen, so a row's neighbours don't matter."""
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    one = RepetitionPenaltyLogitsProcessor(penalty)
    rows = [
        one(torch.tensor([ids], device=logits_BV.device), row_V[None].float())
        for ids, row_V in zip(seen, logits_BV, strict=True)
    ]
    return torch.cat(rows)


def race(dice: list, width: int, device):
    """Numbers E ~ Exp(1) for `choose`, (B, width): the next ones of each torch.Generator."""
    import torch

    race_BV = torch.empty(len(dice), width, device=device)
    for row_V, die in zip(race_BV, dice, strict=True):
        row_V.exponential_(generator=die)
    return race_BV


def choose(logits_BV, sampling: Sampling, race_BV=None):
    """The next token of each row: the likeliest, or a draw by the exponential race argmax p / E with E from `race`, one
    per token (the Gumbel-max trick, Maddison et al. 2014). Walking the cumulative distribution would take one number,
    but a rounding error anywhere in the vocabulary moves all that comes after it; here only the token it is in.
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
