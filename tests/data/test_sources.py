"""Files, folders, globs, s3:// (a real moto server on loopback) and hub names (datasets' own offline cache)."""

import gzip
import json

import pytest

from lib.config.job import Data
from lib.data import check, load

ROWS = [{"question": f"What is {i}?", "answer": str(i)} for i in range(40)]


def lines(rows) -> str:
    return "".join(json.dumps(r) + "\n" for r in rows)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "sums"
    (folder / "more").mkdir(parents=True)
    (folder / "a.jsonl").write_text(lines(ROWS[:20]))
    (folder / "more" / "b.json").write_text(json.dumps(ROWS[20:]))
    (folder / "README.md").write_text("Sums.\n")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "old.jsonl").write_text("{")
    return folder


def test_folder(folder):
    found = check(Data(str(folder), heldout_fraction=0), ("chat",))
    assert (found.rows, found.format, found.ignored) == (40, "question-answer", [str(folder / "README.md")])
    assert found.lines() == [
        f"data: {folder}: question-answer (chat), 40 training rows, 0 held out (none)",
        "data: not read: README.md",
    ]


def test_a_folder_of_texts_alone_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n")
    (tmp_path / "b.md").write_text("Three.\n")
    assert check(Data(str(tmp_path), heldout_fraction=0), ("text",)).rows == 3


def test_glob_and_compressed(folder):
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(lines([{"question": "More?", "answer": "Yes."}]).encode()))
    assert check(Data(f"{folder}/*.jsonl*", heldout_fraction=0), ("chat",)).rows == 21


def test_places_in_a_folder_name_the_file(folder):
    (folder / "z.jsonl").write_text('{"question": "Why?"}\n')
    with pytest.raises(ValueError, match=f"{folder}/z.jsonl:1: no answer"):
        check(Data(str(folder)), ("chat",))


def test_a_folder_with_train_and_test_is_not_trained_on_whole(tmp_path):
    (tmp_path / "train-00.jsonl").write_text(lines(ROWS[:20]))
    (tmp_path / "test.jsonl").write_text(lines(ROWS[20:]))
    with pytest.raises(ValueError) as e:
        check(Data(str(tmp_path)), ("chat",))
    assert f"data.source: {tmp_path}/train-00.jsonl, data.heldout: {tmp_path}/test.jsonl." in str(e.value)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("{}/a.jsnol", r"^data.source: .*/a.jsnol doesn't exist on this machine. Nearest: .*/sums/a.jsonl, "),
        ("{}/nothing/here.csv", "here.csv doesn't exist on this machine. Give a file, a folder or a hub name.$"),
        ("{}/*.tsv", r"\*.tsv doesn't exist"),
        ("{}/more/empty", "more/empty holds no files"),
        ("{}/zero.jsonl", "zero.jsonl is empty"),
        ("{}/x.docx", "x.docx has no file type that can be read.* Readable: .json .jsonl"),
        ("{}/broken.jsonl.gz", "broken.jsonl.gz can't be read .*BadGzipFile"),
        ("{}/broken.parquet", "broken.parquet can't be read .*ArrowInvalid.* that the file is whole"),
        ("{}/broken.json", "^data.source: .*broken.json is broken at its first row"),
        ("{}/blank.jsonl", "blank.jsonl: it has no rows"),
        ("{}/bad.jsonl", "none of its first 2 rows can be read: .*bad.jsonl:1: broken JSON"),
        ("dmeo", "'dmeo' is no file or folder; nearest: demo"),
        ("s4://x/y.jsonl", "^data.source: s4://x/y.jsonl: there is no s4://; nearest: s3://"),
    ],
)
def test_unusable_addresses(folder, address, message):
    (folder / "more" / "empty").mkdir()
    for name in (
        "zero.jsonl",
        "x.docx",
        "broken.jsonl.gz",
        "broken.parquet",
        "broken.json",
        "blank.jsonl",
        "bad.jsonl",
    ):
        (folder / name).write_text({"zero.jsonl": "", "broken.json": "[{", "blank.jsonl": "\n"}.get(name, "{\n{\n"))
    with pytest.raises(ValueError, match=message):
        check(Data(address.format(folder)), ("chat",))


def test_heldout_is_named_in_its_own_errors(folder):
    with pytest.raises(ValueError, match=r"^data.heldout: .*b.jsn doesn't exist"):
        check(Data(str(folder), heldout=f"{folder}/b.jsn"), ("chat",))


