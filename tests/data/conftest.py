"""Small files for the data tests."""

import json

import pytest

CHAT = ("chat", "text")  # SFT's kinds of row


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """The cache folder of load in this test."""
    folder = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(folder))
    return folder / "shoestring"


@pytest.fixture
def write(tmp_path):
    """write(name, rows) → path of a JSONL file; rows that are bytes are written unchanged."""

    def write(name, rows):
        path = tmp_path / name
        path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
        return str(path)

    return write


def qa(n, start=0):
    return [{"question": f"What is {i}?", "answer": str(i)} for i in range(start, start + n)]


def questions(dataset):
    return [row["messages"][0]["content"] for row in dataset]


def qa_chats(n):
    return [
        {"messages": [{"role": "user", "content": f"Q{i}"}, {"role": "assistant", "content": "A"}]} for i in range(n)
    ]
