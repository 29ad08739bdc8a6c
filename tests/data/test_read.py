"""Every kind of file, well and badly written, to rows with their positions."""

import bz2
import gzip
import json
import lzma

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lib.data import read
from lib.data.rows import BadRow

LOCAL = fsspec.filesystem("file")


def rows(tmp_path, name: str, content: bytes | str) -> list[tuple[str, dict | str]]:
    """Writes the file and reads it; bad rows are returned as their error."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(place, str(r) if isinstance(r, BadRow) else r) for place, r in read.rows(LOCAL, str(path), name)]


def test_json_lines(tmp_path):
    text = '\ufeff{"a": 1}\n\n{"a": "é"}\r\n{"a": \n[1]\n"x"\n{"a": 2}'
    assert rows(tmp_path, "x.jsonl", text) == [
        ("x.jsonl:1", {"a": 1}),
        ("x.jsonl:3", {"a": "é"}),
        ("x.jsonl:4", "broken JSON (Expecting value: line 1 column 6 (char 5))"),
        ("x.jsonl:5", "is [1], not an object with columns"),
        ("x.jsonl:6", 'is "x", not an object with columns'),
        ("x.jsonl:7", {"a": 2}),
    ]


def test_json_array(tmp_path):
    assert rows(tmp_path, "x.json", ' [ {"a": 1},\n{"a": [2, {"b": "]"}]} , 7,{"a": 3}\n]\n') == [
        ("x.json[0]", {"a": 1}),
        ("x.json[1]", {"a": [2, {"b": "]"}]}),
        ("x.json[2]", "is 7, not an object with columns"),
        ("x.json[3]", {"a": 3}),
    ]
    assert rows(tmp_path, "x.jsonl", '[{"a": 1}]') == [("x.jsonl[0]", {"a": 1})]
    assert rows(tmp_path, "x.json", "[]") == []


@pytest.mark.parametrize("block", [4, 16, 1 << 20])
def test_json_array_in_pieces(tmp_path, monkeypatch, block):
    """Elements, numbers and multi-byte characters that are split at the end of a block are read correctly."""
    monkeypatch.setattr(read, "BLOCK", block)
    expected = [{"n": 123456789, "s": "é😀" * i, "l": [i, None, True]} for i in range(30)]
    assert [r for _, r in rows(tmp_path, "x.json", json.dumps(expected, ensure_ascii=False))] == expected


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        (
            "x.json",
            '[{"a": 1}, {"a": 2',
            r"x.json is broken after row \[0\] .* Repair the file, or write it as JSON Lines",
        ),
        ("x.json", '[{"a": 1}', r"x.json is broken after row \[0\] \(Expecting value"),
        ("x.json", "[{'a': 1}]", "x.json is broken at its first row"),
        ("x.json", '{"a": 1,\n "b"', "x.json is broken JSON"),
        ("x.json", "3", "x.json holds 3, not rows"),
        ("x.csv", 'a,b\n1,2\n3,"4\n5,6\n', "x.csv:3 opens a quote that is never closed"),
        ("x.csv", "a,b,a\n1,2,3\n", "'a' twice"),
        ("x.jsonl", '{"a": 1}'.encode("utf-16"), "x.jsonl is UTF-16; save it as UTF-8"),
    ],
)
def test_unreadable(tmp_path, name, text, why):
    with pytest.raises(read.Unreadable, match=why):
        rows(tmp_path, name, text)


def test_json_of_other_layouts(tmp_path):
    """JSON Lines in a .json file; an object that contains the list; an object that is itself a row with messages."""
    assert rows(tmp_path, "x.json", '{"a": 1}\n{"a": 2}\n') == [("x.json:1", {"a": 1}), ("x.json:2", {"a": 2})]
    assert rows(tmp_path, "x.json", json.dumps({"version": 1, "data": [{"a": 1}, {"a": 2}]}, indent=1)) == [
        ("x.json[0]", {"a": 1}),
        ("x.json[1]", {"a": 2}),
    ]
    chat = {"messages": [{"role": "user", "content": "x"}]}
    assert rows(tmp_path, "x.json", json.dumps(chat)) == [("x.json[0]", chat)]


def test_csv(tmp_path):
    text = 'q,a\r\nwhy,because\r\n"two\nlines, ""quoted""",ok\r\n\r\nonly one\r\n1,2,3\r\nlast,\r\n'
    assert rows(tmp_path, "x.csv", text) == [
        ("x.csv:2", {"q": "why", "a": "because"}),
        ("x.csv:3", {"q": 'two\nlines, "quoted"', "a": "ok"}),
        ("x.csv:6", "has 1 cells, the first line has 2"),
        ("x.csv:7", "has 3 cells, the first line has 2"),
        ("x.csv:8", {"q": "last", "a": ""}),
    ]


def test_csv_goes_on_after_a_broken_row(tmp_path):
    text = 'q,a\n"x"y,1\nwhy,because\n'
    assert rows(tmp_path, "x.csv", text) == [
        ("x.csv:2", "broken CSV (',' expected after '\"')"),
        ("x.csv:3", {"q": "why", "a": "because"}),
    ]


