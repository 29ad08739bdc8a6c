"""NEFTune: noise on the embeddings of training rows (Jain et al. 2023, https://arxiv.org/abs/2310.05914, algorithm 1).

    X' = X + α / √(L·d) · ε,    ε ~ Uniform(−1, 1) of shape (L, d)

L: tokens of the row, d: channels of an embedding, α: train.neftune_noise_alpha. The hook of transformers takes L from the padded batch
and draws from the process's generator, so its results change with scale.micro_batch and scale.workers. Here the noise of a row depends
only on (seed, step, the row's tokens), and L is the row's own length; in a packed row, each document's.

Shapes: B rows of T tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lib.models import masking

if TYPE_CHECKING:
    from transformers import Trainer


def install(trainer: Trainer) -> bool:
    """Adds the noise of train.neftune_noise_alpha in training, in place of transformers' hook. Returns whether there is any."""
    alpha, trainer.neftune_noise_alpha = trainer.neftune_noise_alpha, None
    if not alpha:
        return False
    read: dict[str, Any] = {}

    def remember(module, args, kwargs) -> None:
        read.update(kwargs)

    def add(module, inputs, output_BTD):
        if not module.training:
            return output_BTD
        assert read, "the embeddings are read in the model's own forward pass"
        noise_BTD = noise(alpha, f"neftune {trainer.args.seed} {trainer.state.global_step}", output_BTD, **read)
        read.clear()
        return output_BTD + noise_BTD

    trainer.model.register_forward_pre_hook(remember, with_kwargs=True)
    trainer.model.get_input_embeddings().register_forward_hook(add)
    return True


def noise(alpha: float, key: str, like_BTD, input_ids, attention_mask=None, position_ids=None, **other):
    """Returns the noise (B, T, D) for embeddings of the type and device of `like_BTD`; 0 where there is padding.

    key: seed and step. attention_mask: (B, T), or None for packed documents, each of which begins where position_ids (B, T) is 0.
    """
    import torch

    out_BTD = torch.zeros_like(like_BTD)
    for row, begin, end in _documents(input_ids, attention_mask, position_ids):
        draws = masking.generator(f"{key} {input_ids[row, begin:end].tolist()}")
        uniform_LD = torch.from_numpy(draws.random((end - begin, out_BTD.shape[-1]), dtype="float32")).to(
            like_BTD.device
        )
        out_BTD[row, begin:end] = alpha / uniform_LD.numel() ** 0.5 * (2 * uniform_LD - 1)
    return out_BTD


def _documents(input_ids, attention_mask, position_ids) -> Iterator[tuple[int, int, int]]:
    """Yields (row, first token, end) of each document."""
    rows, width = input_ids.shape
    for row in range(rows):
        if attention_mask is not None:
            at = attention_mask[row].nonzero()[:, 0].tolist()
            yield row, at[0], at[-1] + 1
            continue
        starts = [0] if position_ids is None else (position_ids[row] == 0).nonzero()[:, 0].tolist()
        for begin, end in zip(starts, [*starts[1:], width], strict=True):
            yield row, begin, end
