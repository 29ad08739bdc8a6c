"""Span corruption: spans of the text are replaced by sentinels, and an encoder-decoder writes the missing spans.

L(θ) = − Σ_t log p_θ(y_t | x̃, y_<t)        Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 3.1.4

    text     Thank you for inviting me to your party last week
    x̃        Thank you <extra_id_0> me to your party <extra_id_1> week </s>
    y        <extra_id_0> for inviting <extra_id_1> last </s>

As in T5's code, y ends with </s>; the paper's figure has one more sentinel there. `train.noise_density` of the tokens are masked, in
spans of `train.mean_noise_span_length` tokens on average. With `train.denoisers: mixture`, each block is masked in one of seven ways,
which the token of its mode in front of x̃ names (UL2, Tay et al. 2022, https://arxiv.org/abs/2205.05131, section 3.1).

Shapes: B blocks, S tokens of x̃, T tokens of y.
"""

from __future__ import annotations

import numpy as np

from lib.methods.pretraining.objective import IGNORED, Objective, accuracy, cross_entropy, tensor
from lib.models import masking

MIXTURE = [("[R]", 0.15, 3.0), ("[R]", 0.15, 8.0), ("[S]", 0.25, None)] + [
    ("[X]", density, length) for density, length in ((0.5, 3.0), (0.5, 8.0), (0.15, 64.0), (0.5, 64.0))
]
"""UL2's denoisers (table 1): (token of the mode, density, mean length). None: the end of the text is one span, as in a prefix LM."""


def ways(denoisers: str, density: float, length: float) -> list[tuple[str | None, float, float | None]]:
    """Returns how blocks may be masked, as in MIXTURE; the arguments are the keys of the same names in `train`."""
    return MIXTURE if denoisers == "mixture" else [(None, density, length)]


def lengths(tokens: int, denoisers: str, density: float, length: float) -> tuple[int, int]:
    """Returns the longest (S, T) that a block of `tokens` becomes. The other arguments are those of ways()."""
    found = []
    for mode, share, mean in ways(denoisers, density, length):
        noise, spans = masking.noise_and_spans(tokens, share, mean or tokens)
        found.append((bool(mode) + tokens - noise + spans + 1, noise + spans + 1))
    return max(s for s, _ in found), max(t for _, t in found)


class SpanCorruption(Objective):
    def __init__(self, args, tokenizer):
        super().__init__(args, tokenizer)
        self.end, self.pad = self.token("eos_token"), self.token("pad_token")
        self.ways = ways(args.denoisers, args.noise_density, args.mean_noise_span_length)
        self.modes = {mode: self.known(mode) for mode, *_ in self.ways if mode}
        most = max(masking.noise_and_spans(args.max_length, d, m or args.max_length)[1] for _, d, m in self.ways)
        self.sentinels = [self.known(f"<extra_id_{n}>") for n in range(most)]

    def known(self, token: str) -> int:
        found = self.tokenizer.get_vocab().get(token)
        if found is None:
            raise ValueError(
                f"model.base: its tokenizer has no {token}, which train.objective span_corruption needs here."
            )
        return found

    def model(self, folder, **how):
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM.from_pretrained(folder, **how)

    def collate(self, blocks):
        rows = [self.corrupted(b["input_ids"], b["draws"]) for b in blocks]
        sources, targets = (list(column) for column in zip(*rows, strict=True))
        starts = [np.concatenate([[self.pad], t[:-1]]) for t in targets]
        return {
            "input_ids": tensor(sources, self.pad),
            "attention_mask": tensor([np.ones(len(s), np.int64) for s in sources]),
            "decoder_input_ids": tensor(starts, self.pad),
            "labels": tensor(targets, IGNORED),
        }

    def corrupted(self, ids_T, draws) -> tuple[np.ndarray, np.ndarray]:
        """Returns (x̃, y)."""
        mode, density, length = self.ways[draws.integers(len(self.ways))]
        if length is None:
            noise_T = np.arange(len(ids_T)) >= len(ids_T) - max(1, round(len(ids_T) * density))
        else:
            noise_T = masking.spans(len(ids_T), density, length, draws)
        front = [self.modes[mode]] if mode else []
        source = np.array([*front, *masking.replaced(ids_T, noise_T, self.sentinels), self.end])
        return source, np.array([*masking.replaced(ids_T, ~noise_T, self.sentinels), self.end])

    def losses(self, model, batch):
        where = {k: batch[k] for k in ("input_ids", "attention_mask", "decoder_input_ids")}
        logits_BTV, labels_BT = model(**where, use_cache=False).logits, batch["labels"]
        return {"nll": cross_entropy(logits_BTV, labels_BT)}, {"mean_token_accuracy": accuracy(logits_BTV, labels_BT)}
