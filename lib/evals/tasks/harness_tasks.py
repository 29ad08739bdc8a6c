"""Finds an lm-eval task, by its name in lm-eval's library or as a task file, and checks it before any data is loaded."""

from __future__ import annotations

import glob
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PREFIX = "lm_eval:"
LOCAL = ("json", "csv", "parquet", "text", "arrow", "pandas")
"""Values of dataset_path for which dataset_kwargs.data_files names the data."""


@dataclass
class LmEval:
    """Prompt settings of lm-eval's tasks (lm_eval:…), under lm-eval's own names."""

    num_fewshot: int | None = None
    """Number of solved examples before each question. None: the task's own default."""
    apply_chat_template: bool = False
    """Put each prompt into the model's chat template, as a user message."""
    fewshot_as_multiturn: bool = True
    """With a chat template: make each solved example a turn of its own instead of a part of the question."""
    system_instruction: str | None = None
    """System message before each question; plain text before it if there is no chat template."""
    allow_code: bool = False
    """Run the Python functions that your own task file names (!function, class). Functions of lm-eval's library always run."""


def check(name: str, settings: LmEval) -> None:
    """Raises ValueError if lm-eval, its task or the file is missing, or the file can't be used. Loads no data."""
    if not importlib.util.find_spec("lm_eval"):
        raise ValueError(f'tasks: {name} needs lm-eval: pip install "shoestring[eval]".')
    if settings.num_fewshot is not None and settings.num_fewshot < 0:
        raise ValueError(f"lm_eval.num_fewshot: must be 0 or more, is {settings.num_fewshot}.")
    if path := _path(name):
        _check_file(name, path, settings)
        return
    from lib.errors import nearest

    found, asked = manager(name)
    if asked not in found.all_tasks:
        raise ValueError(f"tasks: lm-eval has no {asked}.{nearest(asked, found.all_tasks)} Or give a .yaml file.")


def called(name: str) -> str:
    """Returns lm-eval's name of the task (or group): arc_easy for lm_eval:arc_easy, or the name in the file. Raises ValueError if
    the file has none."""
    path = _path(name)
    if not path:
        return name.removeprefix(PREFIX)
    config = _config(name, path)
    found = config.get("group") or config.get("task")
    if not isinstance(found, str):
        raise ValueError(f"tasks: {name}: {path} has no key task (or group), which names it.")
    return found


def manager(name: str):
    """Returns (lm-eval's TaskManager, the task's name in it)."""
    path = _path(name)
    if not path:
        return _library(), called(name)
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(path.parent), include_defaults=False), called(name)


@cache
def _library():
    """Returns the TaskManager of lm-eval's own tasks. It reads thousands of files each time, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _path(name: str) -> Path | None:
    asked = name.removeprefix(PREFIX)
    return Path(asked).expanduser() if asked.endswith((".yaml", ".yml")) else None


def _check_file(name: str, path: Path, settings: LmEval) -> None:
    asked = called(name)
    code = sorted({f for file in _files(name, path) for f in _functions(name, file)})
    if code and not settings.allow_code:
        raise ValueError(
            f"tasks: {name} names Python code, which would run here: {', '.join(code)}. Read it, then set lm_eval.allow_code: true."
        )
    if path.suffix == ".yml":
        raise ValueError(f"tasks: {name}: lm-eval reads task files that end in .yaml. Rename {path}.")
    found, _ = manager(name)  # silently skips files that it can't read
    if asked not in found.all_tasks:
        raise ValueError(
            f"tasks: {name}: lm-eval finds no task in {path}. Its keys are {', '.join(_config(name, path))}."
        )
    config = found.task_index[asked].cfg or {}
    kwargs = config.get("dataset_kwargs") or {}
    if config.get("dataset_path") in LOCAL and isinstance(kwargs, dict):
        for file in _named(kwargs.get("data_files")):
            if "://" not in file and not glob.glob(os.path.expanduser(file), recursive=True):
                raise ValueError(f"tasks: {name}: dataset_kwargs.data_files: there is no file {Path(file).absolute()}.")


def _named(files) -> Iterator[str]:
    """Yields the paths in data_files: a path, a list of paths, or {split: either}."""
    if isinstance(files, str):
        yield files
    for each in files.values() if isinstance(files, dict) else files if isinstance(files, list) else ():
        yield from _named(each)


def _files(name: str, path: Path) -> list[Path]:
    """Returns the task file and all files that it includes, directly or indirectly."""
    found, left = [], [path]
    while left:
        at = left.pop()
        if at in found:
            continue
        found.append(at)
        more = _config(name, at).get("include") or []
        left += [at.parent / m for m in (more if isinstance(more, list) else [more])]
    return found


def _functions(name: str, path: Path) -> Iterator[str]:
    for key, node in _nodes(_composed(name, path)):
        if node.tag == "!function" or key == "class":
            yield f"{node.value} ({path}:{node.start_mark.line + 1})"


def _nodes(node, key: str = "") -> Iterator[tuple[str, object]]:
    """Yields (key, node) for every node of a YAML tree."""
    import yaml

    yield key, node
    if isinstance(node, yaml.MappingNode):
        for k, v in node.value:
            yield from _nodes(v, str(k.value))
    elif isinstance(node, yaml.SequenceNode):
        for v in node.value:
            yield from _nodes(v)


def _composed(name: str, path: Path):
    """Returns the file's YAML tree without running any code. Raises ValueError if it can't be read or is not a mapping."""
    import yaml

    if not path.is_file():
        raise ValueError(f"tasks: {name}: there is no file {path.absolute()}.")
    try:
        tree = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ValueError(f"tasks: {name}: {path} is not YAML: {' '.join(str(e).split())}") from None
    if not isinstance(tree, yaml.MappingNode):
        raise ValueError(f"tasks: {name}: {path} must hold keys and values, such as task: my_task.")
    return tree


def _config(name: str, path: Path) -> dict:
    """Returns the file's own keys; a function is represented by its name. Raises ValueError if the file can't be read."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    tree = _composed(name, path)
    try:
        return Loader("").construct_document(tree)
    except yaml.YAMLError as e:
        raise ValueError(f"tasks: {name}: {path}: {' '.join(str(e).split())}") from None
