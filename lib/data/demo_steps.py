"""A demo task in steps: the total of an order, to be computed from quantities, prices and a discount. Rows are generated here from
a fixed seed, each with its reasoning, and a function can check any answer.

One training row of kind "chat":

    system      Order: total in dollars > name @room
    user        Priya in room 255 needs seven headsets at $9 each and three fans at $4 each. We get $5 off. What does it cost?
    assistant   (reasoning_content)  7 x 9 = 63
                                     3 x 4 = 12
                                     63 + 12 = 75
                                     75 - 5 = 70
                (content)            $70 > Priya @255

Why this task: a model that writes the line at once must multiply twice, add and subtract within one token. Each line of the reasoning
is a fact that 135M parameters learn in minutes (Wei et al. 2022, https://arxiv.org/abs/2201.11903).

Held-out rows use (quantities, prices, discount) that no training row uses (`is_heldout`), so no right total can be remembered.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from lib.data.demo import ITEMS, NAMES, QUANTITIES

VERSION = "1"
"""To be raised with every change to the generated rows; part of the data hash and of every score."""

TRAIN_ROWS = {"chat": 3000, "prompt": 3000, "problem": 3000}
HELDOUT_ROWS = {"chat": 400, "prompt": 400, "problem": 400}

HELDOUT = "numbers together"
"""What no training row shares with a held-out one."""

SYSTEM = "Order: total in dollars > name @room"

MESSAGES = (
    "{name} in room {room} needs {first} and {second}. We get ${off} off. What does it cost?",
    "Please order {first} and {second} for {name}, room {room}. There is ${off} off the total.",
    "{first} and {second} for {name}, less ${off} from last time. It goes to room {room}.",
    "Room {room}: {name} wants {first}, and {second} too. The voucher takes ${off} off.",
    "How much are {first} plus {second} for {name} in room {room}, with ${off} off?",
    "I promised {name} {first} and {second}. Room {room}, and we have a ${off} voucher.",
)
LINE = re.compile(r"\$(\d+) > (\S+) @(\d+)")


@dataclass(frozen=True)
class Order:
    """What a message asks for. quantities and prices (in dollars) are of its two items."""

    name: str
    room: int
    items: tuple[str, str]
    quantities: tuple[int, int]
    prices: tuple[int, int]
    off: int

    @property
    def total(self) -> int:
        (a, b), (p, q) = self.quantities, self.prices
        return a * p + b * q - self.off

    def line(self) -> str:
        return f"${self.total} > {self.name} @{self.room}"

    def steps(self) -> str:
        """Returns the reasoning, one step a line."""
        (a, b), (p, q) = self.quantities, self.prices
        both = a * p + b * q
        return (
            f"{a} x {p} = {a * p}\n{b} x {q} = {b * q}\n{a * p} + {b * q} = {both}\n{both} - {self.off} = {self.total}"
        )


def parse(answer: str) -> str | None:
    """Returns an answer's only line `$total > name @room`; None if there is no such line, or more than one."""
    found = [line.strip() for line in answer.splitlines() if LINE.fullmatch(line.strip())]
    return found[0] if len(found) == 1 else None


def is_heldout(order: Order) -> bool:
    """Whether these numbers belong to the held-out split: a tenth of all combinations."""
    (a, b), (p, q) = order.quantities, order.prices
    return (a + 2 * p + 3 * b + 5 * q + order.off) % 10 == 0


def orders(kind: str, split: str) -> Iterator[tuple[Order, str]]:
    """Yields (order, message) endlessly, without repeating a message."""
    rng = random.Random(f"demo_steps {VERSION} {kind} {split}")
    seen = set()
    while True:
        order = _order(rng)
        message = _message(rng, order)
        if is_heldout(order) == (split == "heldout") and message not in seen:
            seen.add(message)
            yield order, message


def rows(kind: str | None, split: str) -> Iterator[dict]:
    """Yields canonical rows (lib/data/rows.py), the same ones every time. kind: in TRAIN_ROWS; split: train or heldout.

    Raises ValueError for an unknown kind or split.
    """
    if kind not in TRAIN_ROWS:
        raise ValueError(f"data.source: demo_steps has rows for {', '.join(TRAIN_ROWS)}; this stage wants {kind!r}")
    if split not in ("train", "heldout"):
        raise ValueError(f"demo_steps has the splits train and heldout, not {split!r}")
    n = (TRAIN_ROWS if split == "train" else HELDOUT_ROWS)[kind]
    for order, message in islice(orders(kind, split), n):
        prompt = prompt_messages(message)
        answer = {"role": "assistant", "content": order.line(), "reasoning_content": order.steps()}
        if kind == "chat":
            yield {"messages": [*prompt, answer]}
        else:
            yield {"prompt": prompt} if kind == "prompt" else {"prompt": prompt, "reference": order.line()}


def prompt_messages(message: str) -> list[dict]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": message}]


def _order(rng: random.Random) -> Order:
    first, second = rng.sample(list(ITEMS), 2)
    return Order(
        name=rng.choice(NAMES),
        room=rng.randint(101, 499),
        items=(first, second),
        quantities=(rng.randint(2, 9), rng.randint(2, 9)),
        prices=(rng.randint(2, 9), rng.randint(2, 9)),
        off=rng.randint(1, 7),
    )


def _message(rng: random.Random, order: Order) -> str:
    first, second = (
        f"{rng.choice(QUANTITIES[n])} {ITEMS[item]} at ${price} each"
        for n, item, price in zip(order.quantities, order.items, order.prices, strict=True)
    )
    text = rng.choice(MESSAGES).format(name=order.name, room=order.room, first=first, second=second, off=order.off)
    return text[0].upper() + text[1:]