@pytest.fixture(scope="module")
def bucket():
    """An S3 server on loopback with s3://shelf/sums/{a.jsonl, b.csv} and s3://shelf/test.jsonl."""
    import boto3
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as env:
        env.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        env.setenv("AWS_ACCESS_KEY_ID", "test")
        env.setenv("AWS_SECRET_ACCESS_KEY", "test")
        env.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="shelf")
        s3.put_object(Bucket="shelf", Key="sums/a.jsonl", Body=lines(ROWS[:20]).encode())
        s3.put_object(Bucket="shelf", Key="sums/b.csv", Body=b"question,answer\nMore?,Yes\n")
        s3.put_object(Bucket="shelf", Key="test.jsonl", Body=lines(ROWS[20:]).encode())
        s3.put_object(Bucket="shelf", Key="bad.jsonl", Body=b'{"question": "a", "answer": ""}\n')
        yield s3
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def test_s3(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    data = Data("s3://shelf/sums", heldout="s3://shelf/test.jsonl")
    found = check(data, ("chat",))
    assert (found.rows, found.heldout_rows, found.heldout) == (21, 20, "s3://shelf/test.jsonl")
    loaded = load(data, ("chat",))
    assert loaded.train[20]["messages"] == [
        {"role": "user", "content": "More?"},
        {"role": "assistant", "content": "Yes"},
    ]
    assert loaded.check.sha256 == found.sha256
    # A changed object is noticed though its name and size are the same.
    bucket.put_object(Bucket="shelf", Key="sums/b.csv", Body=b"question,answer\nLess?,Not\n")
    assert load(data, ("chat",)).train[20]["messages"][0]["content"] == "Less?"


def test_s3_errors(bucket):
    with pytest.raises(ValueError, match=r"s3://shelf/tset.jsonl doesn't exist. Nearest: s3://shelf/test.jsonl"):
        check(Data("s3://shelf/tset.jsonl"), ("chat",))
    with pytest.raises(ValueError, match=r"s3://shelf/bad.jsonl:1: answer is empty"):
        check(Data("s3://shelf/bad.jsonl"), ("chat",))


def test_s3_unreachable(bucket, monkeypatch):
    import fsspec

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(ValueError, match=r"data.source: s3://shelf/sums can't be read .*AWS_ENDPOINT_URL"):
        check(Data("s3://shelf/sums"), ("chat",))
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """No network, and a cache as left by load_dataset: garden/fruit with the splits train and test."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    files = {"train": tmp_path / "train.jsonl", "test": tmp_path / "test.jsonl"}
    files["train"].write_text(lines(ROWS[:20]))
    files["test"].write_text(lines([{"question": "Two?", "answer": "2"}]))
    datasets.load_dataset("json", data_files={k: str(v) for k, v in files.items()})
    made = next(tmp_path.glob("json/*/*/*/dataset_info.json")).parent
    cached = tmp_path / "garden___fruit" / "default" / "0.0.0" / made.name
    cached.parent.mkdir(parents=True)
    made.rename(cached)
    for arrow in cached.glob("json-*.arrow"):
        arrow.rename(cached / arrow.name.replace("json-", "fruit-"))
    info = json.loads((cached / "dataset_info.json").read_text())
    (cached / "dataset_info.json").write_text(json.dumps(info | {"config_name": "default", "dataset_name": "fruit"}))


def test_hub(hub):
    data = Data("garden/fruit", heldout="test")
    found = check(data, ("chat",))
    assert (found.format, found.rows, found.complete) == (None, None, False)
    assert found.lines() == [
        "data: garden/fruit, a hub dataset (split train): its rows are checked when the workers load it"
    ]
    loaded = load(data, ("chat",))
    assert (len(loaded.train), len(loaded.heldout), loaded.check.heldout) == (20, 1, "split test")
    assert loaded.heldout[0]["messages"][0]["content"] == "Two?"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            Data("garden/weeds"),
            r"^data.source: hub dataset 'garden/weeds' \(split train\) can't be loaded.* give a local file",
        ),
        (Data("garden/fruit", split="trian"), r"split trian\) can't be loaded: Unknown split .*train"),
        (Data("garden/fruit", heldout="valid"), r"^data.heldout: hub dataset 'garden/fruit' \(split valid\)"),
        (Data("garden/fruit", name="ripe"), r"for config 'ripe'.* data.name"),
    ],
)
def test_hub_errors(hub, data, message):
    with pytest.raises(ValueError, match=message):
        load(data, ("chat",))
