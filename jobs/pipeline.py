"""Runs a chain of jobs from one YAML file: each step is an ordinary command, and its run is named by a hash of its inputs.

    python jobs/pipeline.py --config configs/pipeline/quickstart.yaml

A step's hash covers its configuration, data and code and, through their names, the runs it starts from. A rerun
therefore skips finished steps, resumes interrupted ones, and repeats only the steps that an edit affects.
<folder>/<step> links to the step's latest finished run, for use in other commands (local folders only).
"""

import argparse
import hashlib
import importlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from modulefinder import ModuleFinder
from pathlib import Path

from lib.config import config_file
from lib.config.config_file import read_yaml
from lib.errors import UsageError, nearest
from lib.run import Run, absolute
from lib.runtime import integrity, termination
from lib.runtime.forecast import Forecast
from lib.runtime.refusing import refusing

ROOT = Path(__file__).parent.parent
STEP = {"stage": "a job's name", "config": "a file's path", "set": "keys and values", "minutes": "a number"}
"""Keys of a step and their values. minutes: the step's duration on a reference machine, from which lib/runtime/forecast.py predicts it here."""
DRIVER_ONLY = [
    f"lib.{name}" for name in (
        "config.command_line", "config.ranges", "models.structure", "runtime.console", "runtime.failure", "runtime.forecast", "runtime.ray_session",
        "runtime.refusing", "runtime.resume", "runtime.termination", "stage.closing", "stage.driver", "stage.limits", "stage.plan", "stage.preflight",
        "stage.progress", "stage.stops", "stage.training", "stage.training_cli",
    )
]  # fmt: skip
"""Modules that can't change what a step computes; editing them repeats no step."""


def load(path: str) -> tuple[str, dict[str, dict]]:
    """Returns (folder, {step: {stage, config, set, minutes}}). Raises UsageError naming the wrong key."""
    tree = read_yaml(path)
    for key in tree:
        if key not in ("folder", "steps"):
            raise UsageError(f"{path}: {key} is not a key of a pipeline.{nearest(key, ['folder', 'steps'])}")
    if not isinstance(folder := tree.get("folder", f"runs/{Path(path).stem}"), str) or not folder.strip():
        raise UsageError(f"{path}: folder: must be a directory or s3://bucket/path, is {folder!r}.")
    steps = tree.get("steps")
    if not isinstance(steps, dict) or not steps or not all(isinstance(s, dict) for s in steps.values()):
        raise UsageError(f"{path}: steps is missing: {{name: {{stage: …, config: …, set: {{key: value}}}}}}.")
    stages = [p.stem for p in ROOT.glob("jobs/*.py") if p.stem not in ("__init__", "pipeline", "drill", "diff")]
    before: list[str] = []
    for name, step in tree["steps"].items():
        for key in step:
            if key not in STEP:
                raise UsageError(f"{path}: steps.{name}.{key} is not a key of a step.{nearest(key, STEP)}")
        minutes = step.get("minutes", 1.0)
        if not isinstance(minutes, int | float) or isinstance(minutes, bool) or not 0 < minutes < 1e6:
            raise UsageError(f"{path}: steps.{name}.minutes: must be a number above 0, is {minutes!r}.")
        for key, kind in (("stage", str), ("config", str), ("set", dict)):
            if key in step and not isinstance(step[key], kind):
                raise UsageError(f"{path}: steps.{name}.{key}: must be {STEP[key]}, is {step[key]!r}.")
        if step.get("stage") not in stages:
            raise UsageError(
                f"{path}: steps.{name}.stage: there is no jobs/{step.get('stage')}.py. Known: {', '.join(sorted(stages))}."
            )
        if not (ROOT / step.get("config", "")).is_file():
            raise UsageError(f"{path}: steps.{name}.config: there is no file {step.get('config')}.")
        for key, value in step.get("set", {}).items():
            _fill(value, {b: "" for b in before}, f"{path}: steps.{name}.set.{key}")
        _parse(step, {b: "runs/of-an-earlier-step" for b in before}, f"{path}: steps.{name}")
        before.append(name)
    return absolute(folder), tree["steps"]


