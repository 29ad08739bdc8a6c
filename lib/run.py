"""A run: the directory that one job writes. It is the only thing passed between training, evaluation, tuning and serving.

    job.yaml          the resolved configuration
    checkpoints/      checkpoint-<step>/ with DONE.json written last (lib/runtime/checkpoint.py)
    model/            loadable by from_pretrained, with adapter/ beside it if an adapter was trained and merged; if it can't be merged,
                      model/base/ and model/adapter/ (lib/models/unmerged.py)
    metrics.jsonl     one JSON object per log line, with `step`
    heldout.json      [sum of the loss, number of tokens, pairs or answers] of each held-out batch, at the end
    tensorboard/      event files, if train.report_to includes it
    reports/          report.json, report.md, report.html of evaluations; rl.html of a job that learns from rewards
    logs/             each process's library output (lib/runtime/logs.py)
    provenance.json   the run's inputs, code version and attempts; `status` is running, finished, failed or
                      interrupted

The directory is a local path or an s3:// address; fsspec reads and writes both.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


def absolute(path: str) -> str:
    """Makes `path` absolute; leaves URLs such as s3:// alone. Under `ray job submit` the working directory is a
    temporary upload that Ray deletes, so relative paths are resolved against SHOESTRING_HOME (default ~/shoestring)."""
    if "://" in path:
        return path.rstrip("/")
    uploaded = "working_dir_files" in Path.cwd().parts
    home = os.environ.get("SHOESTRING_HOME") or ("~/shoestring" if uploaded else ".")
    return os.path.abspath(os.path.join(os.path.expanduser(home), os.path.expanduser(path)))


class Run:
    """A run directory at `path` (local or s3://). Creating the object changes nothing on disk.

    A symbolic link, such as a pipeline's link to its latest run, is resolved once, here: paths recorded later stay correct
    when the link is moved.
    """

    def __init__(self, path: str):
        self.path = absolute(str(path))
        if os.path.islink(self.path):
            self.path = os.path.normpath(os.path.join(os.path.dirname(self.path), os.readlink(self.path)))
        self.remote = "://" in self.path
        self.name = self.path.rsplit("/", 1)[-1]

    def __repr__(self) -> str:
        return f"Run({self.path!r})"

    @property
    def fs(self) -> AbstractFileSystem:
        """The fsspec filesystem, created at each use because filesystems can't be sent between processes."""
        import fsspec

        # Listings cached by s3fs would hide what another process just wrote.
        options = {"use_listings_cache": False} if self.remote else {}
        return fsspec.filesystem(self.path.split("://")[0] if self.remote else "file", **options)

    def at(self, rel: str) -> str:
        return f"{self.path}/{rel}" if rel else self.path

    # -- contents ------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        return self.fs.exists(self.path)

    def is_run(self) -> bool:
        return self.fs.exists(self.at("job.yaml"))

    def finished(self) -> bool:
        return self.provenance().get("status") == "finished"

    def job(self) -> dict:
        """Returns the resolved configuration. Raises FileNotFoundError if this isn't a run, ValueError if job.yaml is damaged."""
        import yaml

        try:
            found = yaml.safe_load(self.read_text("job.yaml"))
        except (yaml.YAMLError, UnicodeDecodeError):
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("stage"), str):
            raise ValueError(
                f"{self.at('job.yaml')} is damaged: it holds no configuration with a `stage`. Put it back from a copy, or start the "
                "job again with another --run."
            )
        return found

    def provenance(self) -> dict:
        """Returns provenance.json, or {} before it is first written. Raises ValueError if the file is damaged."""
        remedy = f"Put it back from a copy, or delete it and --resume {self.path}, which rebuilds it from the last checkpoint."
        return self.read_json("provenance.json", remedy) if self.fs.exists(self.at("provenance.json")) else {}

    def metrics(self) -> list[dict]:
        """Returns the lines of metrics.jsonl, without a last line cut off by a kill. Raises ValueError for a damaged line."""
        if not self.fs.exists(self.at("metrics.jsonl")):
            return []
        found = []
        for number, line in enumerate(self.read_text("metrics.jsonl").split("\n")[:-1], 1):
            try:
                if line.strip():
                    found.append(dict(json.loads(line)))
            except (ValueError, TypeError):
                raise ValueError(
                    f"{self.at('metrics.jsonl')}:{number} is damaged. Delete the line, or restore the file from a copy."
                ) from None
        return found

    def model_dir(self) -> str:
        """Returns the local path of model/. A remote run's is downloaded into the cache, once per model_sha256.

        Raises ValueError if the run has no finished model.
        """
        if not self.finished():
            status = self.provenance().get("status")
            why = f"its run is {status}" if status else "it isn't a run"
            raise ValueError(f"{self.path} has no model/ to load: {why}. Finish it with --resume {self.path}.")
        if not self.remote:
            return self.at("model")
        key = hashlib.sha256(f"{self.path} {self.provenance().get('model_sha256')}".encode()).hexdigest()[:16]
        target = cache("models", key)
        if not target.exists():
            self.get("model", target)
        return str(target)

    # -- reading and writing --------------------------------------------------------------------------------------

    def read_text(self, rel: str) -> str:
        # One request: with open(), s3fs requests size and content separately, and fails if the file is replaced in between.
        return self.fs.cat_file(self.at(rel)).decode("utf-8")

    def read_json(self, rel: str, remedy: str) -> dict:
        """Reads a JSON object. Raises ValueError, naming the file and ending with `remedy`, if it holds anything else."""
        try:
            return dict(json.loads(self.read_text(rel)).items())
        except (ValueError, AttributeError) as e:
            raise ValueError(f"{self.at(rel)} is damaged: it holds no JSON object ({e}). {remedy}") from None

    def write_text(self, rel: str, text: str) -> None:
        """Replaces a file atomically: a reader sees the old text or the new text, never a part."""
        if self.remote:  # an object store's put is already atomic
            with self.fs.open(self.at(rel), "w", encoding="utf-8") as f:
                f.write(text)
            return
        path = Path(self.at(rel))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)

    def write_json(self, rel: str, obj: object) -> None:
        self.write_text(rel, json.dumps(obj, indent=1, sort_keys=True, default=str) + "\n")

    def append_text(self, rel: str, text: str) -> None:
        if not self.remote:
            Path(self.at(rel)).parent.mkdir(parents=True, exist_ok=True)
        with self.fs.open(self.at(rel), "ab") as f:
            f.write(text.encode())

    def files(self, rel: str = "") -> dict[str, int]:
        """Returns {path below `rel`: size in bytes} of every file there."""
        import fsspec

        root = fsspec.core.strip_protocol(self.at(rel))
        return {p[len(root) + 1 :]: i["size"] for p, i in self.fs.find(root, detail=True).items()}

    def folders(self, rel: str) -> list[str]:
        """Returns the names of the folders directly below `rel`; [] if it doesn't exist."""
        where = self.at(rel)
        if not self.fs.exists(where):
            return []
        return [
            e["name"].rstrip("/").rsplit("/", 1)[-1] for e in self.fs.ls(where, detail=True) if e["type"] == "directory"
        ]

    def put(self, local: str | Path, rel: str) -> None:
        """Replaces the folder `rel` with a copy of a local folder. In a local run the complete copy is renamed into place."""
        if self.remote:
            self.remove(rel)
            self.fs.put(f"{local}/", f"{self.at(rel)}/", recursive=True)
            return
        target, temporary = self.at(rel), self.at(f".{rel.replace('/', '-')}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        Path(temporary).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(local, temporary)
        self.remove(rel)
        os.replace(temporary, target)

    def get(self, rel: str, local: str | Path) -> None:
        """Copies the folder `rel` to a local folder, which appears only when the copy is complete."""
        local = Path(local)
        temporary = local.with_name(f".{local.name}.{uuid.uuid4().hex[:8]}")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        self.fs.get(f"{self.at(rel)}/", f"{temporary}/", recursive=True)
        try:
            os.replace(temporary, local)
        except OSError:  # another process was faster
            shutil.rmtree(temporary)

    def move(self, rel: str, to: str) -> None:
        """Renames a folder; `to` must not exist."""
        if not self.remote:
            os.rename(self.at(rel), self.at(to))
            return
        for name in self.files(rel):  # an object store has no folders to rename
            self.fs.cp_file(self.at(f"{rel}/{name}"), self.at(f"{to}/{name}"))
        self.remove(rel)

    def remove(self, rel: str) -> None:
        if self.fs.exists(self.at(rel)):
            self.fs.rm(self.at(rel), recursive=True)


def cache(*parts: str) -> Path:
    """Returns a path below SHOESTRING_CACHE (default ~/.cache/shoestring), for files that can be recreated."""
    return Path(os.environ.get("SHOESTRING_CACHE") or Path.home() / ".cache" / "shoestring").joinpath(*parts)
