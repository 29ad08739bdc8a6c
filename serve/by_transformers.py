"""`transformers serve` with one model, corrected where transformers 5.19 behaves differently from vLLM and OpenAI.

Without these corrections it answers one request at a time; decodes greedily whatever the temperature, and from the 50 likeliest
tokens only where it samples; sets the seed while another request is sampling; leaves the stop text in the answer; accepts prompts
longer than the model's window; continues generating after the client disconnects; and reports errors in its own format. Its own
continuous batching (--continuous-batching) applies the first request's temperature, top_p etc. to all later ones.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from functools import partial

import jinja2
import torch
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from transformers import AutoModelForCausalLM
from transformers.cli.serving.chat_completion import UNUSED_CHAT_COMPLETION_FIELDS, ChatCompletionHandler
from transformers.cli.serving.completion import UNUSED_LEGACY_COMPLETION_FIELDS, CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import DirectStreamer, GenerateManager, GenerationState, Modality, _StreamError

from lib.generation.sampling import Sampling
from lib.models import cpu_attention, cpu_linear, soft_prompt, unmerged
from serve import fields
from serve.batch import Batch, Row
from serve.stop_texts import Stopped

ROUTES = ("/v1/chat/completions", "/v1/completions", "/health")
"""Routes that are kept. Its other routes would load models, or unload ours."""
HARMLESS = {"user", "metadata", "store", "stream_options", "service_tier", "parallel_tool_calls", "max_completion_tokens"}  # fmt: skip
UNUSED = UNUSED_CHAT_COMPLETION_FIELDS | UNUSED_LEGACY_COMPLETION_FIELDS
LACKS = tuple(sorted((UNUSED | {"frequency_penalty"}) - HARMLESS))
"""Fields that it would ignore; it would treat frequency_penalty as a different penalty."""


def application(where: str, name: str, dtype: str, device: str, window: int | None, most: int = 32):
    """Returns the ASGI application for chat and completions with the model in folder `where`, called `name` in replies.

    window: most tokens of prompt and answer together; None: the model's own limit. most: answers generated at a time.
    """
    manager = Manager(device=device, dtype=dtype, force_model=where)
    model, processor = manager.load_model_and_processor(manager.process_model_name(where))
    cpu_attention.install(model)
    cpu_linear.install(model)
    soft_prompt.suppress(model)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31
    state = State(Writer(model, processor, min(window or longest, longest), most))
    reads = {
        "template": str(processor.chat_template or ""),
        "only_text": manager.get_model_modality(model, processor) == Modality.LLM,
    }

    class Named:
        def _resolve_model(self, body):
            return name, *super()._resolve_model(body)[1:]  # otherwise replies would name the folder

    chat = type("Chat", (Mended, Named, ChatCompletionHandler), {"needs": "messages", "reads": reads})(manager, state)
    completion = type("Completion", (Mended, Named, CompletionHandler), {"needs": "prompt", "reads": reads})(
        manager, state
    )
    app = build_server(manager, chat, response_handler=None, transcription_handler=None, completion_handler=completion, generation_state=state)  # fmt: skip
    app.router.routes[:] = [r for r in app.router.routes if getattr(r, "path", "") in ROUTES]
    app.add_exception_handler(HTTPException, _refused)
    return app


class Manager(ModelManager):
    def _load_model(self, model_id_and_revision: str, **kwargs):
        """Loads also a model whose adapter is apart from its base."""
        folder = model_id_and_revision.split("@")[0]
        if not unmerged.is_unmerged(folder):
            return super()._load_model(model_id_and_revision, **kwargs)
        how = {"dtype": self.dtype, "device_map": self.device, "attn_implementation": self.attn_implementation}
        return unmerged.load(AutoModelForCausalLM, folder, **how)


async def _refused(request, e: HTTPException) -> JSONResponse:
    status = 400 if e.status_code == 422 else e.status_code
    body = {"message": str(e.detail), "type": "invalid_request_error", "code": status}
    return JSONResponse({"error": body}, status)


class Mended:
    """Corrections to both request handlers. needs: the required field (messages or prompt); reads: the model's properties that
    serve/fields.py checks against."""

    needs: str
    reads: dict

    async def handle_request(self, body: dict, request_id: str):
        body = {k: v for k, v in body.items() if v is not None}
        try:
            fields.check(body, self.needs, self.generation_state.writer.vocabulary, **self.reads)
        except ValueError as e:
            raise HTTPException(400, str(e)) from None
        try:
            return await super().handle_request(body, request_id)
        except jinja2.TemplateError as e:
            raise HTTPException(400, f"messages: the model's chat template rejects them: {e}") from None

    @staticmethod
    def get_processor_inputs_from_messages(messages: list[dict], modality) -> list[dict]:
        """Adds what transformers drops: a message's content beside its tool calls, its reasoning and its name."""
        read = ChatCompletionHandler.get_processor_inputs_from_messages
        made = read(messages, modality)
        for message, given in zip(made, messages, strict=True):
            if given.get("tool_calls") and given.get("content"):
                message |= read([{k: given[k] for k in ("role", "content")}], modality)[0]
            message |= {k: given[k] for k in ("reasoning_content", "name") if given.get(k) is not None}
        return made

    def _build_generation_config(self, body: dict, defaults, use_cb: bool = False):
        config = super()._build_generation_config(body | {"seed": None}, defaults, use_cb)
        config.do_sample = config.temperature is None or config.temperature > 0  # the default is 1, as in vLLM
        config.top_k = config.top_k or 0
        if config.sequence_bias:  # clients send integers, which transformers rejects
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
    """Generates answers in a batch (serve/batch.py); one that the batch can't handle, such as beams or an image, alone.

    window: most tokens of prompt and answer together; most: answers at a time.
    """

    def __init__(self, model, tokenizer, window: int, most: int):
        super().__init__()
        self.window, self.turn = window, threading.Lock()
        self.vocabulary = model.config.get_text_config().vocab_size
        self.seed: int | None = None
        """Seed of the stream that is being submitted. No other coroutine can run between setting and submitting it."""
        text = partial(tokenizer.decode, skip_special_tokens=True)
        self.batch = Batch(model, text, str(model.device), most, self.turn)

    def generate_streaming(self, model, processor, inputs, gen_config, request_id, response_parser=None):
        self._fit(inputs, gen_config)
        if not plain(inputs, gen_config):
            self.seed = gen_config.seed
            queue, streamer = super().generate_streaming(
                model, processor, inputs, gen_config, request_id, response_parser
            )
            return Stopped(queue, stops(gen_config)), streamer
        queue: asyncio.Queue = asyncio.Queue()
        loop = asyncio.get_running_loop()
        streamer = Streamer(getattr(processor, "tokenizer", processor)._tokenizer, loop, queue, response_parser)
        streamer.put(None)  # stands for the prompt, which the streamer skips

        def done(error: Exception | None) -> None:
            if error:
                loop.call_soon_threadsafe(queue.put_nowait, _StreamError(str(error)))
            else:
                streamer.end()

        streamer.row = row(inputs, gen_config, lambda token: streamer.put(torch.tensor([token])), done)
        self.batch.add(streamer.row)
        return Stopped(queue, stops(gen_config)), streamer

    async def generate_non_streaming(self, model, processor, inputs, gen_config, request_id):
        self._fit(inputs, gen_config)
        written = await (self._together if plain(inputs, gen_config) else partial(self._alone, model, processor))(inputs, gen_config)  # fmt: skip
        text = processor.decode(written, skip_special_tokens=True)
        return Stopped(None, stops(gen_config)).cut(text, True), inputs["input_ids"].shape[-1], written

    async def _together(self, inputs, config) -> list[int]:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def end(error: Exception | None) -> None:
            if not ended.done():
                ended.set_exception(error) if error else ended.set_result(None)

        asked = row(inputs, config, lambda token: None, lambda error: loop.call_soon_threadsafe(end, error))
        self.batch.add(asked)
        try:
            await ended
        finally:
            asked.gone = True
        return asked.tokens

    async def _alone(self, model, processor, inputs, config) -> list[int]:
        waiting = Waiting()

        def write():
            try:
                return model.generate(**inputs, generation_config=config, tokenizer=processor, streamer=waiting)
            except Abandoned:
                return None

        try:
            ids_1T = await asyncio.shield(self.async_submit(self._in_turn(write, config.seed)))
        except asyncio.CancelledError:
            waiting.nobody = True
            raise
        return ids_1T[0, inputs["input_ids"].shape[-1] :].tolist()

    def submit(self, fn, *args, **kwargs):
        """Runs the work of generate_streaming in its thread, one at a time."""
        return super().submit(self._in_turn(fn, self.seed), *args, **kwargs)

    def _in_turn(self, write, seed: int | None):
        def run(*args, **kwargs):
            with self.turn:
                if seed is not None:
                    torch.manual_seed(seed)
                return write(*args, **kwargs)

        return run

    def _fit(self, inputs, config) -> None:
        length = inputs["input_ids"].shape[-1]
        if length >= self.window:
            raise HTTPException(400, f"The prompt has {length} tokens; with its answer it may have {self.window}.")
        config.max_new_tokens = min(config.max_new_tokens or self.window, self.window - length)


