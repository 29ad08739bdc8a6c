"""Dropout whose draws depend on the seed, the epoch, the row and the place in the model alone.

With torch's own, a row's draws depend on the rows computed before it, on padding, and on the micro-batch and worker that it is in. Here
each number of a row is kept by a hash, so that a row has the same dropout on any number of workers, in any micro-batch and after a resume.

Shapes: B rows; dropout's input is (B, …), with padding at the end of its inner dimensions.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

RATES = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_dropout", "attention_dropout", "dropout", "dropout_rate", "embd_pdrop",
    "attn_pdrop", "resid_pdrop", "embedding_dropout", "mlp_dropout", "classifier_dropout", "seq_classif_dropout", "cls_dropout",
)  # fmt: skip
"""Names of dropout in configurations of transformers."""
GOLDEN = -7046029254386353131  # 2⁶⁴ / φ, as a signed number
STRIDES = (2654435761, 40503 * 2654435761 + 2, 97 * 2654435761 + 4)
"""Factors of the indices of the inner dimensions; a padded dimension doesn't change the others."""


def key(seed: int, row: int, column: int) -> int:
    """Returns the 64 bits from which the draws of one text follow. row: number of the row, counted over all epochs."""
    digest = hashlib.blake2b(f"{seed} {row} {column}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def kept(keys_B: torch.Tensor, place: int, shape: torch.Size, p: float) -> torch.Tensor:
    """Returns which numbers of a tensor of `shape` (B, …) are kept, with probability 1 − p. place: number of the dropout in the model."""
    at = _mixed(keys_B + torch.full_like(keys_B, place) * GOLDEN).view(-1, *[1] * (len(shape) - 1))
    for n, size in enumerate(shape[1:], 1):
        index = torch.arange(size, device=keys_B.device) * STRIDES[n - 1]
        at = at + index.view(*[1] * n, -1, *[1] * (len(shape) - 1 - n))
    return _shifted(_mixed(at), 40) >= int(p * 2**24)


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of MurmurHash3 (Appleby 2011), whose every output bit depends on every input bit."""
    x = (x ^ _shifted(x, 33)) * -49064778989728563
    x = (x ^ _shifted(x, 33)) * -4265267296055464877
    return x ^ _shifted(x, 33)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shifts 64 bits to the right, filling up with 0; torch's own shift repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


class RowDropout(TorchFunctionMode):
    """While entered, every torch.nn.functional.dropout draws by the keys of the rows. Dropout inside attention kernels can't be replaced;
    eager attention has none."""

    def __init__(self, keys_B: torch.Tensor):
        super().__init__()
        self.keys_B, self.place = keys_B, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.dropout:
            return func(*args, **(kwargs or {}))
        return self._dropout(*args, **(kwargs or {}))

    def _dropout(self, x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if not training or p == 0:
            return x
        self.place += 1
        return x * kept(self.keys_B, self.place, x.shape, p) / (1 - p)
