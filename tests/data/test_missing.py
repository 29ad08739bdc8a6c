"""A missing value counts as missing however a file writes it: an optional one is left out, a required one makes a bad row."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lib.config.job import Data
from lib.data import check, load
from tests.data.conftest import CHAT

pytestmark = pytest.mark.usefixtures("cache")
NAN, INF = float("nan"), float("inf")


def written(tmp_path, kind, rows):
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        columns = {c: [row.get(c) for row in rows] for c in rows[0]}
        types = {c: pa.string() if any(isinstance(v, str) for v in values) else None for c, values in columns.items()}
        pq.write_table(pa.table({c: pa.array(v, types[c]) for c, v in columns.items()}), path)
    elif kind == "csv":
        lines = [",".join(rows[0])] + [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# In Parquet, a text column can only contain null; a number column can also contain NaN.
EMPTY = [
    ("jsonl", NAN),
    ("jsonl", INF),
    ("jsonl", -INF),
    ("jsonl", None),
    ("json", NAN),
    ("csv", None),
    ("parquet", None),
]


@pytest.mark.parametrize(("kind", "nothing"), EMPTY)
def test_optional_columns_are_left_out(tmp_path, kind, nothing):
    full = {"instruction": "Say red.", "input": "Twice.", "output": "Red red.", "system": "Short."}
    rows = [full, full | {"instruction": "Say blue.", "input": nothing, "system": nothing}]
    loaded = load(Data(written(tmp_path, kind, rows), heldout_fraction=0), CHAT)
    assert loaded.train[1]["messages"] == [
        {"role": "user", "content": "Say blue."},
        {"role": "assistant", "content": "Red red."},
    ]


@pytest.mark.parametrize(("kind", "nothing"), EMPTY)
@pytest.mark.parametrize(
    ("want", "row", "needed"),
    [
        ("chat", {"question": "q", "answer": "a"}, "answer"),
        ("chat", {"question": "q", "answer": "a"}, "question"),
        ("chat", {"instruction": "i", "output": "o"}, "output"),
        ("chat", {"prompt": "p", "completion": "c"}, "completion"),
        ("preference", {"prompt": "p", "chosen": "c", "rejected": "r"}, "rejected"),
        ("preference", {"prompt": "p", "chosen": "c", "rejected": "r"}, "prompt"),
        ("labelled", {"prompt": "p", "completion": "c", "label": "true"}, "label"),
        ("text", {"text": "t", "id": "1"}, "text"),
        ("pair", {"sentence1": "s", "sentence2": "t", "score": "2"}, "score"),
    ],
)
def test_needed_columns_make_a_bad_row(tmp_path, kind, nothing, want, row, needed):
    path = written(tmp_path, kind, [row, row | {needed: nothing}, row])
    with pytest.raises(ValueError, match="1 of 3 rows can't be used") as e:
        check(Data(path, heldout_fraction=0), (want,))
    place = {"csv": ":3", "jsonl": ":2"}.get(kind, "[1]")
    assert f"{path}{place}: " in str(e.value) and needed in str(e.value).split(f"{path}{place}: ")[1]


def test_numbers_of_a_parquet_column(tmp_path):
    """pandas turns a column of integers with a hole into floats; the hole must not become "nan"."""
    path = written(tmp_path, "parquet", [{"question": f"{i}?", "answer": v} for i, v in enumerate((1.5, NAN, 2.5))])
    loaded = load(Data(path, heldout_fraction=0, bad_rows="skip"), CHAT)
    assert [row["messages"][1]["content"] for row in loaded.train] == ["1.5", "2.5"]
    assert loaded.check.bad == [(f"{path}[1]", "answer is null, not text")]


def test_words_that_look_like_a_hole_are_words(tmp_path):
    """pandas writes an empty CSV cell for a missing value, so a cell with "nan" or "NaN" is a real text."""
    rows = [{"question": "0 / 0 in JavaScript?", "answer": "NaN"}, {"question": "Bread in India?", "answer": "nan"}]
    for kind in ("csv", "jsonl", "parquet"):
        loaded = load(Data(written(tmp_path, kind, rows), heldout_fraction=0), CHAT)
        assert [row["messages"][1]["content"] for row in loaded.train] == ["NaN", "nan"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Say red.", "output": "Red.", "history": NAN}, "Red."),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "tools": NAN}, "y"),
        ({"instruction": "Name one.", "instances": [{"input": NAN, "output": "Fig."}]}, "Fig."),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "reasoning": NAN}]},
            "y",
        ),
    ],
)
def test_inner_values(write, row, expected):
    loaded = load(Data(write("a.jsonl", [row]), heldout_fraction=0), CHAT)
    assert loaded.train[0]["messages"][-1] == {"role": "assistant", "content": expected}
    assert "nan" not in str(loaded.train[0]) and loaded.train.column_names == ["messages"]


def test_a_system_text_of_another_type_is_not_dropped(write):
    with pytest.raises(ValueError, match="system is a list, not text"):
        check(Data(write("a.jsonl", [{"instruction": "x", "output": "y", "system": ["z"]}])), CHAT)
