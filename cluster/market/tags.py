"""Stores Ray's tags of a node in its rental's label, where every head finds them, even after a restart.

    shoestring/NAME;k=w;m=3;r=2b1f…;s=u;t=gpu

Vast recommends less than 128 characters (vast.py). So names are short, keys and states are one letter, and only the beginning of each
of Ray's 52-letter hashes is kept. Tags are left out if they can be derived (the node's name) or are never read (a worker's launch
hash, which the autoscaler keeps in memory).
"""

from __future__ import annotations

import re
import uuid

from ray.autoscaler import tags as ray

from cluster.market.base import LABEL

SLOT = "shoestring-slot"
"""Tag with the node's number in the mesh."""
NONCE = "shoestring-nonce"
"""Tag by which the ledger identifies the rental; set by ledger.py."""

KEYS = {
    ray.TAG_RAY_NODE_KIND: "k",
    ray.TAG_RAY_USER_NODE_TYPE: "t",
    ray.TAG_RAY_NODE_STATUS: "s",
    ray.TAG_RAY_LAUNCH_CONFIG: "l",
    ray.TAG_RAY_LAUNCH_REQUEST: "r",
    ray.TAG_RAY_RUNTIME_CONFIG: "c",
    ray.TAG_RAY_FILE_MOUNTS_CONTENTS: "f",
    SLOT: "m",
    NONCE: "n",
}
VALUES = {
    "k": {ray.NODE_KIND_HEAD: "h", ray.NODE_KIND_WORKER: "w"},
    "s": {
        ray.STATUS_UNINITIALIZED: "n",
        ray.STATUS_WAITING_FOR_SSH: "w",
        ray.STATUS_SYNCING_FILES: "f",
        ray.STATUS_SETTING_UP: "g",
        ray.STATUS_UP_TO_DATE: "u",
        ray.STATUS_UPDATE_FAILED: "x",
    },
}
LONG = {short: key for key, short in KEYS.items()}
LONG_VALUES = {key: {short: value for value, short in values.items()} for key, values in VALUES.items()}

LONGEST = 127
NAME = 24
"""Maximum characters of a cluster's or node type's name, so that every label fits."""
HASHES, HASH = ("l", "c", "f"), 9
"""Keys whose values are hashes, and the letters kept of each: 45 bits."""


class Hash(str):
    """The beginning of one of Ray's hashes, equal to every hash that begins with it. Ray only compares hashes for
    equality. Like every class that defines __eq__ alone, it has no __hash__: two that it equals may differ."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and (
            other.startswith(str(self)) if len(other) > len(self) else str(self) == other
        )

    def __ne__(self, other: object) -> bool:
        return not self == other


def check_name(what: str, name: str) -> None:
    """Raises ValueError if `name` can't be used in a label and as a folder's or file's name."""
    if not name or len(name) > NAME or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in name):
        raise ValueError(f"{what}: {name!r} must have 1 to {NAME} letters, digits, '-', '_' or '.'.")
    if name[0] == ".":  # ".." is another folder
        raise ValueError(f"{what}: {name!r} must not begin with '.'.")


def encode(cluster: str, tags: dict[str, str]) -> str:
    """Returns the label of a node of `cluster`."""
    short = {KEYS[key]: value for key, value in tags.items() if key != ray.TAG_RAY_NODE_NAME}
    short |= {key: str(short[key])[:HASH] for key in HASHES if key in short}
    if tags.get(ray.TAG_RAY_NODE_KIND) == ray.NODE_KIND_WORKER:
        short.pop("l", None)
    if "r" in short:
        short["r"] = short["r"].replace("-", "")
    pairs = [f"{key}={VALUES.get(key, {}).get(value, value)}" for key, value in sorted(short.items())]
    label = ";".join([LABEL + cluster, *pairs])
    assert len(label) <= LONGEST, f"a label of {len(label)} characters: {label}"
    return label


def decode(label: str) -> tuple[str, dict[str, str]]:
    """Returns (cluster, tags) of a label that begins with LABEL. Unknown keys are ignored, since a user may add to a label."""
    cluster, *parts = label.removeprefix(LABEL).split(";")
    tags = {}
    for part in parts:
        short, _, value = part.partition("=")
        if short in LONG:
            tags[LONG[short]] = LONG_VALUES.get(short, {}).get(value, value)
            if short in HASHES:
                tags[LONG[short]] = Hash(value)
            elif short == "r" and re.fullmatch("[0-9a-f]{32}", value):
                tags[LONG[short]] = str(uuid.UUID(value))
    kind = tags.get(ray.TAG_RAY_NODE_KIND)
    return cluster, tags | ({ray.TAG_RAY_NODE_NAME: f"ray-{cluster}-{kind}"} if kind else {})


def taken_up(label: str) -> bool:
    """Returns whether set-up of the node has begun, so that some process owns it, whichever requested it."""
    status = decode(label)[1].get(ray.TAG_RAY_NODE_STATUS, ray.STATUS_UNINITIALIZED)
    return status != ray.STATUS_UNINITIALIZED


def is_head(label: str) -> bool:
    return decode(label)[1].get(ray.TAG_RAY_NODE_KIND) == ray.NODE_KIND_HEAD
