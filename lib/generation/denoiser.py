"""Measures encoders and encoder-decoders on texts: what they predict for masked, replaced or missing tokens.

    pseudo_perplexity   Σ_t −log p(x_t | all other tokens), each token masked by itself (Salazar et al. 2020,
                        https://arxiv.org/abs/1910.14659, eq. 1)
    denoising_loss      −log p of the tokens of spans that were masked as in T5's pre-training, without sentinels
    replaced_f1         F1 of finding the 15% of tokens that were replaced by random ones
    next_segment        whether BERT's head tells if the second segment follows the first

Masks depend on the text alone. Shapes: B rows of T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lib.models import masking

SHARE, LENGTH = 0.15, 3.0
"""Share of tokens that are masked or replaced, and mean length of T5's spans."""

Ratio = tuple[float, float]
"""Top and bottom; a score is Σ tops / Σ bottoms."""


class Denoiser:
    """The model of kind `makes` in folder `model_dir`. Raises ValueError for a model without the head that a measure needs."""

    def __init__(
        self,
        model_dir: str,
        makes: str,
        dtype: str = "float32",
        device: str = "cpu",
        batch_rows: int = 64,
        batch_tokens: int = 4096,
    ):
        import torch
        from transformers import AutoConfig, AutoTokenizer

        from lib.models import load
        from lib.models.window import positions

        self.tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
        names = AutoConfig.from_pretrained(model_dir).architectures or [""]
        # BERT's second head, if it was trained, is loaded only by the class for pre-training.
        kind = load.auto("discriminator" if "ForPreTraining" in names[0] else makes)
        self.model = kind.from_pretrained(model_dir, dtype=getattr(torch, dtype)).to(device).eval()
        self.model_dir, self.device, self.batch_rows, self.batch_tokens = model_dir, device, batch_rows, batch_tokens
        self.window = positions(self.model.config)
        self.pad, self.regular = self.tokenizer.pad_token_id, masking.text_tokens(self.tokenizer)

    def denoise(self, texts: Sequence[str], seconds: Sequence[str | None], hows: Sequence[str]) -> list[Ratio]:
        """Returns one ratio per text. seconds: the second segment, for next_segment; hows: the measure, the same for all texts."""
        [how] = set(hows)
        return {
            "pseudo_perplexity": self._pseudo_perplexity,
            "denoising_loss": self._denoising_loss,
            "replaced_f1": self._replaced_f1,
            "next_segment": lambda texts: self._next_segment(texts, seconds),
        }[how](texts)

    def _pseudo_perplexity(self, texts: Sequence[str]) -> list[Ratio]:
        cls, sep, mask = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id, self.tokenizer.mask_token_id
        rows, at, owners = [], [], []
        for n, text in enumerate(texts):
            for piece in self._pieces(text):
                for i, token in enumerate(piece):
                    rows.append([cls, *piece[:i], mask, *piece[i + 1 :], sep])
                    at.append((i + 1, token))
                    owners.append(n)
        nats, tokens = np.zeros(len(texts)), np.zeros(len(texts))
        for chosen, logits in self._forward(rows):
            for i, row in zip(chosen, logits, strict=True):
                place, token = at[i]
                nats[owners[i]] -= row[place].log_softmax(-1)[token].item()
                tokens[owners[i]] += 1
        return list(zip(nats.tolist(), tokens.tolist(), strict=True))

    def _denoising_loss(self, texts: Sequence[str]) -> list[Ratio]:
        import torch

        end = self.tokenizer.eos_token_id
        sentinels = self.tokenizer.convert_tokens_to_ids([f"<extra_id_{n}>" for n in range(100)])
        found = []
        for text in texts:
            nats = tokens = 0.0
            for ids in self._pieces(text, most=512):
                if len(ids) < 2:
                    continue
                ids_T = np.array(ids)
                noise_T = masking.spans(len(ids), SHARE, LENGTH, masking.generator(text))
                source = [*masking.replaced(ids_T, noise_T, sentinels), end]
                target = [*masking.replaced(ids_T, ~noise_T, sentinels), end]
                where = {"input_ids": [source], "decoder_input_ids": [[self.pad, *target[:-1]]]}
                with torch.inference_mode():
                    out = self.model(
                        **{k: torch.tensor(v, device=self.device) for k, v in where.items()}, use_cache=False
                    )
                logp_TV = out.logits[0].float().log_softmax(-1)
                own = [i for i, token in enumerate(target[:-1]) if token not in sentinels]
                nats -= sum(logp_TV[i, target[i]].item() for i in own)
                tokens += len(own)
            found.append((nats, tokens))
        return found

    def _replaced_f1(self, texts: Sequence[str]) -> list[Ratio]:
        rows, fakes, owners = [], [], []
        for n, text in enumerate(texts):
            draws = masking.generator(text)
            for ids in self._pieces(text):
                chosen_T = masking.choose(np.ones(len(ids), bool), SHARE, draws)
                own_T, count = np.searchsorted(self.regular, ids), len(self.regular)
                drawn_T = self.regular[(own_T + 1 + draws.integers(count - 1, size=len(ids))) % count]  # another one
                shown_T = np.where(chosen_T, drawn_T, ids)
                rows.append([self.tokenizer.cls_token_id, *shown_T.tolist(), self.tokenizer.sep_token_id])
                fakes.append(chosen_T)
                owners.append(n)
        tops, bottoms = np.zeros(len(texts)), np.zeros(len(texts))
        for chosen, logits in self._forward(rows):
            for i, row in zip(chosen, logits, strict=True):
                said_T = (row[1 : 1 + len(fakes[i])] > 0).cpu().numpy()
                tops[owners[i]] += 2 * (said_T & fakes[i]).sum()
                bottoms[owners[i]] += said_T.sum() + fakes[i].sum()
        return list(zip(tops.tolist(), bottoms.tolist(), strict=True))

    def _next_segment(self, texts: Sequence[str], seconds: Sequence[str | None]) -> list[Ratio]:
        import torch

        if not hasattr(getattr(self.model, "cls", None), "seq_relationship"):
            raise ValueError(
                f"tasks: next_segment needs a head that train.objective nsp trains, and {self.model_dir} has none. Leave it out."
            )
        found = []
        for first, second in zip(texts, seconds, strict=True):
            row = self.tokenizer(first, second, truncation=True, max_length=self.window, return_tensors="pt").to(
                self.device
            )
            with torch.inference_mode():
                follows, other = self.model(**row).seq_relationship_logits[0].tolist()
            found.append((float(follows > other), 1.0))
        return found

    def _pieces(self, text: str, most: int | None = None) -> list[list[int]]:
        """Returns the tokens of a text, cut to what the model reads at a time."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        size = most or (self.window or len(ids) + 2) - 2
        return [ids[i : i + size] for i in range(0, len(ids), size)]

    def _forward(self, rows: list[list[int]]):
        """Yields (indices of rows, logits (B, T, V), or (B, T) of a discriminator)."""
        import torch

        from lib.generation.batching import batches

        lengths = [len(r) for r in rows]
        for chosen in batches(range(len(rows)), lengths, self.batch_rows, self.batch_tokens):
            width = max(lengths[i] for i in chosen)
            ids = torch.tensor([rows[i] + [self.pad] * (width - lengths[i]) for i in chosen], device=self.device)
            mask = torch.tensor([[1] * lengths[i] + [0] * (width - lengths[i]) for i in chosen], device=self.device)
            with torch.inference_mode():
                out = self.model(input_ids=ids, attention_mask=mask)
            yield chosen, out["prediction_logits" if "prediction_logits" in out else "logits"]