def _fill(value, runs: dict[str, str], where: str) -> str:
    """Formats `value` for a command line, replacing {step} by that step's run directory."""
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        return value.format(**runs)
    except (KeyError, IndexError, ValueError) as e:
        raise UsageError(f"{where}: {e} is not an earlier step.{nearest(str(e).strip(chr(39)), runs)}") from None


def _parse(step: dict, runs: dict[str, str], where: str) -> None:
    """Raises UsageError if the step's job would reject a key or value, instead of failing only when the step starts."""
    from lib.config import ranges
    from lib.stage import training_cli
    from lib.stage.stage import Stage

    options = [f"--{k}={_fill(v, runs, where)}" for k, v in (step.get("set") or {}).items()]
    argv = ["--config", str(ROOT / step["config"]), *options]
    found = importlib.import_module(f"jobs.{step['stage']}").STAGE
    try:
        request = training_cli.parse(found, argv) if isinstance(found, Stage) else found.parse(argv)
        if problems := ranges.values(asdict(request.job)):
            raise UsageError("\n".join(problems))
    except ValueError as e:
        raise UsageError("\n".join(f"{where}: {line}" for line in str(e).splitlines())) from None


def identity(step: dict, settings: dict[str, str]) -> str:
    """Returns eight hex digits that change with anything the step's result depends on."""
    from lib import data
    from lib.config.job import Data
    from lib.data.rows import COMPARED, KINDS
    from lib.models import locate

    kinds = config_file.types_of(Data)
    config = read_yaml(str(ROOT / step["config"]), {f"data.{k}": kind for k, kind in kinds.items()})
    model = config.get("model") or {}
    section = dict(config.get("data") or {})
    for key, value in settings.items():
        if key.startswith("data.columns."):
            section["columns"] = section.get("columns", {}) | {key[13:]: value}
        elif key.startswith("data."):
            name = key[5:]
            section[name] = config_file.plain(config_file.load(value.encode()), kinds.get(name, str))
    for key in section:
        if key not in kinds:
            raise UsageError(f"{step['config']}: data.{key} is not a key of a job.{nearest(key, kinds)}")
    base = settings.get("model.base") or model.get("base")
    template = settings.get("model.chat_template") or model.get("chat_template")
    evaluated = {"reward": config.get("reward")} | {f"runs.{k}": v for k, v in (config.get("runs") or {}).items()}
    parts = {
        "config": config,
        "set": settings,
        "code": code(step["stage"]),
        "data": data.check(Data(**section), (*KINDS, COMPARED)).sha256,
        "base": locate.locate(base, model.get("revision"))[1] if base and "model.base" not in settings else None,
        "template": (ROOT / template).read_text(encoding="utf-8") if template and (ROOT / template).is_file() else None,
        "runs": {k: locate.locate(v)[1] for k, v in evaluated.items() if v and k not in settings},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:8]


def code(stage: str) -> str:
    """Returns the SHA-256 of jobs/<stage>.py and of every module of this project that it and the workers import, recursively."""
    finder = ModuleFinder(path=[str(ROOT)], excludes=DRIVER_ONLY)
    finder.run_script(str(ROOT / "jobs" / f"{stage}.py"))
    files = {m.__file__ for m in finder.modules.values() if m.__file__}
    if stage != "eval":
        finder = ModuleFinder(path=[str(ROOT)], excludes=DRIVER_ONLY)
        finder.run_script(str(ROOT / "lib" / "stage" / "worker.py"))
        files |= {m.__file__ for m in finder.modules.values() if m.__file__}
    return hashlib.sha256(b"".join(Path(f).read_bytes() for f in sorted(files))).hexdigest()


