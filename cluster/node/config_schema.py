"""Checks a cluster's YAML against Ray's own schema and reports each mistake by its key; Ray itself would print the whole schema."""

from __future__ import annotations

import difflib
import json
from dataclasses import fields
from pathlib import Path

from cluster.market import registry
from cluster.node.autoscaler_config import NODE_KEYS, Settings
from lib.errors import nearest

NEEDED = ("cluster_name", "provider", "available_node_types", "head_node_type", "max_workers")
KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list: [a, b]",
    "object": "a section of keys",
}


def check(config: object) -> None:
    """Raises ValueError with one line per mistake."""
    import ray.autoscaler
    from jsonschema import Draft7Validator

    if not isinstance(config, dict):
        raise ValueError("the YAML holds no keys.")
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    # Sorted by key; lines that repeat a missing key of NEEDED are dropped below.
    found = sorted(Draft7Validator(schema).iter_errors(config), key=lambda e: [str(part) for part in e.absolute_path])
    problems = [f"there is no {key}." for key in NEEDED if key not in config]
    problems += [line for error in found for line in _lines(error) if line not in problems]
    if not problems:
        problems = _meaning(config)
    if problems:
        raise ValueError("\n".join(problems))


def _lines(error) -> list[str]:
    """Returns an error of jsonschema as readable lines."""
    where, value = ".".join(map(str, error.absolute_path)), error.instance
    if error.validator == "additionalProperties":
        return [_unknown(where, key, error.schema) for key in value if key not in error.schema["properties"]]
    if error.validator == "required":
        return [f"there is no {_join(where, key)}." for key in error.validator_value if key not in value]
    if error.validator == "type":
        kind = KINDS.get(error.validator_value, error.validator_value)
        return [f"{where}: must be {kind}, is {'empty' if value is None else repr(value)}."]
    if error.validator == "minimum":
        return [f"{where}: must be at least {error.validator_value}, is {value}."]
    return [f"{where or 'the YAML'}: {error.message}"]


def _unknown(where: str, key: str, schema: dict) -> str:
    known = {k: _join(where, k) for k in schema["properties"]}
    if not where:  # perhaps a key of the provider section, one level too high
        known = {f.name: f"provider.{f.name}" for f in fields(Settings)} | known
    if where.startswith("available_node_types."):
        known = {k: f"{where}.node_config.{k}" for k in NODE_KEYS} | known
    close = difflib.get_close_matches(key, known, n=1)
    return f"{_join(where, key)} is not a key of a cluster." + (f" Did you mean {known[close[0]]}?" if close else "")


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _meaning(config: dict) -> list[str]:
    types, head, out = config["available_node_types"], config["head_node_type"], []
    if head not in types:
        out.append(f"head_node_type: {head} is not in available_node_types.{nearest(head, types)}")
    names = config["provider"].get("markets")
    for name in names if isinstance(names, list) else []:
        if name not in registry.MARKETS:
            near = nearest(str(name), registry.MARKETS) or f" There are: {', '.join(registry.MARKETS)}."
            out.append(f"provider.markets: there is no market {name}.{near}")
    least = sum(node.get("min_workers", 0) for node in types.values())
    if least > config["max_workers"]:
        out.append(f"max_workers: is {config['max_workers']}, but min_workers of the node types are {least} together.")
    return out
