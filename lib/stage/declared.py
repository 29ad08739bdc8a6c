"""The training stages that jobs/ declares."""

from __future__ import annotations

import importlib
from pathlib import Path

from lib.stage.stage import Stage

JOBS = Path(__file__).parents[2] / "jobs"


def configured(file: str) -> str:
    """Returns the name of the job that a configuration is for: configs/NAME.yaml, or configs/NAME/ANYTHING.yaml."""
    path = Path(file)
    folder = path.parent.name
    return folder if _is_job(folder) and not _is_job(path.stem) else path.stem


def _is_job(name: str) -> bool:
    return (JOBS / f"{name}.py").is_file()


def stages() -> dict[str, Stage]:
    """Returns {name: stage} of all stages in jobs/ that train."""
    found = [importlib.import_module(f"jobs.{file.stem}") for file in sorted(JOBS.glob("*.py"))]
    declared = [vars(module).get("STAGE") for module in found]
    return {s.name: s for s in declared if isinstance(s, Stage)}
