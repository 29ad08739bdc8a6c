"""OpenAI's /v1/embeddings with transformers (lib/generation/embedder.py)."""

from __future__ import annotations

import base64

from lib.generation import embedder
from lib.models import pooling, structure


def check(base: str) -> None:
    """Raises ValueError if the sentence-transformers files of a base describe an embedding that only vLLM computes."""
    try:
        if folder := structure.folder(base):
            pooling.of(str(folder))
    except ValueError as e:
        raise ValueError(f"task: {e} Use vLLM (engine: vllm).") from None


class Embedder(embedder.Embedder):
    """An Embedder that answers requests."""

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

        width = self._width(asked.get("dimensions"))
        form = asked.get("encoding_format") or "float"
        if form not in ("float", "base64"):
            raise ValueError(f"encoding_format: {form!r} is neither float nor base64.")
        ids = self.read(asked.get("input"))
        vectors = self.vectors(ids, width)
        if form == "base64":  # little-endian float32, which OpenAI's client requests by default
            vectors = [base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode() for v in vectors]
        tokens = sum(map(len, ids))
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": name, "usage": usage}

    def _width(self, dimensions: object) -> int | None:
        """Returns `dimensions` if the model was trained for vectors of that length. Raises ValueError."""
        whole, shorter = self.model.config.hidden_size, getattr(self.model.config, "matryoshka_dimensions", None) or []
        if dimensions is None or (type(dimensions) is int and dimensions in (whole, *shorter)):
            return dimensions
        if not shorter:
            raise ValueError(
                f"dimensions: this model's vectors have {whole} numbers and can't be shortened. Train one with train.matryoshka_dims."
            )
        known = ", ".join(map(str, sorted({whole, *shorter}, reverse=True)))
        raise ValueError(f"dimensions: must be one of {known}, for which this model was trained, is {dimensions!r}.")