def commands(folder: str, steps: dict[str, dict]):
    """Yields (name, run, command line) in order. A step's run name depends on the names of the runs before it."""
    runs: dict[str, str] = {}
    for name, step in steps.items():
        settings = {k: _fill(v, runs, f"steps.{name}.set.{k}") for k, v in step.get("set", {}).items()}
        runs[name] = f"{folder}/{name}-{identity(step, settings)}"
        options = [x for k, v in settings.items() for x in (f"--{k}", v)]
        yield (
            name,
            Run(runs[name]),
            ["python", f"jobs/{step['stage']}.py", "--config", step["config"], *options, "--run", runs[name]],
        )


def latest(folder: str, name: str) -> Path:
    """Returns the link to a step's latest finished run. Raises UsageError if another file has its name."""
    link = Path(folder, name)
    if link.exists() and not link.is_symlink():
        raise UsageError(
            f"steps.{name}: {link} is in the way of a link to the step's run. Move it, or rename the step."
        )
    return link


def point(link: Path, run: Run) -> None:
    """Points the link at the run, atomically. The target is relative so that the folder can be moved."""
    temporary = link.with_name(f".{link.name}.{uuid.uuid4().hex[:8]}")
    temporary.symlink_to(run.name)
    os.replace(temporary, link)


def run_step(command: list[str], forecast: Callable[[], str | None]) -> int:
    """Runs the command and returns its exit code. Prints the forecast at once, again when it is first based on this machine's own
    speed (within a minute), and then every minute. On Ctrl-C, gives the command 60 s to stop its Ray before re-raising."""
    process = subprocess.Popen(command, cwd=ROOT)
    printed, measured = 0.0, False
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=2)
            text = forecast()
            if text and (time.time() - printed >= 60 or ("elsewhere" not in text and not measured)):
                print(text, flush=True)
                printed, measured = time.time(), "elsewhere" not in text
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        raise


def run_steps(folder: str, steps: dict[str, dict], dry_run: bool) -> None:
    """Runs the unfinished steps in order; exits with the code of the first one that fails."""
    started, total = time.time(), len(steps)
    forecast = Forecast({name: step.get("minutes") for name, step in steps.items()})
    links = {} if "://" in folder else {name: latest(folder, name) for name in steps}
    for i, (name, run, command) in enumerate(commands(folder, steps), 1):
        if run.finished() and not integrity.damage(run):
            print(f"[{i}/{total}] {name}: already done, in {run.path}", flush=True)
            if links and not dry_run:
                point(links[name], run)
            forecast.finished(name, None)
            continue
        resumes = run.is_run() and steps[name]["stage"] != "eval"
        command = [*command[:-2], "--resume", run.path] if resumes else command
        print(f"\n[{i}/{total}] {name}{' (resuming)' if resumes else ''}: {shlex.join(command)}", flush=True)
        if dry_run:
            continue
        begun = time.time()
        if code := run_step([sys.executable, *command[1:]], partial(forecast.line, name, run, begun)):
            print(
                f"\nStep {name} ended with exit code {code}; the reason is above. Rerun the same command to continue.",
                file=sys.stderr,
            )
            sys.exit(code if code > 0 else 1)
        if links:
            point(links[name], run)
        forecast.finished(name, time.time() - begun)
    if not dry_run:
        print(f"\nAll {total} steps are done, in {(time.time() - started) / 60:.1f} minutes.")
        if not run.remote and Path(run.at("reports/report.html")).is_file():
            for kind in ("json", "md", "html"):
                shutil.copy(run.at(f"reports/report.{kind}"), f"{folder}/report.{kind}")
            print(f"Report: {folder}/report.html")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the pipeline's YAML: folder, steps")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the steps, which of them are done, and their commands"
    )
    options = parser.parse_args()
    termination.as_interrupt()
    try:
        with refusing("jobs/pipeline.py"):
            run_steps(*load(options.config), options.dry_run)
    except KeyboardInterrupt:
        print(f"\n{termination.word()}. Rerun the same command to continue.", file=sys.stderr)
        sys.exit(termination.code())


if __name__ == "__main__":
    main()
