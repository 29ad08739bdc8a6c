"""A teacher's distributions over the next token, at each labelled place of the rows that a student trains on.

Whole     the model itself, beside the student on every worker: all probabilities
Kept      the k likeliest tokens and the rest as one, computed once for every row before training and stored on disk or s3; then
          the teacher is unloaded, and later epochs, restarts and other jobs read the files
Served    the same from a Ray Serve application (serve/teacher.py), requested while the student works on the batch before

A divergence over k tokens and a rest is at most the divergence over all tokens (log-sum inequality). The metric `outside` is the
teacher's probability mass in the rest; lib/methods/distillation/trainer.py reports by how much the loss is smaller.

Shapes: B rows of a batch, T tokens, N labelled places of the batch row by row, K kept tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lib.run import Run, cache
from lib.runtime import manifest
from lib.runtime.logs import say

if TYPE_CHECKING:
    import torch

SHARD = 64
"""Rows that are computed and stored together."""
LEAST = -100.0
"""Lower bound of the rest's log probability, which may be −inf."""
AHEAD = 256
"""Most requests without a fetched reply; more than the batches of a step."""
SERVED = "serve:"
"""Prefix of a Ray Serve application's name in train.teacher."""


@dataclass
class Said:
    """A teacher's distributions. tokens_NK: the likeliest tokens, or None for the whole vocabulary in order; logp_NK: their log
    probabilities, with one more column for the rest if there is tokens_NK."""

    tokens_NK: torch.Tensor | None
    logp_NK: torch.Tensor


class Teacher(ABC):
    def ahead(self, batch: dict) -> None:  # noqa: B027 — only a remote teacher needs it
        """Announces that about(batch) will be called soon."""

    @abstractmethod
    def about(self, batch: dict) -> Said:
        """Returns the distributions at the labelled places of a batch (input_ids, attention_mask, labels: each (B, T))."""


class Whole(Teacher):
    """The teacher model itself. tokens: the tokenizer's largest id plus one; models of a family pad their vocabularies differently
    beyond it."""

    def __init__(self, model, temperature: float, tokens: int):
        self.model, self.temperature, self.tokens = model.eval().requires_grad_(False), temperature, tokens

    def about(self, batch):
        import torch

        with torch.no_grad():
            return Said(None, (self._logits(batch) / self.temperature).log_softmax(-1))

    def likeliest(self, batch: dict, k: int) -> Said:
        import torch

        with torch.no_grad():
            return grouped(self._logits(batch) / self.temperature, k)

    def _logits(self, batch: dict):
        asked = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return logits(self.model, asked, labelled(batch))[0][:, : self.tokens]


