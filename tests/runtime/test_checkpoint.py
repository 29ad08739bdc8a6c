"""A checkpoint is used only if every byte is as written."""

import json

import pytest

from lib.run import Run
from lib.runtime import checkpoint


@pytest.fixture(params=["local", "s3"])
def run(request, tmp_path):
    """A run with complete checkpoints of steps 2 and 4, on disk and on a real S3 server."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    run = Run(f"s3://runs/{tmp_path.name}" if request.param == "s3" else str(tmp_path / "run"))
    for step in (2, 4):
        folder = (
            tmp_path / "scratch" / f"checkpoint-{step}"
            if run.remote
            else tmp_path / "run" / "checkpoints" / f"checkpoint-{step}"
        )
        (folder / "sub").mkdir(parents=True)
        (folder / "weights.bin").write_bytes(bytes(range(256)) * step)
        (folder / "sub" / "state.json").write_text(json.dumps({"step": step}))
        checkpoint.seal(run, folder, keep=None)
        assert folder.exists() is not run.remote
    return run


def overwrite(run: Run, rel: str, data: bytes) -> None:
    with run.fs.open(run.at(rel), "wb") as f:
        f.write(data)


def test_newest_whole_one_is_used(run):
    assert checkpoint.latest(run) == (4, [])


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (
            lambda r: overwrite(r, "checkpoints/checkpoint-4/weights.bin", bytes(range(256))),
            "truncated: 256 of 1,024 bytes",
        ),
        (
            lambda r: overwrite(
                r, "checkpoints/checkpoint-4/weights.bin", bytes([1, *range(1, 256)]) + bytes(range(256)) * 3
            ),
            "corrupt",
        ),
        (lambda r: r.remove("checkpoints/checkpoint-4/sub/state.json"), "sub/state.json is missing"),
        (lambda r: r.remove("checkpoints/checkpoint-4/DONE.json"), "half-written"),
        (lambda r: overwrite(r, "checkpoints/checkpoint-4/DONE.json", b'{"files": {"wei'), "DONE.json is damaged"),
    ],
)
def test_damaged_one_is_refused_and_the_one_before_used(run, harm, says):
    harm(run)
    step, refused = checkpoint.latest(run)
    assert step == 2
    assert len(refused) == 1 and refused[0].startswith("checkpoint-4 refused") and says in refused[0]
    checkpoint.set_aside_after(run, step)
    assert checkpoint.steps(run) == [2]
    # A checkpoint that was once complete is kept until a newer complete one exists.
    kept = [n for n in run.folders("checkpoints") if n.startswith("damaged")]
    assert kept == ([] if "half-written" in says else ["damaged-checkpoint-4"])


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b'"x"', b'{"files": [1]}', b'{"files": {"w": 3}}', b"\xff"])
def test_any_other_done_json_is_damaged(text, tmp_path):
    run = Run(tmp_path / "run")
    (tmp_path / "run/checkpoints/checkpoint-2").mkdir(parents=True)
    overwrite(run, "checkpoints/checkpoint-2/DONE.json", text)
    assert checkpoint.latest(run) == (None, ["checkpoint-2 refused: DONE.json is damaged"])


def test_what_was_set_aside_goes_when_a_newer_whole_one_stands(run, tmp_path):
    for step in (2, 4):
        overwrite(run, f"checkpoints/checkpoint-{step}/weights.bin", b"x")
    checkpoint.set_aside_after(run, None)
    checkpoint.set_aside_after(run, None)
    assert sorted(run.folders("checkpoints")) == ["damaged-checkpoint-2", "damaged-checkpoint-4"]
    for step, left in ((3, ["damaged-checkpoint-4"]), (4, [])):
        folder = (tmp_path / "again" if run.remote else tmp_path / "run" / "checkpoints") / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "w").write_bytes(b"x")
        checkpoint.seal(run, folder, keep=1)
        assert [n for n in run.folders("checkpoints") if n.startswith("damaged")] == left
        assert checkpoint.latest(run) == (step, [])


def test_a_folder_that_somebody_copied_is_no_checkpoint(run):
    run.write_text("checkpoints/checkpoint-4 copy/x", "y")
    assert checkpoint.steps(run) == [2, 4]


def test_nothing_whole(run):
    for step in (2, 4):
        run.remove(f"checkpoints/checkpoint-{step}/DONE.json")
    step, refused = checkpoint.latest(run)
    assert step is None and len(refused) == 2


def test_only_the_newest_are_kept(tmp_path):
    run = Run(tmp_path / "run")
    for step in (1, 2, 3, 4):
        folder = tmp_path / "run" / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "w").write_bytes(b"x")
        checkpoint.seal(run, folder, keep=2)
    assert checkpoint.steps(run) == [3, 4]


def test_fetch_gives_the_same_files(run, tmp_path):
    folder = checkpoint.fetch(run, 4, tmp_path / "node")
    assert checkpoint.hashes(tmp_path.__class__(folder)) == {
        k: tuple(v) for k, v in json.loads(run.read_text("checkpoints/checkpoint-4/DONE.json"))["files"].items()
    }
