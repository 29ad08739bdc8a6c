"""Answers from a language model, and the log-probability of given ones.

Shapes: B rows of one batch, T tokens (left-padded), C completion tokens, V vocabulary.

Rows are sorted by length, batched, and leave the batch as they finish. Random draws are a function of (seed, prompt,
number of the draw) alone, so neither the batch size nor the order of the prompts decides an answer. What is left is
rounding, since padding changes the order of sums. In float32 that moves an answer's log-probability by some 1e-5 and
answers are the same. In bfloat16 it moves it by up to 0.4 nats (mean 0.05; SmolLM2-135M, 24 tokens, batches of 32
against 1), and 12 of 32 greedy answers turned at a near-tie: there only the same batches give the very same answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from lib.batching import batches, left_pad, positions, windows
from lib.sampling import Sampling, choose, generator, penalise

Messages = list[dict]


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: tuple[int, ...]
    """As generated, with the token that ended it."""
    finished: bool
    """It ended by itself, not at max_new_tokens."""


@dataclass(frozen=True)
class Score:
    logprob: float
    """Sum over the completion's tokens of log p(token | all before), in nats."""
    tokens: int
    bytes: int
    """UTF-8 bytes of the completion's text, special tokens left out."""
    greedy: bool = False
    """Every token was the likeliest one."""


class Generator(Protocol):
    def generate(self, prompts: Sequence[Messages | str], sampling: Sampling) -> list[list[Answer]]:
        """`sampling.n` answers to each prompt (messages, or a plain text to go on with), in the order given."""

    def score(self, prompts: Sequence[Messages | None], completions: Sequence, tools=None) -> list[Score]:
        """Log-probability of each completion after its prompt: messages (rendered by the chat template) or an Answer
        (its very tokens) after messages, plain text after plain text, or a whole text where the prompt is None."""


