"""Replaced token detection: a small generator fills in masked tokens, and the discriminator decides which tokens are not the original.

L(θ_G, θ_D) = L_MLM(θ_G) + λ · L_Disc(θ_D)        Clark et al. 2020, https://arxiv.org/abs/2003.10555, section 3.1
L_Disc = − Σ_t [x̂_t = x_t] log D(x̂, t) + [x̂_t ≠ x_t] log (1 − D(x̂, t)), D: probability of an original token

λ is `train.discriminator_weight`; both losses are means, the first over the masked positions, the second over all. x̂: the text with a
token drawn from the generator at each masked position. No gradient flows through the draw. A token that happens to equal the original
counts as original. The generator is as deep as the discriminator and `train.generator_size` as wide; both share their embeddings. The
discriminator is the model that is kept; a run that starts from it gets a new generator.

Shapes: B blocks of T tokens, N masked positions, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

from lib.methods.pretraining.mlm import Mlm
from lib.methods.pretraining.objective import IGNORED, Part, accuracy, cross_entropy


class Pair(ElectraForPreTraining):
    """A discriminator that holds its generator, so that data parallelism, the optimizer and checkpoints see one model."""

    def __init__(self, config: ElectraConfig, share: float):
        config.tie_word_embeddings = True
        super().__init__(config)
        self.generator = ElectraForMaskedLM(generator_config(config, share))
        self._tied_weights_keys = {
            **{
                f"generator.electra.embeddings.{name}": f"electra.embeddings.{name}"
                for name, _ in self.electra.embeddings.named_parameters()
            },
            "generator.generator_lm_head.weight": "electra.embeddings.word_embeddings.weight",
        }
        self.post_init()  # again, for the generator and the weights that it shares

    def forward(self, input_ids, attention_mask, labels, uniform):
        """uniform: (B, T) in [0, 1), for the draws. Returns (generator's logits (N, V); discriminator's logits (B, T), above 0 where it
        takes a token for a replaced one; which tokens were replaced, (B, T) bool)."""
        at_BT = labels != IGNORED
        generated_NV = self.generator(input_ids=input_ids, attention_mask=attention_mask).logits[at_BT]
        filled_BT = input_ids.clone()
        filled_BT[at_BT] = drawn(generated_NV.detach(), uniform[at_BT])
        original_BT = torch.where(at_BT, labels, input_ids)
        logits_BT = super().forward(input_ids=filled_BT, attention_mask=attention_mask).logits
        return generated_NV, logits_BT, filled_BT != original_BT


class Electra(Mlm):
    def model(self, folder, **how):
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != "electra":
            raise ValueError(
                f"model.base: train.objective electra needs an ELECTRA model, and this is {config.model_type}."
            )
        return Pair.from_pretrained(folder, share=self.args.generator_size, **how)

    def replaced(self, ids_T, chosen_T, draws):
        out = ids_T.copy()
        out[chosen_T] = self.mask
        return out

    def collate(self, blocks):
        batch = super().collate(blocks)
        width = batch["input_ids"].shape[1]
        uniform = [b["draws"].random(width, dtype="float32") for b in blocks]
        return batch | {"uniform": torch.stack([torch.from_numpy(u) for u in uniform])}

    def losses(self, model, batch):
        generated_NV, logits_BT, replaced_BT = model(**batch)
        targets_N = batch["labels"][batch["labels"] != IGNORED]
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        total = loss(logits_BT.float(), replaced_BT.float(), reduction="sum")
        parts = {
            "generator_nll": cross_entropy(generated_NV, targets_N),
            "discriminator_nll": Part(total, replaced_BT.numel(), self.args.discriminator_weight),
        }
        right_BT = (logits_BT > 0) == replaced_BT
        return parts, {
            "generator_accuracy": accuracy(generated_NV, targets_N),
            "discriminator_accuracy": Part(right_BT.sum(), right_BT.numel()),
            "replaced_share": Part(replaced_BT.sum(), replaced_BT.numel()),
        }

    def save(self, model, folder: Path):
        """Leaves the generator out."""
        kept = ElectraForPreTraining(model.config)
        kept.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("generator.")})
        kept.to(model.dtype).save_pretrained(str(folder))


def generator_config(config: ElectraConfig, share: float) -> ElectraConfig:
    """Returns the configuration of a generator that is `share` as wide as the discriminator."""
    heads = max(1, round(config.num_attention_heads * share))
    made = ElectraConfig.from_dict(config.to_dict())
    made.num_attention_heads = heads
    made.hidden_size = max(1, round(config.hidden_size * share / heads)) * heads
    made.intermediate_size = max(1, round(config.intermediate_size * share))
    return made


def drawn(logits_NV, uniform_N):
    """Returns a token for each position, drawn from the distribution of its logits (N,)."""
    below_NV = logits_NV.float().softmax(-1).cumsum(-1)
    return (below_NV < uniform_N[:, None] * below_NV[:, -1:]).sum(-1).clamp(max=logits_NV.shape[1] - 1)
