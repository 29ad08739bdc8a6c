"""A language model run by transformers.

Shapes: B rows of one batch, T tokens (left-padded), C completion tokens, V vocabulary.

Rows are sorted by length, batched, and removed from the batch as they finish. Random draws depend only on (seed, prompt,
number of the draw), so answers depend on neither the batch size nor the order of the prompts, except for rounding, since
padding changes the order of sums. In float32, rounding changes an answer's log probability by about 1e-5, and answers stay
the same. In bfloat16 it changes it by up to 0.4 nats (mean 0.05; SmolLM2-135M, 24 tokens, batches of 32 against 1), and 12
of 32 greedy answers differed after a near-tie: in bfloat16 only the same batches give identical answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from lib.generation import speculative
from lib.generation.batching import batches, left_pad, positions
from lib.generation.generator import Answer, Begun, Generator, Messages
from lib.generation.kv_cache import Cached
from lib.generation.sampling import Sampling, choose, contrast, generator, penalise, race
from lib.generation.speculative import Draft, Drafter, Lookup


class TransformersGenerator(Generator):
    """A causal language model in folder `model_dir`, run by transformers."""

    def __init__(
        self,
        model_dir: str,
        dtype: str = "float32",
        device: str = "cpu",
        trained_template: str | None = None,
        batch_rows: int = 64,
        batch_tokens: int = 4096,
        window: int = 1024,
    ):
        import torch
        from transformers import AutoModelForCausalLM

        from lib.models import cpu_attention, cpu_linear, prefixes, soft_prompt, unmerged

        super().__init__(model_dir, trained_template, window)
        self.model = unmerged.load(AutoModelForCausalLM, model_dir, dtype=getattr(torch, dtype)).to(device).eval()
        cpu_attention.install(self.model)
        cpu_linear.install(self.model)
        with torch.no_grad():
            # compressed-tensors turns its integers into weights before the first pass through the whole model, which may come after
            # the decoder is used alone (_by_tree).
            self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))
        self.tree = prefixes.install(self.model)
        soft_prompt.suppress(self.model)
        self.device, self.batch_rows, self.batch_tokens = device, batch_rows, batch_tokens

    def generate(
        self,
        prompts: Sequence[Messages | str | Begun],
        sampling: Sampling,
        other: TransformersGenerator | None = None,
        drafter: Drafter | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[list[Answer]]:
        """Returns sampling.n answers per prompt. other: the amateur of contrastive decoding (sampling.amateur) or the drafting
        model (sampling.draft); drafter: used instead of `other`, for callers that need its counts. numbers: the number of each prompt's
        first draw; None: 0. Raises ValueError if `other` has another vocabulary."""
        import torch

        if other and other.encoder.tokenizer.get_vocab() != self.encoder.tokenizer.get_vocab():
            raise ValueError(
                f"decoding: {sampling.amateur or sampling.draft}: {other.encoder.model_dir} has another vocabulary than "
                f"{self.encoder.model_dir}, so their logits are of other tokens. Take a model of the same family."
            )
        amateur = other if sampling.amateur else None
        if sampling.draft and not drafter:
            drafter = other.drafter() if other else Lookup()
        opened = [self.opened(p, sampling.begins) for p in prompts]
        ids, begun = [each for each, _ in opened], [given for _, given in opened]
        weak = [amateur.opened(p, sampling.begins)[0] for p in prompts] if amateur else ids
        room = self.room(ids, sampling.max_new_tokens)
        if other:  # it reads the same answers
            room = list(map(min, room, other.room(weak, sampling.max_new_tokens)))
        found: dict[tuple[int, int], list[int]] = {}
        with torch.inference_mode():
            for longest in sorted(set(room), reverse=True):
                rows = [(i, k) for i in range(len(ids)) if room[i] == longest for k in range(sampling.n)]
                here = replace(sampling, max_new_tokens=longest)
                most = max(1, self.batch_rows // sampling.beams)
                for batch in batches(rows, [len(ids[i]) + longest for i, _ in rows], most, None):
                    asked = [(ids[i], weak[i]) for i, _ in batch]
                    first = numbers or [0] * len(ids)
                    dice = [generator(sampling, ids[i], first[i] + k, self.device) for i, k in batch]
                    found |= dict(zip(batch, self._write(asked, here, dice, amateur, drafter), strict=True))
        return [[self.answer(begun[i], found[i, k]) for k in range(sampling.n)] for i in range(len(ids))]

    def _write(self, asked: list[tuple[list[int], list[int]]], sampling: Sampling, dice: list, amateur, drafter):
        """Returns the tokens of the answers to one batch; arguments as in _decode."""
        prompts = [ids for ids, _ in asked]
        if sampling.beams > 1:
            return self._beam(prompts, sampling)
        if not drafter:
            return self._decode(asked, sampling, dice, amateur)
        read = Cached(self.model, prompts, self.encoder.pad, self.device)
        return speculative.decode(read, drafter, prompts, sampling, dice, partial(self._ended, stop=sampling.stop))

    def drafter(self) -> Draft:
        """Returns this model as the drafter of a larger one with the same tokens."""
        return Draft(self.model, self.encoder.pad, self.device, self.ends)

    def _beam(self, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
        """Returns the best of `sampling.beams` answers to each prompt, by transformers' beam search."""
        from transformers import GenerationConfig

        ids_BT, mask_BT = left_pad(prompts, self.encoder.pad, self.device)
        config = GenerationConfig(
            num_beams=sampling.beams, do_sample=False, max_new_tokens=sampling.max_new_tokens, pad_token_id=self.encoder.pad,
            eos_token_id=sorted(self.ends), repetition_penalty=sampling.repetition_penalty,
            stop_strings=list(sampling.stop) or None,
        )  # fmt: skip
        out_BT = self.model.generate(
            input_ids=ids_BT, attention_mask=mask_BT, generation_config=config, tokenizer=self.encoder.tokenizer
        )
        return [self._until_end(row) for row in out_BT[:, ids_BT.shape[1] :].tolist()]

    def _until_end(self, tokens: list[int]) -> list[int]:
        """Returns the tokens up to and including the first end token; the rest is padding."""
        at = next((i for i, t in enumerate(tokens) if t in self.ends), len(tokens) - 1)
        return tokens[: at + 1]

    def _decode(
        self, rows: list[tuple[list[int], list[int]]], sampling: Sampling, dice: list, amateur
    ) -> list[list[int]]:
        """Returns the tokens generated after each prompt, including the end token. rows: (this model's ids, the amateur's
        ids) of each prompt; dice: a torch.Generator per prompt."""
        import torch

        prompts = [ids for ids, _ in rows]
        read = [Cached(self.model, prompts, self.encoder.pad, self.device)]
        if amateur:
            read.append(Cached(amateur.model, [ids for _, ids in rows], amateur.encoder.pad, self.device))
        tokens: list[list[int]] = [[] for _ in prompts]
        alive = list(range(len(prompts)))  # the prompt behind each row that is still in the batch
        for step in range(sampling.max_new_tokens):
            logits_BV = contrast(*(r.logits_BV for r in read), sampling) if amateur else read[0].logits_BV
            if sampling.repetition_penalty != 1:
                logits_BV = penalise(logits_BV, [prompts[r] + tokens[r] for r in alive], sampling.repetition_penalty)
            numbers_BV = (
                race([dice[r] for r in alive], logits_BV.shape[-1], self.device) if sampling.temperature else None
            )
            next_B = choose(logits_BV, sampling, numbers_BV)
            for r, t in zip(alive, next_B.tolist(), strict=True):
                tokens[r].append(t)
            keep = [j for j, r in enumerate(alive) if not self._ended(tokens[r], sampling.stop)]
            if not keep or step == sampling.max_new_tokens - 1:
                break
            if len(keep) < len(alive):
                index = torch.tensor(keep, device=self.device)
                for cached in read:
                    cached.keep(index)
                alive, next_B = [alive[j] for j in keep], next_B[index]
            for cached in read:
                cached.feed(next_B[:, None])
        return tokens

    def _ended(self, tokens: list[int], stop: tuple[str, ...]) -> bool:
        if tokens[-1] in self.ends:
            return True
        if not stop:
            return False
        tail = self.encoder.text(
            tokens[-(8 + max(len(s) for s in stop)) :]
        )  # a token has at least one character, except parts of one
        return any(s in tail for s in stop)

    def logprobs(self, pieces: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        import torch

        result = [(0.0, True)] * len(pieces)
        alike: dict[tuple[int, ...], list[int]] = {}
        for i, (context, scored) in enumerate(pieces):
            if scored:
                alike.setdefault(tuple(context), []).append(i)
        several, alone = [], []
        for context, group in alike.items():
            longest = max(len(pieces[i][1]) for i in group)
            if len(group) == 1 or len(context) < longest:  # to share little would cost more than it saves
                alone += group
                continue
            most = max(1, min(self.batch_rows, self.batch_tokens // (len(context) + longest)))
            several += [group[k : k + most] for k in range(0, len(group), most)]
        with torch.inference_mode():
            lengths = [len(pieces[i][0]) + len(pieces[i][1]) for i in alone]
            # On a CPU a larger batch only adds padding, unless common prefixes are computed once.
            most = min(self.batch_tokens, 1024) if self.device == "cpu" and not self.tree else self.batch_tokens
            for batch in batches(alone, lengths, self.batch_rows, most):
                for i, logits_CV in zip(batch, self._whole([pieces[i] for i in batch]), strict=True):
                    result[i] = picked(logits_CV, pieces[i][1])
            # The question of a multiple-choice task is processed once, and then its answers.
            rows = max(1, self.batch_rows // max(map(len, several), default=1))
            lengths = [sum(len(pieces[i][0]) + len(pieces[i][1]) for i in g) for g in several]
            for batch in batches(several, lengths, rows, self.batch_tokens):
                order = [i for group in batch for i in group]
                for i, logits_CV in zip(order, self._after([pieces[i] for i in order]), strict=True):
                    result[i] = picked(logits_CV, pieces[i][1])
        return result

    def _whole(self, pieces: list[tuple[list[int], list[int]]]) -> Iterator:
        """Yields logits (C, V) of each piece's second part, from one pass over both parts."""
        # The last token is left out, because its prediction isn't needed.
        if self.tree:
            yield from self._by_tree(pieces)
            return
        ids_BT, mask_BT = left_pad([(a + b)[:-1] for a, b in pieces], self.encoder.pad, self.device)
        longest = max(len(b) for _, b in pieces)
        logits_BCV = self.model(
            input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions(mask_BT), use_cache=False,
            logits_to_keep=longest,
        ).logits  # fmt: skip
        yield from (logits_CV[-len(b) :] for logits_CV, (_, b) in zip(logits_BCV, pieces, strict=True))

    def _by_tree(self, pieces: list[tuple[list[int], list[int]]]) -> Iterator:
        """Does the same with lib/models/prefixes.py, which needs padding on the right."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = [torch.tensor((a + b)[:-1]) for a, b in pieces]
        mask_BT = pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
        decoder, head = self.model.base_model, self.model.get_output_embeddings()
        hidden_BTH = decoder(
            input_ids=pad_sequence(rows, batch_first=True), attention_mask=mask_BT, use_cache=False
        ).last_hidden_state
        for hidden_TH, (a, b) in zip(hidden_BTH, pieces, strict=True):
            yield head(hidden_TH[len(a) - 1 : len(a) + len(b) - 1])

    def _after(self, pieces: list[tuple[list[int], list[int]]]) -> Iterator:
        """Does the same for pieces with repeated first parts, which are processed only once, followed by the second parts."""
        import torch

        read = Cached(self.model, [a for a, _ in pieces], self.encoder.pad, self.device)
        first_BV, rest = read.logits_BV, [b[:-1] for _, b in pieces]
        if not (width := max(map(len, rest))):
            return (row_V[None] for row_V in first_BV)
        pad = self.encoder.pad
        ids_BC = torch.tensor([r + [pad] * (width - len(r)) for r in rest], device=self.device)
        fed_BC = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rest], device=self.device)
        logits_BCV = read.feed(ids_BC, fed_BC)
        return (
            torch.cat([row_V[None], logits_CV[: len(r)]])
            for row_V, logits_CV, r in zip(first_BV, logits_BCV, rest, strict=True)
        )


def picked(logits_CV, tokens: list[int]) -> tuple[float, bool]:
    """Returns (sum of log p of `tokens`, whether each was the likeliest) from their logits."""
    import torch

    logits_CV = logits_CV.float()
    picked_C = logits_CV.gather(1, torch.tensor(tokens, device=logits_CV.device)[:, None])[:, 0]
    likeliest = bool((picked_C == logits_CV.amax(1)).all())
    return (picked_C - logits_CV.logsumexp(1)).double().sum().item(), likeliest
