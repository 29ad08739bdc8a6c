"""A dataset column of JSON with exact numbers.

datasets' own Json type uses pandas' ujson, which keeps ten digits of a number and 64 bits of an integer: in a tool's
arguments 2.5e-11 would become 0.0. This type writes and reads with Python's json module.

Only values written by `array` are exact. A map that reads such a column and keeps it, as TRL's tokenisation does,
rewrites it with ujson, so nothing may read the column after that.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field

import pyarrow as pa
from datasets import Json
from datasets.features.features import register_feature


@dataclass
class ExactJson(Json):  # type: ignore[misc]  # datasets has no types
    _type: str = field(default="ExactJson", init=False, repr=False)  # its name in the file's metadata

    def encode_example(self, example_data: object) -> str | None:
        return None if example_data is None else text(example_data)

    def decode_example(
        self, example_data: str | None, token_per_repo_id: dict[str, str | bool | None] | None = None
    ) -> object:
        return None if example_data is None else json.loads(example_data)

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        return storage if isinstance(storage.type, pa.JsonType) else storage.cast(pa.string()).cast(self.pa_type)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # "this part of datasets may change"
    register_feature(ExactJson, "ExactJson")


def text(value: object) -> str:
    """Returns `value` as JSON. Raises ValueError for a number that JSON can't represent (NaN, Infinity)."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def array(values: list) -> pa.Array:
    """Returns an array with the JSON text of each value; null for None."""
    return pa.array([None if v is None else text(v) for v in values], pa.json_())
