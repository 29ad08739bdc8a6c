"""OpenAI's /v1/embeddings with transformers: the mean of the last layer over a text's tokens, scaled to length 1.

Sentence encoders such as all-MiniLM-L6-v2 are trained this way (Reimers & Gurevych 2019, https://arxiv.org/abs/1908.10084).
Shapes: B texts, T tokens (right-padded, since encoders count positions from the left), D dimensions.
"""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path

from lib.generation.batching import batches

AT_ONCE, TOKENS = 32, 4096
"""Most texts, and most tokens including padding, per forward pass."""
MODULES = ("Transformer", "Pooling", "Normalize")


def check(folder: str) -> None:
    """Raises ValueError if the sentence-transformers files beside the weights describe another kind of embedding."""
    file = Path(folder, "modules.json")
    if not file.is_file():
        return
    for module in json.loads(file.read_text()):
        kind = module["type"].rsplit(".", 1)[-1]
        settings = Path(folder, module["path"], "config.json")
        if kind == "Pooling":
            modes = {
                k for k, v in json.loads(settings.read_text()).items() if k.startswith("pooling_mode_") and v is True
            }
            if modes != {"pooling_mode_mean_tokens"}:
                raise ValueError(
                    f"task: {folder} pools by {', '.join(sorted(modes))}, which needs vLLM (engine: vllm)."
                )
        elif kind not in MODULES:
            raise ValueError(f"task: {folder} ends in a {kind} layer, which needs vLLM (engine: vllm).")


class Embedder:
    """The model in `folder`; thread-safe, one request at a time."""

    def __init__(self, folder: str, dtype, device: str):
        from transformers import AutoModel, AutoTokenizer

        self.model = AutoModel.from_pretrained(folder, dtype=dtype).to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # masked, so any token works
        # RoBERTa and MPNet have two positions more than they accept tokens; their tokenizers have the true limit.
        self.window = min(self.model.config.max_position_embeddings, self.tokenizer.model_max_length)
        self.device, self.lock = device, threading.Lock()

    def read(self, given) -> list[list[int]]:
        """Returns the tokens of each text of a request's `input`: a text, texts, tokens, or lists of tokens. Raises ValueError."""
        single = isinstance(given, str) or (given and isinstance(given, list) and isinstance(given[0], int))
        texts = [given] if single else given
        if not isinstance(texts, list) or not texts:
            raise ValueError("input: must be a text, or a list of texts.")
        ids = [self.tokenizer(t)["input_ids"] if isinstance(t, str) else t for t in texts]
        size = self.model.config.vocab_size
        for i, row in enumerate(ids):
            if not isinstance(row, list) or not all(type(t) is int and 0 <= t < size for t in row):
                raise ValueError(f"input: number {i} is neither a text nor a list of tokens below {size}.")
            if not row or texts[i] == "":
                raise ValueError(f"input: number {i} is empty.")
            if len(row) > self.window:
                raise ValueError(f"input: number {i} has {len(row)} tokens, and the model reads at most {self.window}.")
        return ids

    def vectors(self, ids: list[list[int]]) -> list[list[float]]:
        """Returns one vector (D,) of length 1 per text. The other texts in its batch change it only by rounding."""
        import torch

        found: list[list[float]] = [[]] * len(ids)
        with self.lock, torch.inference_mode():
            for rows in batches(range(len(ids)), [len(row) for row in ids], AT_ONCE, TOKENS):
                batch = self.tokenizer.pad(
                    {"input_ids": [ids[i] for i in rows]}, padding_side="right", return_tensors="pt"
                )
                batch = batch.to(self.device)
                mask_BT1 = batch["attention_mask"][..., None]
                states_BTD = self.model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
                ).last_hidden_state
                mean_BD = (states_BTD.float() * mask_BT1).sum(1) / mask_BT1.sum(1)
                for i, vector in zip(rows, torch.nn.functional.normalize(mean_BD).tolist(), strict=True):
                    found[i] = vector
        return found

    def route(self, name: str):
        """Returns the Starlette route /v1/embeddings for the model that clients call `name`."""
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        async def embeddings(request):
            try:
                return JSONResponse(await run_in_threadpool(self.answer, await request.json(), name))
            except ValueError as e:
                error = {"message": str(e), "type": "invalid_request_error", "code": 400}
                return JSONResponse({"error": error}, 400)

        return Route("/v1/embeddings", embeddings, methods=["POST"])

    def answer(self, asked: dict, name: str) -> dict:
        """Returns the reply to a request. Raises ValueError naming the wrong field."""
        import struct

        if asked.get("dimensions") is not None:
            raise ValueError(
                f"dimensions: this model's vectors have {self.model.config.hidden_size} numbers and can't be shortened."
            )
        form = asked.get("encoding_format") or "float"
        if form not in ("float", "base64"):
            raise ValueError(f"encoding_format: {form!r} is neither float nor base64.")
        ids = self.read(asked.get("input"))
        vectors = self.vectors(ids)
        if form == "base64":  # little-endian float32, which OpenAI's client requests by default
            vectors = [base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode() for v in vectors]
        tokens = sum(map(len, ids))
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": name, "usage": usage}