class Streamer(DirectStreamer):
    row: Row

    def cancel(self) -> None:
        super().cancel()
        self.row.gone = True


TOGETHER = {
    "max_new_tokens", "max_length", "do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop_strings",
    "sequence_bias", "seed", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "use_cache",
}  # fmt: skip
"""Settings of a GenerationConfig that the batch supports, or that have no effect."""


def plain(inputs, config) -> bool:
    """Returns whether the batch can generate the answer."""
    settings = {k for k, v in config.to_diff_dict().items() if v not in (None, False) and not k.startswith("_")}
    return set(inputs) <= {"input_ids", "attention_mask", "token_type_ids"} and settings <= TOGETHER


def row(inputs, config, put, done) -> Row:
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    temperature = (1.0 if config.temperature is None else config.temperature) if config.do_sample else 0.0
    sampling = Sampling(
        temperature, 1.0 if config.top_p is None else config.top_p, config.top_k or 0, config.min_p or 0.0,
        config.repetition_penalty or 1.0, config.max_new_tokens,
        secrets.randbits(62) if config.seed is None else config.seed, stop=tuple(stops(config)),
    )  # fmt: skip
    bias = {ids[0]: bias for ids, bias in (config.sequence_bias or {}).items()}
    return Row(inputs["input_ids"][0].tolist(), sampling, frozenset(e for e in ends if e is not None), put, done, bias)


class Abandoned(Exception):
    """The client has disconnected."""


class Waiting:
    """A streamer that streams nothing and stops the generation once the client has disconnected."""

    nobody = False

    def put(self, value) -> None:
        if self.nobody:
            raise Abandoned

    def end(self) -> None: ...


def stops(config) -> list[str]:
    texts = config.stop_strings or []
    return [texts] if isinstance(texts, str) else texts
