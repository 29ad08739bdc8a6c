"""The training stages that jobs/ declares."""

from __future__ import annotations

import importlib
from pathlib import Path

from lib.stage.stage import Stage

JOBS = Path(__file__).parents[2] / "jobs"


def configured(file: str) -> str:
    """Returns the name of the job that a configuration is for: configs/NAME.yaml, or configs/NAME/ANYTHING.yaml."""
    path = Path(file)
    return (
        path.parent.name
        if (JOBS / f"{path.parent.name}.py").is_file() and not (JOBS / path.name).with_suffix(".py").is_file()
        else path.stem
    )


def stages() -> dict[str, Stage]:
    """Returns {name: stage} of all stages in jobs/ that train."""
    found = [importlib.import_module(f"jobs.{file.stem}") for file in sorted(JOBS.glob("*.py"))]
    declared = [vars(module).get("STAGE") for module in found]
    return {s.name: s for s in declared if isinstance(s, Stage)}
