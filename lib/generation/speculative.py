"""Speculative decoding: a drafter guesses the next k tokens, and the model checks them all in one pass and keeps the right ones.

A model that generates one token at a time spends its time loading its weights, once per token. A pass over k + 1 tokens takes
hardly longer, so every accepted guess saves a pass (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, eq. 1):

    tokens per pass = (1 − α^(k+1)) / (1 − α),   α: acceptance rate

A guess is accepted if it is exactly the token that the model chooses there, greedily or by sampling. The model's random numbers
are fixed before the guess (lib/generation/sampling.py), and a drafter that samples with the same numbers is right more often (Daliri et al.
2024, https://arxiv.org/abs/2408.07978). So answers are identical to those without a drafter, up to rounding, since a pass over
several tokens may sum in another order. Rejection sampling, as in the first paper, would preserve only their distribution.

Shapes: B rows of one batch, C tokens processed at once, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from lib.generation.batching import left_pad
from lib.generation.kv_cache import Cached
from lib.generation.sampling import Sampling, choose, race


class Tape:
    """The random numbers of one answer: a row (V,) per token, drawn in order and kept until the token is final."""

    def __init__(self, die, width: int, device: str):
        self.die, self.width, self.device, self.drawn, self.rows = die, width, device, 0, {}

    def at(self, token: int):
        while self.drawn <= token:
            self.rows[self.drawn] = race([self.die], self.width, self.device)[0]
            self.drawn += 1
        return self.rows[token]

    def settled(self, tokens: int) -> None:
        self.rows = {i: row for i, row in self.rows.items() if i >= tokens}


class Drafter(ABC):
    """proposed, right: guesses, and accepted guesses, by distance from the last final token; rounds: passes of the model,
    counted per answer; written: tokens that these passes produced."""

    def __init__(self):
        self.proposed: list[int] = []
        self.right: list[int] = []
        self.rounds = self.written = 0

    @abstractmethod
    def begin(self, prompts: list[list[int]]) -> None:
        """Starts a batch."""

    @abstractmethod
    def draft(
        self, written: list[list[int]], most: list[int], sampling: Sampling, tapes: list[Tape]
    ) -> list[list[int]]:
        """Guesses the continuation of each answer `written` so far, with at most `most` tokens for each row."""

    @abstractmethod
    def keep(self, rows: list[int]) -> None:
        """Keeps only these rows of the batch."""

    def accept(self, drafts: list[list[int]], counts: list[int]) -> None:
        """Records that the first counts[b] guesses of row b were right."""
        longest = max(map(len, drafts), default=0)
        for tally in (self.proposed, self.right):
            tally += [0] * (longest - len(tally))
        for draft, count in zip(drafts, counts, strict=True):
            self.rounds += 1
            self.written += count + 1
            for i in range(len(draft)):
                self.proposed[i] += 1
                self.right[i] += i < count


class Lookup(Drafter):
    """Guesses the tokens that followed the previous occurrence of the last few tokens, in prompt or answer (prompt lookup,
    Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding). Without a match it makes no guess."""

    def __init__(self, longest: int = 3):
        super().__init__()
        self.longest = longest

    def begin(self, prompts):
        self.prompts = prompts

    def keep(self, rows):
        self.prompts = [self.prompts[r] for r in rows]

    def draft(self, written, most, sampling, tapes):
        return [self.find(p + w, m) for p, w, m in zip(self.prompts, written, most, strict=True)]

    def find(self, seen: list[int], most: int) -> list[int]:
        for n in range(min(self.longest, len(seen) - 1), 0, -1):
            last = seen[-n:]
            for i in range(len(seen) - n - 1, -1, -1):
                if seen[i : i + n] == last:
                    return seen[i + n : i + n + most]
        return []


class Draft(Drafter):
    """A smaller model with the same tokens. ends: ids that end an answer, after which nothing is guessed."""

    def __init__(self, model, pad: int, device: str, ends: set[int]):
        super().__init__()
        self.model, self.pad, self.device, self.ends = model, pad, device, ends

    def begin(self, prompts):
        self.cached = Cached(self.model, prompts, self.pad, self.device)
        self.read = [0] * len(prompts)  # tokens of each answer that are in the cache

    def keep(self, rows):
        import torch

        self.cached.keep(torch.tensor(rows, device=self.device))
        self.read = [self.read[r] for r in rows]

    def draft(self, written, most, sampling, tapes):
        import torch

        self.width, self.before = self.cached.mask_BT.shape[1], [len(w) for w in written]
        fresh = [w[n:] for w, n in zip(written, self.read, strict=True)]
        ids_BC, fed_BC = left_pad(fresh, self.pad, self.device)
        drafts: list[list[int]] = [[] for _ in written]
        for k in range(max(most)):
            self.cached.feed(ids_BC, fed_BC if k == 0 else None, last=1)
            rows = [tape.at(len(w) + k) for tape, w in zip(tapes, written, strict=True)] if tapes else None
            logits_BV = self.cached.logits_BV
            if rows:  # one vocabulary may be padded further, without tokens
                width = min(logits_BV.shape[-1], rows[0].shape[-1])
                rows, logits_BV = torch.stack(rows)[:, :width], logits_BV[:, :width]
            ids_BC = choose(logits_BV, sampling, rows)[:, None]
            for draft, token in zip(drafts, ids_BC[:, 0].tolist(), strict=True):
                draft.append(token)
        self.fed_BC = fed_BC
        cut = [next((i + 1 for i, t in enumerate(d) if t in self.ends), len(d)) for d in drafts]
        return [d[: min(c, m)] for d, c, m in zip(drafts, cut, most, strict=True)]

    def accept(self, drafts, counts):
        import torch

        super().accept(drafts, counts)
        # In the cache are the fresh tokens and all guesses but the last, which nothing came after.
        guesses = self.cached.mask_BT.shape[1] - self.width - self.fed_BC.shape[1]
        if guesses < 0:  # there was no room for a guess
            return
        stay = [min(c, guesses) for c in counts]
        guessed = torch.arange(guesses, device=self.device)
        stays_BC = guessed[None] < torch.tensor(stay, device=self.device)[:, None]
        self.cached.forget(torch.cat([self.fed_BC, stays_BC.to(self.fed_BC.dtype)], 1))
        self.read = [b + s for b, s in zip(self.before, stay, strict=True)]


def decode(
    target: Cached, drafter: Drafter, prompts: list[list[int]], sampling: Sampling, dice: list,
    ended: Callable[[list[int]], bool],
) -> list[list[int]]:  # fmt: skip
    """Returns the tokens generated after each prompt, including the end token, the same as without a drafter.

    target: a Cached that has processed the prompts; dice: a torch.Generator per prompt; ended: whether tokens are a complete answer.
    """
    import torch

    device = target.mask_BT.device
    tapes = [Tape(die, target.logits_BV.shape[-1], device) for die in dice] if sampling.temperature else []
    first = choose(target.logits_BV, sampling, torch.stack([t.at(0) for t in tapes]) if tapes else None)
    tokens = [[t] for t in first.tolist()]
    drafter.begin(prompts)
    alive = list(range(len(prompts)))  # the prompt behind each row that is still in the batch

    def whole(r: int) -> bool:
        return len(tokens[r]) == sampling.max_new_tokens or ended(tokens[r])

    while True:
        stays = [j for j, r in enumerate(alive) if not whole(r)]
        if not stays:
            return tokens
        if len(stays) < len(alive):
            target.keep(torch.tensor(stays, device=device))
            drafter.keep(stays)
            alive = [alive[j] for j in stays]
        written = [tokens[r] for r in alive]
        most = [min(sampling.draft_tokens, sampling.max_new_tokens - len(w) - 1) for w in written]
        drafts = drafter.draft(written, most, sampling, [tapes[r] for r in alive] if tapes else [])
        fed = [[w[-1], *d] for w, d in zip(written, drafts, strict=True)]
        width = max(map(len, fed))
        ids_BC = torch.tensor([f + [0] * (width - len(f)) for f in fed], device=device)
        fed_BC = torch.tensor([[1] * len(f) + [0] * (width - len(f)) for f in fed], device=device)
        logits_BCV = target.feed(ids_BC, fed_BC)
        rows = None
        if tapes:  # places after a row's last guess are ignored, so any numbers do
            at = [[tapes[r].at(len(tokens[r]) + min(c, len(f) - 1)) for c in range(width)] for r, f in zip(alive, fed, strict=True)]  # fmt: skip
            rows = torch.stack([row for rows in at for row in rows])
        chosen = choose(logits_BCV.flatten(0, 1), sampling, rows).view(len(alive), width).tolist()
        counts = []
        for r, draft, choice in zip(alive, drafts, chosen, strict=True):
            right = next((i for i, t in enumerate(draft) if t != choice[i]), len(draft))
            counts.append(right)
            for token in choice[: right + 1]:
                tokens[r].append(token)
                if whole(r):
                    break
            if tapes:
                tapes[r].settled(len(tokens[r]))
        drafter.accept(drafts, counts)
        place_C = torch.arange(width, device=device)
        target.forget((place_C[None] <= torch.tensor(counts, device=device)[:, None]).to(fed_BC.dtype))