class Kept(Teacher):
    """Stored distributions. rows: (ids, labels) of every row that will be requested; load: loads the model, called only if shards are
    missing; collate: makes a batch of a list of rows; share: (rank, number of workers), among which the shards are divided."""

    def __init__(
        self, folder: str, rows: list[tuple[list[int], list[int]]], identity: str, k: int, temperature: float,
        load: Callable[[], Whole], collate: Callable, device, share: tuple[int, int], batch_rows: int,
        barrier: Callable[[], None],
    ):  # fmt: skip
        key = hashlib.sha256(repr((identity, k, temperature, rows)).encode()).hexdigest()[:16]
        self.store, self.k, self.device = Run(f"{folder}/{key}"), k, device
        shards = [rows[i : i + SHARD] for i in range(0, len(rows), SHARD)]
        there = set(self.store.folders(""))
        # Each worker takes fixed shard numbers. Missing shards couldn't be divided: workers that look later see fewer of them.
        mine = [
            i
            for i in range(len(shards))[share[0] :: share[1]]
            if f"{i:06}" not in there or not whole(self.store, f"{i:06}")
        ]
        self.model = load() if mine else None
        for n, i in enumerate(mine):
            self._work_out(i, shards[i], collate, batch_rows)
            if share[0] == 0 and (n + 1) % max(1, len(mine) // 5) == 0:
                say(f"teacher: {n + 1} of {len(mine)} shards kept in {self.store.path}")
        barrier()
        self.files = [self._open(i) for i in range(len(shards))]
        self.place = {}
        for i, shard in enumerate(shards):
            start = 0
            for ids, labels in shard:
                count = sum(label != -100 for label in labels[1:])
                self.place[_key(ids, labels)] = (i, start, start + count)
                start += count

    def about(self, batch):
        import torch

        tokens, logp = [], []
        for ids, labels in unpadded(batch):
            i, start, end = self.place[_key(ids, labels)]
            tokens.append(self.files[i].get_slice("tokens")[start:end])
            logp.append(self.files[i].get_slice("logp")[start:end])
        return Said(torch.cat(tokens).long().to(self.device), torch.cat(logp).to(self.device))

    def _work_out(self, i: int, rows: list, collate: Callable, batch_rows: int) -> None:
        import torch
        from safetensors.torch import save_file

        found: dict[int, Said] = {}
        order = sorted(range(len(rows)), key=lambda r: -len(rows[r][0]))
        for at in range(0, len(order), batch_rows):
            asked = order[at : at + batch_rows]
            batch = collate([{"input_ids": rows[r][0], "labels": rows[r][1]} for r in asked])
            batch = {name: value.to(self.device) for name, value in batch.items()}
            likeliest, start = self.model.likeliest(batch, self.k), 0
            for r, count in zip(asked, labelled(batch).sum(1).tolist(), strict=True):
                part = slice(start, start + count)
                found[r] = Said(likeliest.tokens_NK[part], likeliest.logp_NK[part])
                start += count
        columns = {
            "tokens": torch.cat([found[r].tokens_NK for r in range(len(rows))]).int().cpu(),
            "logp": torch.cat([found[r].logp_NK for r in range(len(rows))]).cpu(),
        }
        with tempfile.TemporaryDirectory() as folder:
            save_file({name: c.contiguous() for name, c in columns.items()}, f"{folder}/said.safetensors")
            manifest.seal(Path(folder))
            self.store.put(folder, f"{i:06}")

    def _open(self, i: int):
        from safetensors import safe_open

        return safe_open(local(self.store, f"{i:06}") / "said.safetensors", "pt")


def whole(store: Run, shard: str) -> bool:
    """Whether a stored shard is as it was written. Prints a line about a damaged one, which the caller computes again."""
    if why := manifest.damage(store, shard):
        say(f"teacher: {store.at(shard)}: {why}; it is computed again")
    return not why


def local(store: Run, shard: str) -> Path:
    """Returns a shard's local folder. A shard of a remote store is downloaded to the cache, again if the cached copy is damaged."""
    if not store.remote:
        return Path(store.at(shard))
    from filelock import FileLock

    kept = Run(str(cache("teacher", hashlib.sha256(store.path.encode()).hexdigest()[:16])))
    Path(kept.path).mkdir(parents=True, exist_ok=True)
    listed = f"{shard}/{manifest.DONE}"
    with FileLock(kept.at(f"{shard}.lock")):
        if manifest.damage(kept, shard) or kept.read_text(listed) != store.read_text(listed):
            kept.remove(shard)
            store.get(shard, kept.at(shard))
    return Path(kept.at(shard))


class Served(Teacher):
    """A teacher served by the Ray Serve application `name` of the training cluster. Requests to a lost replica are retried on
    another. A batch is one request, so the reply doesn't depend on the replica. patience_s: seconds until a request fails."""

    def __init__(self, name: str, k: int, temperature: float, device, patience_s: float = 600.0):
        from ray import serve

        self.handle = serve.get_app_handle(name)
        self.k, self.temperature, self.device, self.patience_s = k, temperature, device, patience_s
        self.asked: dict[str, object] = {}

    def who(self) -> dict:
        return self.handle.who.remote().result(timeout_s=self.patience_s)

    def ahead(self, batch):
        self.asked[self._name(batch)] = self._ask(batch)
        if len(self.asked) > AHEAD:  # replies for batches that the student answered itself are never fetched
            self.asked.pop(next(iter(self.asked)))

    def about(self, batch):
        import torch
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import RayServeException
        from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

        def lost(e: BaseException) -> bool:  # not RayTaskError: the replica's own code would raise it again
            return isinstance(e, RayError | RayServeException | TimeoutError) and not isinstance(e, RayTaskError)

        pending = self.asked.pop(self._name(batch), None)
        retrying = Retrying(
            retry=retry_if_exception(lost), stop=stop_after_delay(self.patience_s), wait=wait_random_exponential(0.2, max=10),
            reraise=True,
        )  # fmt: skip
        for attempt in retrying:
            with attempt:
                pending, response = None, pending or self._ask(batch)
                tokens, logp = response.result(timeout_s=self.patience_s)
        return Said(torch.tensor(tokens, device=self.device).long(), torch.tensor(logp, device=self.device))

    def _ask(self, batch: dict):
        rows = unpadded(batch)
        return self.handle.about.remote([ids for ids, _ in rows], [lab for _, lab in rows], self.k, self.temperature)

    def _name(self, batch: dict) -> str:
        return _key(batch["input_ids"].tolist(), batch["labels"].tolist())


def logits(model, asked: dict, at_BS):
    """Returns (logits (N, V) in float32 at the places at_BS, S ≤ T, and the model's outputs). The output layer is computed only for
    columns in which some row has a place: most of a typical row is prompt, and the head is a third of a small model."""
    somewhere = at_BS.any(0).nonzero()[:, 0]
    outputs = model(**asked, use_cache=False, logits_to_keep=somewhere)
    return outputs.logits[at_BS[:, somewhere]].float(), outputs


def width(tokenizer) -> int:
    """Returns the tokenizer's largest id plus one."""
    return max(tokenizer.get_vocab().values()) + 1


def labelled(batch: dict):
    """Returns bool (B, T−1): whether the token after each place has a label."""
    return batch["labels"][:, 1:] != -100


def unpadded(batch: dict) -> list[tuple[list[int], list[int]]]:
    """Returns (ids, labels) of each row, without the padding at its end."""
    lengths = batch["attention_mask"].sum(1).tolist()
    rows = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), lengths, strict=True)
    return [(ids[:n], labels[:n]) for ids, labels, n in rows]


def grouped(logits_NV, k: int) -> Said:
    """Returns the k likeliest tokens, and all others grouped as one."""
    tokens_NK = logits_NV.topk(min(k, logits_NV.shape[-1] - 1)).indices
    return Said(tokens_NK, grouped_as(logits_NV, tokens_NK))


def grouped_as(logits_NV, tokens_NK):
    """Returns (N, K + 1): log probabilities of the given tokens and of all others together, from logits or log probabilities. Reads
    the vocabulary once, unlike a softmax followed by a sum over the rest."""
    import torch

    rest_N1 = logits_NV.scatter(1, tokens_NK, -torch.inf).logsumexp(-1, keepdim=True)
    logp_NK = torch.cat([logits_NV.gather(1, tokens_NK), rest_N1], 1).log_softmax(-1)
    return torch.cat([logp_NK[:, :-1], logp_NK[:, -1:].clamp(min=LEAST)], 1)


def _key(ids, labels) -> str:
    return hashlib.sha256(repr((ids, labels)).encode()).hexdigest()
