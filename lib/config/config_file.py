"""Reads a job's YAML by the rules of YAML 1.2, refuses duplicate keys, and converts each value to its key's type.

PyYAML implements YAML 1.1, where `no` is false, `010` is 8 and `1:30` is 90. Here, as in YAML 1.2 (https://yaml.org/spec/1.2.2,
10.3), only true and false are booleans, a leading zero has no meaning, and `1:30` is text. If a key takes text, a number is kept
as written: `revision: 1e5` is a commit.
"""

from __future__ import annotations

import json
import re
import types
import typing
from pathlib import Path

import yaml

from lib.errors import UsageError, nearest


class Int(int):
    text: str
    """The number as written."""


class Float(float):
    text: str
    """The number as written."""


class Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """PyYAML's scanner and parser with YAML 1.2's core schema. Numbers are loaded as Int and Float, which keep their text."""

    yaml_implicit_resolvers: typing.ClassVar[dict] = {}
    yaml_constructors: typing.ClassVar[dict] = {
        f"tag:yaml.org,2002:{kind}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]
        for kind in ("null", "bool", "str", "seq", "map")
    } | {None: yaml.SafeLoader.construct_undefined}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Like SafeLoader's, but raises ConstructorError for a duplicate key. Keys are text, as written."""
        seen: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            key.tag = "tag:yaml.org,2002:str"
            if first := seen.get(key.value):
                lines = f"line {first.start_mark.line + 1} and line {key.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is set twice: {lines}")
            seen[key.value] = key
        return super().construct_mapping(node, deep)


def _number(loader: Loader, node: yaml.ScalarNode) -> Int | Float:
    text = loader.construct_scalar(node)
    value: Int | Float
    try:
        if node.tag.endswith("int"):
            value = Int(int(text, 0 if text.startswith(("0x", "0o")) else 10))
        else:
            value = Float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    except ValueError:  # for example `!!int ten`
        raise yaml.constructor.ConstructorError(None, None, f"{text} is not a number", node.start_mark) from None
    value.text = text
    return value


_DIGITS = "[0-9]+(?:_[0-9]+)*"
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", rf"[-+]?{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", rf"[-+]?(\.[0-9]+|{_DIGITS}(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+0123456789.")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):  # fmt: skip
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), _first)
for _kind in ("int", "float"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _number)

CLOCK = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
"""Text that jsonargparse, which reads YAML 1.1, would take for a number in base 60."""


def read_yaml(path: str, kinds: dict[str, object] | None = None) -> dict:
    """Reads the YAML file of --config. kinds: {key: type}, where known (see `settled`). Raises UsageError, naming the file."""
    p = Path(path)
    if not p.is_file():
        beside = [str(q) for q in p.parent.glob("*.yaml")] if p.parent.is_dir() else []
        raise UsageError(f"--config: there is no file {path}.{nearest(path, beside)}")
    try:
        tree = load(p.read_bytes())
    except (yaml.YAMLError, OSError) as e:
        what = "can't be read" if isinstance(e, OSError) else "is not valid YAML"
        remedy = " Save the file as UTF-8." if isinstance(e, yaml.reader.ReaderError) else ""
        raise UsageError(f"--config: {path} {what}: {' '.join(str(e).split())}{remedy}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"--config: {path} holds no keys.")
    try:
        return settled(tree, kinds or {})
    except ValueError as e:
        raise UsageError(f"{path}: {e}") from None


def load(data: bytes) -> object:
    """Parses YAML in UTF-8, or UTF-16 with a byte order mark. Raises yaml.YAMLError."""
    return yaml.load(data, Loader=Loader)


def settled(tree: dict, kinds: dict[str, object], prefix: str = "") -> dict:
    """Returns the tree with each value converted to its key's type, and without empty sections.

    kinds: {"section.key": type}; values of other keys are left unchanged. Raises ValueError for a value that the type excludes,
    such as null for an int.
    """
    out = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if key in kinds:
            refuse(key, value, kinds[key])
            out[name] = plain(value, kinds[key])
        elif isinstance(value, dict):
            out[name] = settled(value, kinds, f"{key}.")
        elif value is not None or not any(k.startswith(f"{key}.") for k in kinds):
            out[name] = plain(value)  # otherwise an empty section, such as `train:` with all its keys commented out
    return out


def plain(value: object, kind: object = typing.Any) -> object:
    """Replaces every Int and Float in `value` by a plain number, or by its text where `kind` takes text but no numbers."""
    if isinstance(value, dict):
        return {k: plain(v, _inner(kind)) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v, _inner(kind)) for v in value]
    if isinstance(value, Int | Float):
        as_text = takes(kind, str) and not takes(kind, int, float)
        return value.text if as_text else int(value) if isinstance(value, Int) else float(value)
    return value


def _inner(kind: object) -> object:
    """Returns the type of the values in a list or dict of type `kind`."""
    inside = [typing.get_args(k)[-1] for k in (kind, *typing.get_args(kind)) if typing.get_origin(k) in (list, dict)]
    return inside[0] if inside else typing.Any


def refuse(key: str, value: object, kind: object) -> None:
    """Raises ValueError for a value that isn't of its key's type but that jsonargparse would accept."""
    if value is None and not takes(kind, type(None)):
        raise ValueError(f"{key}: must not be null. Leave the key out for its default.")
    if isinstance(value, str) and CLOCK.fullmatch(value) and takes(kind, int, float) and not takes(kind, str):
        raise ValueError(f"{key}: {value} is not a number.")


def takes(kind: object, *wanted: type) -> bool:
    """Whether the annotation `kind` accepts values of one of the types `wanted`. bool doesn't count as int here."""
    if kind is typing.Any or kind in wanted:
        return True
    inside = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return any(isinstance(value, w) for value in inside for w in wanted)
    return typing.get_origin(kind) in (typing.Union, types.UnionType) and any(takes(k, *wanted) for k in inside)


def types_of(cls: type, prefix: str = "") -> dict[str, object]:
    """Returns {prefix + field: type} of a dataclass."""
    return {f"{prefix}{name}": kind for name, kind in typing.get_type_hints(cls).items()}


def dump(tree: dict) -> str:
    """Writes the tree as JSON: its strings are quoted, so a YAML 1.1 reader reads the same values."""
    return json.dumps(tree)