def test_csv_separators_and_long_cells(tmp_path):
    assert rows(tmp_path, "x.tsv", "q\ta\nx, y\tz\n") == [("x.tsv:2", {"q": "x, y", "a": "z"})]
    assert rows(tmp_path, "x.csv", "q;a\nx, y;z\n") == [("x.csv:2", {"q": "x, y", "a": "z"})]
    long = "word " * 40_000  # Python's own limit is 131,072 characters
    assert rows(tmp_path, "x.csv", f"q,a\n{long},z\n") == [("x.csv:2", {"q": long, "a": "z"})]


def test_text_is_paragraphs_or_lines(tmp_path):
    assert rows(tmp_path, "x.txt", "\nOne\ntwo\n\n \n\nThree\n") == [
        ("x.txt:2", {"text": "One\ntwo"}),
        ("x.txt:7", {"text": "Three"}),
    ]
    assert rows(tmp_path, "x.raw", "One\n two \r\nThree") == [
        ("x.raw:1", {"text": "One"}),
        ("x.raw:2", {"text": " two "}),
        ("x.raw:3", {"text": "Three"}),
    ]


def test_parquet(tmp_path):
    """Nulls that Arrow adds to objects are removed; a null column stays."""
    expected = [
        {"m": [{"role": "user"}, {"name": "x"}], "t": None},
        {"m": [{"role": "tool", "name": "y"}], "t": "z"},
    ]
    pq.write_table(pa.Table.from_pylist(expected), tmp_path / "w.parquet", row_group_size=1)
    assert rows(tmp_path, "x.parquet", (tmp_path / "w.parquet").read_bytes()) == [
        ("x.parquet[0]", expected[0]),
        ("x.parquet[1]", expected[1]),
    ]


def zstd(content: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as f:
        f.write(content)
    return packed.getvalue().to_pybytes()


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


@pytest.mark.parametrize("packed", PACK)
def test_compressed(tmp_path, packed):
    name = f"x.jsonl.{packed}"
    lines = [{"a": i, "b": "x" * 100} for i in range(2_000)]
    content = PACK[packed]("".join(json.dumps(line) + "\n" for line in lines).encode())
    assert rows(tmp_path, name, content) == [(f"{name}:{n}", line) for n, line in enumerate(lines, 1)]


def test_endings():
    assert [read.ending(p) for p in ("/a.b/x.JSONL.gz", "x.csv", "/a.b/README", "x.gz", "d/.hidden/x.raw")] == [
        ".jsonl", ".csv", "", "", ".raw",
    ]  # fmt: skip


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_json_lines_under_json_with_a_first_row_of_any_length(tmp_path, packed):
    """Longer than the part that is read to detect the layout; and one that ends exactly there."""
    for size in (read.BLOCK - 11, read.BLOCK + 1, 3 * read.BLOCK):
        lines = f"\ufeff\n{json.dumps({'a': 'x' * size})}\n\n{json.dumps({'a': 'y'})}\n".encode()
        found = rows(tmp_path, f"x.json{packed}", gzip.compress(lines, 1) if packed else lines)
        assert found == [(f"x.json{packed}:2", {"a": "x" * size}), (f"x.json{packed}:4", {"a": "y"})]


@pytest.mark.parametrize("text", ['{"a": "%s"}\n\n', '\n{"version": 1, "rows": [{"a": "%s"}]}', '{\n"a":\n"%s"\n}\n'])
def test_one_long_object_is_no_json_lines(tmp_path, text):
    long = "x" * read.BLOCK
    assert rows(tmp_path, "x.json", text % long) == [("x.json[0]", {"a": long})]


@pytest.mark.parametrize(
    "name", ["x.jsonl", "x.json", "x.csv", "x.txt", "x.csv.gz", "x.json.bz2", "x.txt.xz", "x.csv.zst"]
)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_named(tmp_path, name, encoding):
    """With and without a byte order mark; also compressed."""
    content = '{"a": 1}\n'.encode(encoding)
    with pytest.raises(read.Unreadable, match=f"{name} is UTF-16"):
        rows(tmp_path, name, PACK.get(name.rsplit(".", 1)[1], bytes)(content))


def test_csv_columns_that_are_not_utf_8_are_named(tmp_path):
    with pytest.raises(
        read.Unreadable, match=r"x\.csv: the first line, which names the columns, has bytes that are not UTF-8"
    ):
        rows(tmp_path, "x.csv", "prénom,a\nx,y\n".encode("latin-1"))


def test_nan_and_infinity_are_null(tmp_path):
    text = '{"a": NaN, "b": 1.5}\n{"a": -Infinity, "b": 1e999}\n{"a": "NaN", "b": [NaN]}\n'
    (_, first), (_, second), (_, third) = rows(tmp_path, "x.jsonl", text)
    assert (first, second, third["a"]) == ({"a": None, "b": 1.5}, {"a": None, "b": None}, "NaN")
    assert rows(tmp_path, "x.json", '{"a": NaN}') == [("x.json[0]", {"a": None})]
    pq.write_table(pa.table({"a": [1.0, float("nan"), None]}), tmp_path / "w.parquet")
    found = rows(tmp_path, "x.parquet", (tmp_path / "w.parquet").read_bytes())
    assert [row for _, row in found] == [{"a": 1.0}, {"a": None}, {"a": None}]
