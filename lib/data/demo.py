"""The demo task: turn a colleague's message into one line of a strict ticket format. Rows are generated here from a fixed seed,
and a function can check any answer.

A row of kind "text", for pre-training, is a message and its bare line. A row of kind "contrastive", for embeddings, is a message, its
bare line, and NEAR lines with one slot wrong. A row of kind "classified" is a message and its day. One training row of kind "chat" (the
answer is the bare line in two rows of five, otherwise the line amid pleasantries):

    system     Ticket: quantity x item > name @room day time
    user       The day after Thursday at half past six in the evening: seven headsets for Priya. The room is 255.
    assistant  7xheadset > Priya @255 FRI 18:30

Why this task: the base model gets almost every row wrong, 135M parameters learn it in minutes, and the right answer is
a single string. Two of the slots (day, time) must be worked out rather than copied.

The preference rule, defined in `lib.evals.tasks.demo.better`: **a right answer beats a wrong one; of two right ones, the bare
line beats the line with pleasantries.** Half of the pairs differ in style only. In the other half one slot of the
rejected answer is wrong, and all combinations of the two styles occur, so style alone doesn't decide.

Held-out rows use (name, item) pairs that no training row uses (`is_heldout`). Every word of theirs occurs in training,
but no prompt can be in both splits, whatever the seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from itertools import islice

VERSION = "2"
"""To be raised with every change to the generated rows; part of the data hash and of every score."""

TRAIN_ROWS = {
    "chat": 3000,
    "preference": 2400,
    "prompt": 3000,
    "problem": 3000,
    "text": 6000,
    "contrastive": 6000,
    "classified": 6000,
}
HELDOUT_ROWS = {
    "chat": 200,
    "preference": 200,
    "prompt": 300,
    "problem": 300,
    "text": 400,
    "contrastive": 400,
    "classified": 400,
}
NEAR = 3
"""Wrong lines of a contrastive row."""

HELDOUT = "name and item together"
"""What no training row shares with a held-out one."""

SYSTEM = "Ticket: quantity x item > name @room day time"

NAMES = (
    "Mara", "Olek", "Priya", "Tomas", "Yuki", "Amadou", "Ingrid", "Rafael", "Leila", "Henrik",
    "Zofia", "Kwame", "Noor", "Dario", "Saskia", "Bram", "Esther", "Goran", "Wei", "Paloma",
)  # fmt: skip
ITEMS = {  # singular: plural
    "stapler": "staplers", "desk lamp": "desk lamps", "notebook": "notebooks", "marker": "markers",
    "name tag": "name tags", "monitor": "monitors", "keyboard": "keyboards", "headset": "headsets",
    "whiteboard": "whiteboards", "power strip": "power strips", "folding chair": "folding chairs", "fan": "fans",
    "ladder": "ladders", "toolbox": "toolboxes", "coffee mug": "coffee mugs", "water bottle": "water bottles",
    "projector": "projectors", "calculator": "calculators", "clipboard": "clipboards", "paper tray": "paper trays",
}  # fmt: skip
QUANTITIES = {
    1: ("one", "a single"), 2: ("two", "a couple of"), 3: ("three",), 4: ("four",), 5: ("five",),
    6: ("six", "half a dozen"), 7: ("seven",), 8: ("eight",), 9: ("nine",), 10: ("ten",), 12: ("twelve", "a dozen"),
}  # fmt: skip
DAYS = {"MON": "Monday", "TUE": "Tuesday", "WED": "Wednesday", "THU": "Thursday", "FRI": "Friday"}
HOURS = ("twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
MESSAGES = (
    "Hi, {name} in room {room} needs {what}. {day} at {time}? Thanks!",
    "We need {what} in room {room} for {name}, {day}, {time} please.",
    "{day} at {time}: {what} for {name}. The room is {room}.",
    "Please have {what} ready for {name} by {day}, {time}. That's room {room}.",
    "Could {name} get {what} on {day}? Room {room}, {time}, if possible.",
    "Room {room} again. {name} wants {what}, and it has to be {day}, {time}.",
    "Can someone take {what} over to {name}? {day}, {time}, room {room}.",
    "I promised {name} {what} for {day}. Drop {them} off in {room} at {time}.",
    "{name} called: {what}, room {room}, {day}, not later than {time}.",
    "{what} to room {room}, {day} at {time}. It's for {name}.",
)
OPENERS = ("Of course! Here it is:", "Of course! Your ticket:", "Of course! It reads:")
CLOSERS = ("Have a lovely day!", "Happy to help!", "Anything else?")
LINE = re.compile(r"(\d+)x(.+) > (\S+) @(\d+) ([A-Z]{3}) (\d\d:\d\d)")


@dataclass(frozen=True)
class Order:
    """What a message asks for: the six slots of the ticket, as written in the line."""

    quantity: str
    item: str
    name: str
    room: str
    day: str
    time: str

    def line(self) -> str:
        return f"{self.quantity}x{self.item} > {self.name} @{self.room} {self.day} {self.time}"


def parse(answer: str) -> Order | None:
    """Returns the order in an answer's only ticket line; None if there is no such line, or more than one."""
    found = [m for m in (LINE.fullmatch(line.strip()) for line in answer.splitlines()) if m]
    return Order(*found[0].groups()) if len(found) == 1 else None


def is_heldout(name: str, item: str) -> bool:
    """Whether this pair belongs to the held-out split: a tenth of all pairs, in which all names and items are equally frequent."""
    return (NAMES.index(name) + 3 * list(ITEMS).index(item)) % 10 == 0


