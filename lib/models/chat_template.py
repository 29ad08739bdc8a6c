"""The identity of a chat template."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the SHA-256 of a tokenizer's chat template, or that of the empty text without one."""
    return hashlib.sha256((tokenizer.chat_template or "").encode()).hexdigest()
