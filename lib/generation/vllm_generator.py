"""A language model run by vLLM: continuous batching and paged attention, on GPU and CPU.

It runs in this process, without child processes (VLLM_ENABLE_V1_MULTIPROCESSING=0). For vLLM's server see serve/engines.py.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from importlib import metadata

from lib.generation.generator import Answer, Begun, Generator, Messages
from lib.generation.sampling import Sampling, seed
from lib.models import quantized_formats


def installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def environment(log: str, device: str) -> None:
    """Sets vLLM's environment variables, unless the user has set them. log: the lowest log level that it prints."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", log)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; the default is a share of all memory for each process
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # by default two engines would share the first cores
    if device == "cpu":
        # Compilation would delay the first log probabilities by 10 to 20 s, without making later ones faster.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")


def check_kernels(base: str, device: str) -> None:
    """Raises ValueError if vLLM would load these weights but fail at its first request: the build that it uses on CPUs without AVX-512
    has no kernel for 4-bit weights (torch.ops._C.cpu_gemm_wna16). Call it on the machine that will run the model."""
    import torch

    packed = (quantized_formats.settings(base) or {}).get("format") == "pack-quantized"
    if packed and device == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        raise ValueError(
            f"{base} holds 4-bit weights, which vLLM can't compute with on this CPU: it lacks AVX-512. Say engine: transformers, or "
            "quantise the parent to 8 bits (jobs/quantize.py, method: w8a8)."
        )


@functools.cache
def version() -> str:
    """Returns vLLM's version. Raises PackageNotFoundError if it isn't installed."""
    names = ("vllm", "vllm-cpu")  # the build for CPUs is a distribution of its own
    return metadata.version(next((n for n in names if n in metadata.packages_distributions().get("vllm", [])), "vllm"))


class VllmGenerator(Generator):
    """The model in folder `model_dir`. A request's random draws, made by vLLM, depend only on (seed, prompt, number of the draw).
    Concurrent requests change results by rounding, as padding does (lib/generation/transformers_generator.py).
    """

    def __init__(
        self,
        model_dir: str,
        dtype: str = "float32",
        device: str = "cpu",
        trained_template: str | None = None,
        window: int = 1024,
    ):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        environment("ERROR", device)
        check_kernels(model_dir, device)
        from vllm import LLM

        super().__init__(model_dir, trained_template, window)
        self.llm = LLM(
            model_dir, dtype=dtype, enforce_eager=device == "cpu", distributed_executor_backend="uni",
            disable_log_stats=True, max_model_len=-1,
        )  # fmt: skip
        self.window = min(self.window, self.llm.model_config.max_model_len - 1)  # vLLM needs room for one more token

    def generate(self, prompts: Sequence[Messages | str | Begun], sampling: Sampling) -> list[list[Answer]]:
        from vllm import SamplingParams

        ids, parameters = [], []
        opened = [self.opened(prompt, sampling.begins) for prompt in prompts]
        asked, begun = [ids for ids, _ in opened], [given for _, given in opened]
        for read, room in zip(asked, self.room(asked, sampling.max_new_tokens), strict=True):
            for draw in range(sampling.n):
                ids.append(read)
                parameters.append(
                    SamplingParams(
                        temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, min_p=sampling.min_p,
                        repetition_penalty=sampling.repetition_penalty, max_tokens=room,
                        seed=seed(sampling, read, draw), stop=list(sampling.stop), include_stop_str_in_output=True,
                        stop_token_ids=sorted(self.ends),
                    )
                )  # fmt: skip
        written = [list(o.outputs[0].token_ids) for o in self._run(ids, parameters)]
        n = sampling.n
        return [[self.answer(begun[i], written[i * n + k]) for k in range(n)] for i in range(len(prompts))]

    def logprobs(self, pieces: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        from vllm import SamplingParams

        one = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        at = [i for i, (_, scored) in enumerate(pieces) if scored]
        found = [(0.0, True)] * len(pieces)
        outputs = self._run([pieces[i][0] + pieces[i][1] for i in at], [one] * len(at))
        for i, out in zip(at, outputs, strict=True):
            context, scored = pieces[i]
            logprobs = [out.prompt_logprobs[len(context) + j][t] for j, t in enumerate(scored)]
            found[i] = sum(x.logprob for x in logprobs), all(x.rank == 1 for x in logprobs)
        return found

    def _run(self, ids: list[list[int]], parameters: list) -> list:
        prompts = [{"prompt_token_ids": read} for read in ids]
        return self.llm.generate(prompts, parameters, use_tqdm=False) if prompts else []
