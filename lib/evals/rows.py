"""The kinds of rows that measures read."""

from __future__ import annotations

ROWS: dict[str, tuple[str, ...]] = {
    "perplexity": ("chat", "text"),
    "preference_accuracy": ("comparison",),
    "win_rate": ("prompt",),
    "arena": ("prompt",),
    "kl": ("prompt",),
    "pseudo_perplexity": ("text",),
    "denoising_loss": ("text",),
    "replaced_f1": ("text",),
    "next_segment": ("text",),
    "sts": ("pair",),
    "retrieval": ("contrastive",),
    "classification": ("classified",),
    "scores": ("pair",),
}
"""{measure: the kinds of rows that it reads from `data`}. Tasks have their own examples."""