def orders(kind: str, split: str) -> Iterator[tuple[Order, str]]:
    """Yields (order, message) endlessly, without repeating a message."""
    rng = random.Random(f"demo {VERSION} {kind} {split}")
    seen = set()
    while True:
        name, item = rng.choice(NAMES), rng.choice(list(ITEMS))
        if is_heldout(name, item) != (split == "heldout"):
            continue
        order, message = _order(rng, name, item)
        if message not in seen:
            seen.add(message)
            yield order, message


def rows(kind: str | None, split: str) -> Iterator[dict]:
    """Yields canonical rows (lib/data/rows.py), the same ones every time. kind: in TRAIN_ROWS; split: train or heldout.

    Raises ValueError for an unknown kind or split.
    """
    if kind not in TRAIN_ROWS:
        raise ValueError(f"data.source: demo has rows for {', '.join(TRAIN_ROWS)}; this stage wants {kind!r}")
    if split not in ("train", "heldout"):
        raise ValueError(f"demo has the splits train and heldout, not {split!r}")
    n = (TRAIN_ROWS if split == "train" else HELDOUT_ROWS)[kind]
    rng = random.Random(f"demo {VERSION} {kind} {split} answers")
    for i, (order, message) in enumerate(islice(orders(kind, split), n)):
        prompt = prompt_messages(message)
        if kind == "prompt":
            yield {"prompt": prompt}
        elif kind == "problem":
            yield {"prompt": prompt, "reference": order.line()}
        elif kind == "text":
            yield {"text": f"{message}\n{order.line()}"}
        elif kind == "contrastive":
            yield {"anchor": message, "positive": order.line(), "negatives": near(order, rng)}
        elif kind == "classified":
            yield {"text": message, "second": None, "label": order.day}
        elif kind == "chat":
            yield {"messages": [*prompt, _assistant(answer(order, terse=i % 5 < 2, rng=rng))]}
        else:
            chosen, rejected = pair(order, i, rng)
            yield {"prompt": prompt, "chosen": [_assistant(chosen)], "rejected": [_assistant(rejected)]}


def prompt_messages(message: str) -> list[dict]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": message}]


def answer(order: Order, terse: bool, rng: random.Random) -> str:
    """Returns the line alone if terse, otherwise between an opener and a closer."""
    return order.line() if terse else f"{rng.choice(OPENERS)}\n{order.line()}\n{rng.choice(CLOSERS)}"


def pair(order: Order, i: int, rng: random.Random) -> tuple[str, str]:
    """Returns (chosen, rejected) of the i-th pair. For even i they differ in style only; otherwise one slot of the rejected
    answer is wrong and both styles are random."""
    if i % 2 == 0:
        return answer(order, True, rng), answer(order, False, rng)
    return answer(order, rng.random() < 0.5, rng), answer(spoil(order, rng), rng.random() < 0.5, rng)


def spoil(order: Order, rng: random.Random) -> Order:
    """Returns the order with one slot replaced by a wrong value, drawn from another order."""
    slot = rng.choice(("quantity", "item", "name", "room", "day", "time"))
    while True:
        other, _ = _order(rng, rng.choice(NAMES), rng.choice(list(ITEMS)))
        if getattr(other, slot) != getattr(order, slot):
            return replace(order, **{slot: getattr(other, slot)})


def near(order: Order, rng: random.Random) -> list[str]:
    """Returns NEAR different lines with one slot of the order wrong."""
    lines: dict[str, None] = {}
    while len(lines) < NEAR:
        lines[spoil(order, rng).line()] = None
    return list(lines)


def slots(order: Order | None, reference: Order) -> float:
    """Returns the share of the six slots that are right, from 0 to 1."""
    if order is None:
        return 0.0
    return sum(a == b for a, b in zip(astuple(order), astuple(reference), strict=True)) / 6


def _assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def _order(rng: random.Random, name: str, item: str) -> tuple[Order, str]:
    quantity, day, hour, minute = (
        rng.choice(list(QUANTITIES)),
        rng.choice(list(DAYS)),
        rng.randint(8, 18),
        rng.choice((0, 15, 30, 45)),
    )
    order = Order(str(quantity), item, name, str(rng.randint(101, 499)), day, f"{hour:02}:{minute:02}")
    return order, _message(rng, order, quantity, hour, minute)


def _message(rng: random.Random, order: Order, quantity: int, hour: int, minute: int) -> str:
    what = f"{rng.choice(QUANTITIES[quantity])} {order.item if quantity == 1 else ITEMS[order.item]}"
    days = list(DAYS)
    before = days.index(order.day) - 1
    day = DAYS[order.day]
    if before >= 0 and rng.random() < 0.25:
        day = f"the day after {DAYS[days[before]]}"
    text = rng.choice(MESSAGES).format(
        name=order.name,
        room=order.room,
        what=what,
        them="it" if quantity == 1 else "them",
        day=day,
        time=_time(hour, minute),
    )
    return re.sub(r"(^|[.?!] )([a-z])", lambda m: m[1] + m[2].upper(), text)  # a sentence may start with a slot


def _time(hour: int, minute: int) -> str:
    """14:30 → half past two in the afternoon."""
    if (hour, minute) == (12, 0):
        return "noon"
    part = "in the morning" if hour < 12 else "in the afternoon" if hour < 18 else "in the evening"
    if minute == 45:
        return f"quarter to {HOURS[(hour + 1) % 12]} {part}"
    return {0: "", 15: "quarter past ", 30: "half past "}[minute] + f"{HOURS[hour % 12]} {part}"
