"""Explains a failure in one paragraph: the cause, the evidence, and the remedy.

Ray retries after any error in a worker. Errors that would recur (NaN, a misspelt column, a full disk) stop the job at once; after
the loss of a worker or of the connection to a store, the job is retried from the last checkpoint (`worth_retrying`).
"""

from __future__ import annotations

import errno
import re

from lib.run import Run


class StopTraining(RuntimeError):
    """Raised in a worker for an error that a retry can't fix; its text is the explanation that the user sees."""


class ClusterStopTraining(StopTraining):
    """Raised at a checkpoint after the cluster asked its jobs to stop, for example because its budget is used up."""


KNOWN: list[tuple[str, bool, str, str]] = [
    # (pattern in the error's text, whether a retry can help, cause, remedy)
    (r"StopTraining: (.*)", False, "{0}", ""),
    (r"NotStarted: (.*)", True, "{0}", ""),
    (
        # On a full disk, torch.save doesn't notice the failed write until it finds the archive shorter than expected.
        r"No space left on device|Disk quota exceeded|Errno 28|inline_container\.cc.*unexpected pos|PytorchStreamWriter failed",
        False,
        "The disk is full.",
        "Free space where the run is, keep fewer checkpoints (train.save_total_limit), or train an adapter (model.adapter: lora).",
    ),
    (
        r"CUDA out of memory|torch\.OutOfMemoryError|OutOfMemoryError: CUDA",
        False,
        "The GPU ran out of memory.",
        "Lower scale.micro_batch (the global batch stays as it is) or train.max_length, set train.gradient_checkpointing: true, "
        "model.adapter: lora, model.quantization: 4bit, or scale.strategy: zero3 with more workers.",
    ),
    (
        r"no kernel image is available",
        False,
        "The installed torch has no kernels for this GPU model.",
        "Rent another model (gpus in the ladder of the cluster's YAML), or train on CPUs: scale.device: cpu.",
    ),
    (
        r"can't allocate memory|Cannot allocate memory|MemoryError|OutOfMemoryError|memory monitor|due to the node running low on memory",
        True,
        "The machine ran out of memory and a worker was killed.",
        "Lower scale.micro_batch, scale.workers or train.max_length, or set model.adapter: lora.",
    ),
    (
        r"EndpointConnectionError|Could not connect to the endpoint|ConnectTimeoutError|ClientConnectorError|NoSuchBucket|"
        r"The specified bucket does not exist|Forbidden|AccessDenied|InvalidAccessKeyId|NoCredentialsError|Unable to locate credentials",
        True,
        "The store that holds the run can't be reached.",
        "Check the bucket's name, AWS_ENDPOINT_URL and the credentials, which every node needs (ray job submit --runtime-env FILE, with env_vars in it), then --resume.",
    ),
    (
        r"ActorDiedError|ActorUnavailableError|SYSTEM_ERROR|worker process .* died|WorkerCrashedError|NodeDiedError|Connection closed by peer|"
        r"Connection closed by remote peer|Connection reset by peer|Broken pipe|Socket Timeout|Timed out waiting .*ms|"
        r"DistBackendError|ncclRemoteError|NCCL error|WorkerHealthCheck|unexpected system error|has died",
        True,
        "A worker was lost: its process or node ended (killed, preempted or out of memory).",
        "Continue from the last checkpoint with --resume; raise scale.max_failures to let Ray do so more often.",
    ),
    (
        r"Insufficient cluster resources",
        False,
        "The cluster has no room for so many workers at the same time.",
        "Lower scale.workers or scale.cpus_per_worker, or raise max_workers in the cluster's YAML.",
    ),
    (
        r"WorkerGroupStartupTimeout|insufficient resources|cannot be scheduled",
        True,
        "The workers could not be placed: the cluster has too few free CPUs or GPUs.",
        "Lower scale.workers, or add nodes; `ray status` shows what is free.",
    ),
]


def text_of(error: BaseException) -> str:
    """Returns "Type: message" lines of the error, its causes, and the workers' errors that Ray Train collected."""
    parts, seen = [], set()
    queue: list[BaseException | None] = [error]
    while queue:
        e = queue.pop(0)
        if e is None or id(e) in seen:
            continue
        seen.add(id(e))
        parts.append(f"{type(e).__name__}: {e}")
        queue += [getattr(e, "_base_exc", None), e.__cause__, getattr(e, "controller_failure", None)]
        queue += list(getattr(e, "worker_failures", {}).values())
    return "\n".join(parts)


def _match(text: str) -> tuple[bool, str, str, str] | None:
    """Returns (whether a retry can help, cause, evidence line, remedy) of the first known failure found in `text`."""
    for pattern, retry, cause, remedy in KNOWN:
        m = re.search(pattern, text)
        if m:
            line = next(x.strip() for x in text.splitlines() if m.group(0).splitlines()[0] in x)
            return retry, cause.format(*m.groups()), line, remedy
    return None


def known(error: BaseException) -> bool:
    """Whether the error is a known failure, for which `explain` gives a cause and a remedy."""
    return _match(text_of(error)) is not None


def explain(error: BaseException, run: Run | None = None) -> str:
    """Returns one paragraph for the user: cause, evidence, remedy, and with a run also its last whole checkpoint."""
    text = text_of(error)
    found = _match(text)
    if found:
        _, cause, line, remedy = found
        evidence = "" if line.endswith(cause) else f" Evidence: {line[:300]}"
        paragraph = f"{cause}{evidence}" + (f" Remedy: {remedy}" if remedy else "")
    else:
        lines = [x.strip() for x in text.splitlines() if re.match(r"\s*[\w.]*(Error|Exception|Interrupt)\b", x)]
        paragraph = f"The job failed: {(lines or [text])[-1][:600]}"
    if run:
        from lib.runtime import checkpoint

        try:
            step, _ = checkpoint.latest(run)
        except Exception as e:  # the store itself may have failed; that must not hide the original error
            return f"{paragraph} (The run can't be read to look for checkpoints: {type(e).__name__}.)"
        paragraph += f" Last whole checkpoint: {f'step {step}' if step else 'none'}."
    return paragraph


def worth_retrying(error: BaseException) -> bool:
    """Whether Ray should restart the workers. False for unknown errors: a user's code would raise them again."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return False
    found = _match(text_of(error))
    return found[0] if found else False
