"""Moves a finished model from the node's disk into the run, checked and hashed."""

from __future__ import annotations

import shutil
from pathlib import Path

from lib.run import Run
from lib.runtime import finite, integrity, manifest
from lib.runtime.failure import StopTraining


def publish(run: Run, folder: Path) -> dict:
    """Moves an exported model into the run. Returns its fields for provenance.json: the size and SHA-256 of each file, and
    model_sha256 over the names and bytes of model/. Raises StopTraining if a weight isn't finite or writing failed."""
    finite.check_files(folder)
    made = {part: manifest.hashes(folder / part) for part in integrity.PARTS if (folder / part).exists()}
    for part, files in made.items():
        run.put(folder / part, part)
        if not run.remote and (why := integrity.changed(Path(run.at(part)), files, manifest.digest(files))):
            raise StopTraining(
                f"run: {part}/ of {run.path} could not be written: {why}. Check the disk, then --resume."
            )
    shutil.rmtree(folder)
    files = {f"{part}/{name}": v for part in made for name, v in made[part].items()}
    return {"model_sha256": manifest.digest(made["model"]), "files": files}
