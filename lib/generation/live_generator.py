"""A model under training as a generator: no second copy of its weights, and the trainer's tokenizer and precision."""

from __future__ import annotations

from collections.abc import Sequence

from lib.generation.generator import Answer
from lib.generation.sampling import Sampling
from lib.generation.transformers_generator import TransformersGenerator
from lib.models.encode import Encoder, ends
from lib.models.window import positions


class LiveGenerator(TransformersGenerator):
    """Generates only; it doesn't score. model: the trainer's, with or without an adapter; model_dir: the folder that it was
    loaded from; device: cpu or cuda; precision: bf16, fp16 or fp32, as the training steps compute."""

    def __init__(self, model, tokenizer, model_dir: str, device: str, precision: str, batch_rows: int = 64):
        # Not the parent's __init__, which loads a model and prepares it for inference only.
        self.encoder = Encoder(model_dir, tokenizer=tokenizer)
        self.model, self.device, self.batch_rows, self.precision = model, device, batch_rows, precision
        self.positions = positions(model.config)
        self.ends = ends(model_dir, model.config, tokenizer)

    def generate(self, prompts: Sequence, sampling: Sampling, *args, **kwargs) -> list[list[Answer]]:
        """As TransformersGenerator.generate. Leaves the model in the mode (train or eval) that it was in."""
        import torch

        was = self.model.training
        self.model.eval()
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        try:
            # An adapter's weights are float32 and its base's are not; the training step has the same context.
            with torch.autocast(self.device, dtype=kind, enabled=kind is not None):
                return super().generate(prompts, sampling, *args, **kwargs)
        finally:
            self.model.train(was)