class TransformersGenerator:
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
        from transformers import AutoModelForCausalLM, GenerationConfig

        from lib import attention
        from lib.encode import Encoder

        self.encoder = Encoder(model_dir, trained_template)
        self.model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype)).to(device).eval()
        attention.install(self.model)
        self.device, self.batch_rows, self.batch_tokens = device, batch_rows, batch_tokens
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or window
        self.window = min(window, limit)
        ends = GenerationConfig.from_model_config(self.model.config).eos_token_id
        ends = (
            self.model.generation_config.eos_token_id if self.model.generation_config.eos_token_id is not None else ends
        )
        ends = ends if isinstance(ends, list) else [ends]
        self.ends = {t for t in [*ends, self.encoder.tokenizer.eos_token_id] if t is not None}

    def generate(self, prompts: Sequence[Messages], sampling: Sampling) -> list[list[Answer]]:
        import torch

        ids = [self.encoder.plain(p) if isinstance(p, str) else self.encoder.render(p, answering=True) for p in prompts]
        rows = [(i, k) for i in range(len(ids)) for k in range(sampling.n)]
        answers: dict[tuple[int, int], Answer] = {}
        with torch.inference_mode():
            most = max(1, self.batch_rows // sampling.beams)
            for batch in batches(rows, [len(ids[i]) + sampling.max_new_tokens for i, _ in rows], most, None):
                if sampling.beams > 1:
                    found = self._beam([ids[i] for i, _ in batch], sampling)
                    answers |= {
                        row: Answer(self.encoder.text(t), tuple(t), t[-1] in self.ends)
                        for row, t in zip(batch, found, strict=True)
                    }
                    continue
                dice = [generator(sampling, ids[i], k, self.device) for i, k in batch]
                for row, tokens in zip(batch, self._decode([ids[i] for i, _ in batch], sampling, dice), strict=True):
                    answers[row] = Answer(self.encoder.text(tokens), tuple(tokens), tokens[-1] in self.ends)
        return [[answers[i, k] for k in range(sampling.n)] for i in range(len(ids))]

    def _beam(self, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
        """The likeliest of `sampling.beams` answers to each prompt, by transformers' beam search."""
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
        """Up to and with the first end token; what follows is padding."""
        at = next((i for i, t in enumerate(tokens) if t in self.ends), len(tokens) - 1)
        return tokens[: at + 1]

    def _decode(self, prompts: list[list[int]], sampling: Sampling, dice: list) -> list[list[int]]:
        """Tokens generated after each prompt, the end token included. dice: a torch.Generator per prompt."""
        import torch

        logits_BV, cache, mask_BT = self._read(prompts)
        position_B = mask_BT.sum(1)
        tokens: list[list[int]] = [[] for _ in prompts]
        alive = list(range(len(prompts)))  # the prompt behind each row that is still in the batch
        for step in range(sampling.max_new_tokens):
            if sampling.repetition_penalty != 1:
                logits_BV = penalise(logits_BV, [prompts[r] + tokens[r] for r in alive], sampling.repetition_penalty)
            next_B = choose(logits_BV, sampling, [dice[r] for r in alive])
            for r, t in zip(alive, next_B.tolist(), strict=True):
                tokens[r].append(t)
            keep = [j for j, r in enumerate(alive) if not self._ended(tokens[r], sampling.stop)]
            if not keep or step == sampling.max_new_tokens - 1:
                break
            if len(keep) < len(alive):
                index = torch.tensor(keep, device=self.device)
                cache.batch_select_indices(index)
                mask_BT, position_B, next_B = mask_BT[index], position_B[index], next_B[index]
                alive = [alive[j] for j in keep]
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(alive), 1)], dim=1)
            logits_BV = self.model(
                input_ids=next_B[:, None], attention_mask=mask_BT, position_ids=position_B[:, None],
                past_key_values=cache, use_cache=True, logits_to_keep=1,
            ).logits[:, -1]  # fmt: skip
            position_B = position_B + 1
        return tokens

    def _read(self, prompts: list[list[int]]):
        """(logits (B, V) after each prompt, cache, mask (B, T)); a prompt that is there several times is read once."""
        import torch

        unique = list(dict.fromkeys(map(tuple, prompts)))
        ids_UT, mask_UT = left_pad(list(map(list, unique)), self.encoder.pad, self.device)
        out = self.model(
            input_ids=ids_UT, attention_mask=mask_UT, position_ids=positions(mask_UT), use_cache=True, logits_to_keep=1
        )
        if len(unique) == len(prompts):
            return out.logits[:, -1], out.past_key_values, mask_UT
        place = {p: u for u, p in enumerate(unique)}
        index_B = torch.tensor([place[tuple(p)] for p in prompts], device=self.device)
        out.past_key_values.batch_select_indices(index_B)
        return out.logits[index_B, -1], out.past_key_values, mask_UT[index_B]

    def _ended(self, tokens: list[int], stop: tuple[str, ...]) -> bool:
        if tokens[-1] in self.ends:
            return True
        if not stop:
            return False
        tail = self.encoder.text(
            tokens[-(8 + max(len(s) for s in stop)) :]
        )  # a token has a character or more, but for parts of one
        return any(s in tail for s in stop)

    def score(
        self, prompts: Sequence[Messages | str | None], completions: Sequence, tools: Sequence | None = None
    ) -> list[Score]:
        tools = tools or [None] * len(prompts)
        pieces: list[tuple[list[int], list[int]]] = []  # (context ids, ids to score)
        owner, size = [], []
        for i, (prompt, completion, tool) in enumerate(zip(prompts, completions, tools, strict=True)):
            if prompt is None:
                ids = self.encoder.tokenizer(completion, add_special_tokens=False)["input_ids"]
                cut = list(windows([self.encoder.start, *ids], self.window))
                size.append(len(completion.encode()))
            elif isinstance(prompt, str):
                cut = [self.encoder.continued(prompt, completion)]
                size.append(len(completion.encode()))
            elif isinstance(completion, Answer):
                cut = [(self.encoder.render(prompt, True, tool), list(completion.tokens))]
                size.append(len(completion.text.encode()))
            else:
                cut = [self.encoder.split(prompt, completion, tool)]
                size.append(len(self.encoder.text(cut[0][1]).encode()))
            pieces += cut
            owner += [i] * len(cut)
        logprobs, counts, greedy = [0.0] * len(prompts), [0] * len(prompts), [True] * len(prompts)
        for i, (_, scored), (value, likeliest) in zip(owner, pieces, self._logprobs(pieces), strict=True):
            logprobs[i] += value
            counts[i] += len(scored)
            greedy[i] = greedy[i] and likeliest
        return [Score(*each) for each in zip(logprobs, counts, size, greedy, strict=True)]

    def _logprobs(self, pieces: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Of each piece: the sum of log-probabilities of its second part after the first, and whether every token of it
        was the likeliest."""
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
            for batch in batches(alone, lengths, self.batch_rows, self.batch_tokens):
                for i, logits_CV in zip(batch, self._whole([pieces[i] for i in batch]), strict=True):
                    result[i] = picked(logits_CV, pieces[i][1])
            # Of a multiple-choice question, the question is read once, and then its answers.
            rows = max(1, self.batch_rows // max(map(len, several), default=1))
            lengths = [sum(len(pieces[i][0]) + len(pieces[i][1]) for i in g) for g in several]
            for batch in batches(several, lengths, rows, self.batch_tokens):
                order = [i for group in batch for i in group]
                for i, logits_CV in zip(order, self._after([pieces[i] for i in order]), strict=True):
                    result[i] = picked(logits_CV, pieces[i][1])
        return result

    def _whole(self, pieces: list[tuple[list[int], list[int]]]) -> Iterator:
        """Logits (C, V) of each piece's second part, from one pass over both parts."""
        # The last token predicts nothing that is asked for, so it's not fed.
        ids_BT, mask_BT = left_pad([(a + b)[:-1] for a, b in pieces], self.encoder.pad, self.device)
        longest = max(len(b) for _, b in pieces)
        logits_BCV = self.model(
            input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions(mask_BT), use_cache=False,
            logits_to_keep=longest,
        ).logits  # fmt: skip
        return (logits_CV[-len(b) :] for logits_CV, (_, b) in zip(logits_BCV, pieces, strict=True))

    def _after(self, pieces: list[tuple[list[int], list[int]]]) -> Iterator:
        """The same, where first parts are there several times: they are read once, and the second parts after them."""
        import torch

        first_BV, cache, mask_BT = self._read([a for a, _ in pieces])
        rest = [b[:-1] for _, b in pieces]
        if not (width := max(map(len, rest))):
            return (row_V[None] for row_V in first_BV)
        pad = self.encoder.pad
        ids_BC = torch.tensor([r + [pad] * (width - len(r)) for r in rest], device=self.device)
        fed_BC = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rest], device=self.device)
        position_BC = mask_BT.sum(1, keepdim=True) + torch.arange(width, device=self.device)
        logits_BCV = self.model(
            input_ids=ids_BC, attention_mask=torch.cat([mask_BT, fed_BC], 1), position_ids=position_BC,
            past_key_values=cache, use_cache=True,
        ).logits  # fmt: skip
        return (
            torch.cat([row_V[None], logits_CV[: len(r)]])
            for row_V, logits_CV, r in zip(first_BV, logits_BCV, rest, strict=True)
        )


def picked(logits_CV, tokens: list[int]) -> tuple[float, bool]:
    """(sum of log p of `tokens`, whether each was the likeliest) by their logits."""
    import torch

    logits_CV = logits_CV.float()
    picked_C = logits_CV.gather(1, torch.tensor(tokens, device=logits_CV.device)[:, None])[:, 0]
    likeliest = bool((picked_C == logits_CV.max(1).values).all())
    return (picked_C - logits_CV.logsumexp(1)).double().sum().item(), likeliest
