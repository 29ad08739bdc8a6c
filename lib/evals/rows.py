"""The rows that measures read."""

from __future__ import annotations

ROWS: dict[str, tuple[str, ...]] = {
    "perplexity": ("chat", "text"),
    "preference_accuracy": ("comparison",),
    "win_rate": ("prompt",),
    "arena": ("prompt",),
    "kl": ("prompt",),
}
"""The kinds of rows that a measure reads from `data`; tasks bring their own examples."""
