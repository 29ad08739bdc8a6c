"""What a teacher says about the rows that a student trains on: its distribution over the next token at each labelled place.

Whole     the model itself, beside the student on every worker: every probability
Kept      its k likeliest tokens and the rest as one, worked out once for every row before training, on disk or s3; then the
          teacher is let go, and later epochs, restarts and other jobs read
Served    the same from a Ray Serve application (serve/teacher.py), asked for a batch while the student works on the one before

Of k tokens and a rest, a divergence is at most what it is of all tokens (the log-sum inequality); `outside` says how much of the
teacher's mass is in the rest, and lib/distillation.py how much the loss is less.

Shapes: B rows of a batch, T tokens, N labelled places of the batch row by row, K kept tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lib import manifest
from lib.logs import say
from lib.run import Run, cache

SHARD = 64
"""Rows that are worked out and kept together."""
LEAST = -100.0
"""Log of a rest that is nothing."""
AHEAD = 256
"""Requests under way at most that nobody fetched yet; more than a step's batches."""
SERVED = "serve:"
"""Before the name of a Ray Serve application in train.teacher."""


@dataclass
class Said:
    """tokens_NK: the likeliest, None for all in order; logp_NK: their log-probabilities, and with tokens_NK one column more,
    the rest's."""

    tokens_NK: object
    logp_NK: object


class Teacher(ABC):
    def ahead(self, batch: dict) -> None:  # noqa: B027 — only one that is far away needs it
        """`batch` will be asked about soon."""

    @abstractmethod
    def about(self, batch: dict) -> Said:
        """Its distributions at the labelled places of a batch (input_ids, attention_mask, labels: each (B, T))."""


class Whole(Teacher):
    """tokens: the tokenizer's greatest id and one. Models of a family pad their vocabularies further, and not alike."""

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
    """rows: (ids, labels) of every row that will be asked about; load: the model, asked for only where something is missing;
    collate: lists of rows to a batch; share: (this worker's number, how many), each works out its share of the shards."""

    def __init__(
        self, folder: str, rows: list[tuple[list[int], list[int]]], identity: str, k: int, temperature: float,
        load: Callable[[], Whole], collate: Callable, device, share: tuple[int, int], batch_rows: int,
        barrier: Callable[[], None],
    ):  # fmt: skip
        said = hashlib.sha256(repr((identity, k, temperature, rows)).encode()).hexdigest()[:16]
        self.store, self.k, self.device = Run(f"{folder}/{said}"), k, device
        shards = [rows[i : i + SHARD] for i in range(0, len(rows), SHARD)]
        there = set(self.store.folders(""))
        # Each takes its own numbers, whatever is there: what is missing is another thing to a worker that looks later.
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
            said, start = self.model.likeliest(batch, self.k), 0
            for r, count in zip(asked, labelled(batch).sum(1).tolist(), strict=True):
                part = slice(start, start + count)
                found[r] = Said(said.tokens_NK[part], said.logp_NK[part])
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
    """Whether a kept shard is as it was written; one that isn't is said, to be worked out anew."""
    if why := manifest.damage(store, shard):
        say(f"teacher: {store.at(shard)}: {why}; it is worked out anew")
    return not why


def local(store: Run, shard: str) -> Path:
    """A shard's folder here; that of a remote store is downloaded to the cache, again where it was damaged there."""
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
    """name: the Ray Serve application, in the cluster that trains. A replica that is lost is asked again elsewhere; a batch is
    one request, so the answer is the same whoever gives it."""

    def __init__(self, name: str, k: int, temperature: float, device, patience_s: float = 600.0):
        from ray import serve

        self.handle = serve.get_app_handle(name)
        self.k, self.temperature, self.device, self.patience_s = k, temperature, device, patience_s
        self.asked: dict[str, object] = {}

    def who(self) -> dict:
        return self.handle.who.remote().result(timeout_s=self.patience_s)

    def ahead(self, batch):
        self.asked[self._name(batch)] = self._ask(batch)
        if len(self.asked) > AHEAD:  # of a batch that the student answered itself, nobody fetches the reply
            self.asked.pop(next(iter(self.asked)))

    def about(self, batch):
        import torch
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import RayServeException
        from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

        def lost(e: BaseException) -> bool:  # what the replica's own code raised, it would raise again
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
    """((N, V) float32 at the places given, (B, S) with S ≤ T, and the model's outputs). The vocabulary meets only the columns
    in which a row has a place: prompts are most of a usual row, and the head a third of a small model."""
    somewhere = at_BS.any(0).nonzero()[:, 0]
    outputs = model(**asked, use_cache=False, logits_to_keep=somewhere)
    return outputs.logits[at_BS[:, somewhere]].float(), outputs


def width(tokenizer) -> int:
    """Its greatest id and one."""
    return max(tokenizer.get_vocab().values()) + 1


def labelled(batch: dict):
    """(B, T−1) bool: whether the token after each place has a label."""
    return batch["labels"][:, 1:] != -100


def unpadded(batch: dict) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of each row, without the padding at its end."""
    lengths = batch["attention_mask"].sum(1).tolist()
    rows = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), lengths, strict=True)
    return [(ids[:n], labels[:n]) for ids, labels, n in rows]


def grouped(logits_NV, k: int) -> Said:
    """The k likeliest tokens, and all others as one."""
    tokens_NK = logits_NV.topk(min(k, logits_NV.shape[-1] - 1)).indices
    return Said(tokens_NK, grouped_as(logits_NV, tokens_NK))


def grouped_as(logits_NV, tokens_NK):
    """(N, K + 1): log-probabilities of the tokens given, and of all others together; of logits or of log-probabilities. The whole
    vocabulary is read once, as a softmax of it and then of the rest would not."""
    import torch

    rest_N1 = logits_NV.scatter(1, tokens_NK, -torch.inf).logsumexp(-1, keepdim=True)
    logp_NK = torch.cat([logits_NV.gather(1, tokens_NK), rest_N1], 1).log_softmax(-1)
    return torch.cat([logp_NK[:, :-1], logp_NK[:, -1:].clamp(min=LEAST)], 1)


def _key(ids, labels) -> str:
    return hashlib.sha256(repr((ids, labels)).encode()).hexdigest()
