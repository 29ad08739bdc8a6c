"""Reads names, types and defaults of other libraries' config dataclasses from their source, without importing them.

`import trl` takes 6 to 10 seconds, but a misspelt key should be reported within one. So the class bodies are parsed with `ast`:
DPOConfig, its base classes up to transformers.TrainingArguments, and the enums in their annotations. The source is that of the
installed version, so there is no copy to keep up to date.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import types
import typing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MOVED = {
    "transformers.TrainingArguments": "transformers.training_args",
    "peft.tuners.lora.LoraConfig": "peft.tuners.lora.config",
}
"""{class as imported from a package that only re-exports it: the module that defines it}"""


@dataclass(frozen=True)
class Field:
    type: object
    default: object
    help: str


def read(dotted: str) -> dict[str, Field]:
    """Returns {name: Field} of the dataclass "module.sub:Class", base classes first. Raises LookupError if it doesn't exist."""
    module, name = dotted.split(":")
    return dict(_fields(module, name))


def filled(dotted: str, given: dict) -> types.SimpleNamespace:
    """Returns an object with all fields of the dataclass: `given`, and its defaults (None for those computed at run time)."""
    return types.SimpleNamespace(**{key: f.default for key, f in read(dotted).items()} | given)


@cache
def _fields(module: str, name: str) -> tuple[tuple[str, Field], ...]:
    found = _class(module, name)
    if found is None:
        raise LookupError(f"{module} has no class {name}")
    fields: dict[str, Field] = {}
    for base in map(ast.unparse, found.bases):
        where = _imported(module, base)
        if where and _class(where, base):  # other bases are mixins that add methods, not fields
            fields |= dict(_fields(where, base))
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_"):
            if "init=False" in (ast.unparse(node.value) if node.value else ""):
                fields.pop(node.target.id, None)  # a subclass may fix the value of a base class's field
                continue
            default, text = _default(node.value)
            fields[node.target.id] = Field(_type(module, node.annotation), default, text)
    return tuple(fields.items())


def _class(module: str, name: str) -> ast.ClassDef | None:
    return next((n for n in _parse(module).body if isinstance(n, ast.ClassDef) and n.name == name), None)


@cache
def _parse(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text(encoding="utf-8"))


def _file(module: str) -> Path:
    """Returns the source file of a module without importing its parents, as find_spec would."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:  # TRL, PEFT and transformers are packages
        raise LookupError(f"{top} is not installed: pip install {top}")
    path = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imported(module: str, name: str) -> str | None:
    """Returns the module that defines `name` as used in `module`: `module` itself, or the one it is imported from."""
    for node in _parse(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module
        if isinstance(node, ast.ImportFrom) and any(a.name == name for a in node.names):
            base = module.split(".")
            if _file(module).name != "__init__.py":
                base = base[:-1]
            parent = ".".join(base[: len(base) - node.level + 1]) if node.level else ""
            full = ".".join(p for p in (parent, node.module) if p)
            return MOVED.get(f"{full}.{name}", full)
    return None


def _default(value: ast.expr | None) -> tuple[object, str]:
    """Returns (default value, None if computed at run time; help text) of `field(default=…, metadata={"help": …})`."""
    if not isinstance(value, ast.Call):
        return _literal(value), ""
    options = {k.arg: k.value for k in value.keywords}
    metadata = _literal(options.get("metadata"))
    text = metadata.get("help", "") if isinstance(metadata, dict) else ""
    return _literal(options.get("default")), " ".join(text.split())


def _literal(node: ast.expr | None) -> object:
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


def _type(module: str, annotation: ast.expr) -> object:
    """Evaluates an annotation. Enums become Literals of their values; other names from outside typing and builtins become Any."""
    names = {n.id for n in ast.walk(annotation) if isinstance(n, ast.Name)}
    scope: dict[str, object] = {n: getattr(typing, n) for n in dir(typing)} | {"types": types}
    for name in names - set(scope):
        if not hasattr(builtins, name):
            scope[name] = _enum(module, name)
    text = ast.unparse(annotation)
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return _type(module, ast.parse(annotation.value, mode="eval").body)
    kind = eval(text, {"__builtins__": builtins}, scope)  # an installed library's own annotation, not user input
    literals = [t for t in typing.get_args(kind) if typing.get_origin(t) is typing.Literal]
    if literals and str in typing.get_args(kind):  # `SchedulerType | str`: the string must be one of the enum's values
        rest = [t for t in typing.get_args(kind) if t is not str]
        return typing.Union[tuple(rest)]  # noqa: UP007 - built at run time
    return kind


def _enum(module: str, name: str) -> object:
    where = _imported(module, name)
    found = _class(where, name) if where and _file(where).exists() else None
    if found is None:
        return typing.Any
    values = [n.value.value for n in found.body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)]
    return typing.Literal[tuple(values)] if values and all(isinstance(v, str) for v in values) else typing.Any
