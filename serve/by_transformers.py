"""`transformers serve` with one model in it, where transformers 5.19 answers otherwise than vLLM and OpenAI do.

Left to itself it draws nothing whatever the temperature is, and of the 50 likeliest tokens only where it draws; sets the seed while
another request is drawing; leaves the stop text in the answer; reads prompts that are longer than the model can; goes on
writing what nobody waits for; and says errors in a form of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

import jinja2
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from transformers.cli.serving.chat_completion import UNUSED_CHAT_COMPLETION_FIELDS, ChatCompletionHandler
from transformers.cli.serving.completion import UNUSED_LEGACY_COMPLETION_FIELDS, CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerateManager, GenerationState

ROUTES = ("/v1/chat/completions", "/v1/completions", "/health")
"""Its other routes would load models, or unload ours."""
HARMLESS = {"user", "metadata", "store", "stream_options", "service_tier", "parallel_tool_calls", "max_completion_tokens"}  # fmt: skip
UNUSED = UNUSED_CHAT_COMPLETION_FIELDS | UNUSED_LEGACY_COMPLETION_FIELDS
LACKS = tuple(sorted((UNUSED | {"frequency_penalty"}) - HARMLESS))
"""Fields that it would leave out; frequency_penalty it takes for another penalty."""


def application(where: str, name: str, dtype: str, device: str, window: int | None):
    """The routes for chat and completions with the model in folder `where`, which replies call `name`.

    window: tokens of prompt and answer together; None: what the model can.
    """
    manager = ModelManager(device=device, dtype=dtype, force_model=where)
    model, _ = manager.load_model_and_processor(manager.process_model_name(where))
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31
    state = State(Writer(min(window or most, most)))

    class Named:
        def _resolve_model(self, body):
            return name, *super()._resolve_model(body)[1:]  # else replies would say the folder

    chat = type("Chat", (Mended, Named, ChatCompletionHandler), {})(manager, state)
    completion = type("Completion", (Mended, Named, CompletionHandler), {})(manager, state)
    app = build_server(manager, chat, response_handler=None, transcription_handler=None, completion_handler=completion, generation_state=state)  # fmt: skip
    app.router.routes[:] = [r for r in app.router.routes if getattr(r, "path", "") in ROUTES]
    app.add_exception_handler(HTTPException, _refused)
    return app


async def _refused(request, e: HTTPException) -> JSONResponse:
    status = 400 if e.status_code == 422 else e.status_code
    body = {"message": str(e.detail), "type": "invalid_request_error", "code": status}
    return JSONResponse({"error": body}, status)


class Mended:
    """What both handlers do with a request before they answer it."""

    async def handle_request(self, body: dict, request_id: str):
        messages = body.get("messages", [{"role": "user"}])
        if not (isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages)):
            raise HTTPException(400, "messages: must be a list of objects with a role.")
        try:
            return await super().handle_request(body, request_id)
        except jinja2.TemplateError as e:
            raise HTTPException(400, f"messages: the model's chat template refuses them: {e}") from None

    def _build_generation_config(self, body: dict, defaults, use_cb: bool = False):
        config = super()._build_generation_config(body | {"seed": None}, defaults, use_cb)
        config.do_sample = config.temperature is None or config.temperature > 0  # 1 where nobody says, as vLLM has it
        config.top_k = config.top_k or 0
        if config.sequence_bias:  # it wants no integers, which clients send
            config.sequence_bias = {ids: float(bias) for ids, bias in config.sequence_bias.items()}
        config.seed = body.get("seed")
        return config


class State(GenerationState):
    def __init__(self, writer: Writer):
        super().__init__(continuous_batching=False)
        self.writer = writer

    def get_manager(self, model_id, use_cb=False):
        return self.writer


class Writer(GenerateManager):
    """One answer after the other, in one thread. window: tokens of prompt and answer together."""

    def __init__(self, window: int):
        super().__init__()
        self.window = window
        self.seed: int | None = None
        """Of the request that is handed over; whoever sets it hands over before anybody else can run."""

    def generate_streaming(self, model, processor, inputs, gen_config, request_id, response_parser=None):
        self._fit(inputs, gen_config)
        queue, streamer = super().generate_streaming(model, processor, inputs, gen_config, request_id, response_parser)
        return Stopped(queue, stops(gen_config)), streamer

    async def generate_non_streaming(self, model, processor, inputs, gen_config, request_id):
        self._fit(inputs, gen_config)
        waiting = Waiting()

        def write():
            try:
                return model.generate(**inputs, generation_config=gen_config, tokenizer=processor, streamer=waiting)
            except Abandoned:
                return None

        try:
            ids_1T = await asyncio.shield(self.async_submit(write))
        except asyncio.CancelledError:
            waiting.nobody = True
            raise
        written_T = ids_1T[0, inputs["input_ids"].shape[-1] :]
        text = processor.decode(written_T, skip_special_tokens=True)
        return Stopped(None, stops(gen_config)).cut(text, True), len(ids_1T[0]) - len(written_T), written_T

    def submit(self, fn, *args, **kwargs):
        return super().submit(self._seeded(fn), *args, **kwargs)

    def async_submit(self, fn, *args, **kwargs):
        return super().async_submit(self._seeded(fn), *args, **kwargs)

    def _seeded(self, fn):
        import torch

        seed = self.seed

        def run(*args, **kwargs):
            if seed is not None:
                torch.manual_seed(seed)
            return fn(*args, **kwargs)

        return run

    def _fit(self, inputs, config) -> None:
        length = inputs["input_ids"].shape[-1]
        if length >= self.window:
            raise HTTPException(400, f"The prompt has {length} tokens; with its answer it can have {self.window}.")
        config.max_new_tokens = min(config.max_new_tokens or self.window, self.window - length)
        self.seed = config.seed


class Abandoned(Exception):
    """Nobody waits for the answer."""


class Waiting:
    """A streamer that streams nothing, and ends the writing once nobody waits."""

    nobody = False

    def put(self, value) -> None:
        if self.nobody:
            raise Abandoned

    def end(self) -> None: ...


class Stopped:
    """A queue's texts up to the first stop text, which may begin in one and end in a later one. None ends them."""

    def __init__(self, queue: asyncio.Queue | None, texts: list[str]):
        self.queue, self.texts = queue, texts
        self.held, self.over = "", False

    async def get(self) -> Any:
        return self._next(await self.queue.get())

    def get_nowait(self) -> Any:
        return self._next(self.queue.get_nowait())

    def _next(self, item):
        if item is None and self.held:
            self.queue.put_nowait(None)
            return self.cut("", True)
        return self.cut(item, False) if type(item) is str else item  # reasoning is a str of its own kind

    def cut(self, text: str, last: bool) -> str:
        """What of `text` can be said by now. last: nothing comes after it."""
        text, self.held = self.held + text, ""
        if self.over:
            return ""
        if at := [text.index(x) for x in self.texts if x in text]:
            self.over = True
            return text[: min(at)]
        begun = (n for n in range(len(text), 0, -1) if any(x.startswith(text[-n:]) for x in self.texts))
        count = 0 if last else next(begun, 0)
        self.held = text[len(text) - count :]
        return text[: len(text) - count]


def stops(config) -> list[str]:
    texts = config.stop_strings or []
    return [texts] if isinstance(texts, str) else texts
