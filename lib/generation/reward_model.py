"""The scalar reward of an answer, from a reward run: a sequence classifier with one output (Stiennon et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence


class RewardModel:
    """The classifier in folder `model_dir`. Raises ValueError for a model that isn't one, or has several outputs."""

    def __init__(
        self,
        model_dir: str,
        dtype: str = "float32",
        device: str = "cpu",
        trained_template: str | None = None,
        batch_rows: int = 64,
        batch_tokens: int = 4096,
    ):
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        from lib.models import cpu_linear, prefixes
        from lib.models.encode import Encoder

        check_config(model_dir, AutoConfig.from_pretrained(model_dir).to_dict())
        self.encoder = Encoder(model_dir, trained_template)
        model = AutoModelForSequenceClassification.from_pretrained(model_dir, dtype=getattr(torch, dtype))
        self.model = model.to(device).eval()
        cpu_linear.install(self.model)
        prefixes.install(self.model)
        if hasattr(model, "score"):  # bfloat16 rounds a reward of 3 to steps of 0.016, enough to make ties
            model.score.float().register_forward_pre_hook(lambda _, x: (x[0].float(),))
        self.device, self.batch_rows, self.batch_tokens = device, batch_rows, batch_tokens
        if self.model.config.get_text_config().pad_token_id is None:
            self.model.config.get_text_config().pad_token_id = self.encoder.pad

    def reward(self, conversations: Sequence[list[dict]]) -> list[float]:
        """Returns the reward of each conversation's last message, rendered as by TRL's RewardTrainer. Raises ValueError if a
        conversation has more tokens than the model has positions."""
        import torch

        from lib.generation.batching import batches
        from lib.models.window import positions, refuse

        ids = [self.encoder.render(c, answering=False) for c in conversations]
        most = positions(self.model.config)
        refuse(
            "conversations", [len(r) for r in ids], most, "Leave those rows out of the data, or lower max_new_tokens."
        )
        rewards = [0.0] * len(ids)
        with torch.inference_mode():
            for batch in batches(range(len(ids)), [len(r) for r in ids], self.batch_rows, self.batch_tokens):
                width = max(len(ids[i]) for i in batch)
                pads = [
                    width - len(ids[i]) for i in batch
                ]  # on the right: the classifier reads the last token before them
                rows = torch.tensor(
                    [ids[i] + [self.encoder.pad] * p for i, p in zip(batch, pads, strict=True)], device=self.device
                )
                mask = torch.tensor([[1] * (width - p) + [0] * p for p in pads], device=self.device)
                out = self.model(input_ids=rows, attention_mask=mask, use_cache=False).logits.float()[:, 0].tolist()
                for i, r in zip(batch, out, strict=True):
                    rewards[i] = r
        return rewards


def check_config(where: str, config: dict) -> None:
    """Raises ValueError unless config.json describes a classifier with one output."""
    kinds = config.get("architectures") or ["nothing"]
    if not any("SequenceClassification" in k for k in kinds):
        raise ValueError(f"reward: {where} holds {kinds[0]}, not a reward model. Train one with jobs/reward.py.")
    if config.get("problem_type") == "regression":
        raise ValueError(
            f"reward: {where} holds a regression of jobs/classify.py. Train a reward model with jobs/reward.py."
        )
    outputs = len(config.get("id2label") or {0: "", 1: ""})
    if outputs != 1:
        raise ValueError(f"reward: the model in {where} has {outputs} outputs; a reward model has one.")
