"""A column of JSON whose numbers come back as Python's json reads them.

datasets' own Json goes through pandas' ujson, which keeps ten digits of a number and 64 bits of an integer: in a tool's
arguments 2.5e-11 would become 0.0. Here the text is Python's, and so is what is read from it.

Only what is written by `array` is exact. A map that reads such a column and keeps it, as TRL's tokenisation does, writes
it again by ujson: nothing may read the column after that.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field

import pyarrow as pa
from datasets import Json
from datasets.features.features import register_feature


@dataclass
class ExactJson(Json):
    _type: str = field(default="ExactJson", init=False, repr=False)  # what the file's metadata calls it

    def encode_example(self, example_data):
        return None if example_data is None else text(example_data)

    def decode_example(self, example_data, token_per_repo_id=None):
        return None if example_data is None else json.loads(example_data)

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        return storage if isinstance(storage.type, pa.JsonType) else storage.cast(pa.string()).cast(self.pa_type)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # that this part of datasets may change
    register_feature(ExactJson, "ExactJson")


def text(value: object) -> str:
    """Raises ValueError at a number that JSON hasn't (NaN, Infinity)."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def array(values: list) -> pa.Array:
    """One JSON text for each value; null for None."""
    return pa.array([None if v is None else text(v) for v in values], pa.json_())
