"""Only Ray's public modules and names are used, also in scripts that tests have as strings."""

import ast
from collections.abc import Iterator

import pytest

from tests.conftest import REPO

FOLDERS = ("lib", "jobs", "cluster", "serve", "tune", "tests", "benchmarks")


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def uses(source: str) -> Iterator[str]:
    """Yields the private modules and names of Ray in Python source, each as a dotted name."""
    tree = ast.parse(source)
    bound = {}  # {name in this file: the Ray object it refers to}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "ray":
                    bound[alias.asname or "ray"] = alias.name if alias.asname else "ray"
                    if any(map(private, alias.name.split("."))):
                        yield alias.name
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray" and not node.level:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                bound[alias.asname or alias.name] = name
                if any(map(private, name.split("."))):
                    yield name
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import" in node.value:
            try:
                yield from uses(node.value)
            except (SyntaxError, ValueError):  # not a script
                continue
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            path, inner = [node.attr], node.value
            while isinstance(inner, ast.Attribute):
                path, inner = [inner.attr, *path], inner.value
            if isinstance(inner, ast.Name) and inner.id in bound:
                yield ".".join([bound[inner.id], *path])


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import ray\nray.nodes()", []),
        ("from ray.autoscaler.node_provider import NodeProvider\nNodeProvider.__name__", []),
        ("import rayon._private", []),
        ("from ray._raylet import GcsClient", ["ray._raylet.GcsClient"]),
        ("def f():\n    import ray.autoscaler._private.util as u", ["ray.autoscaler._private.util"]),
        ("from ray import _private", ["ray._private"]),
        ("from ray.experimental.internal_kv import _internal_kv_get as get", ["ray.experimental.internal_kv._internal_kv_get"]),
        ("import ray.train\nray.train._checkpoint.x", ["ray.train._checkpoint"]),
        ("from ray import serve as s\ns._private_api", ["ray.serve._private_api"]),
        ("SCRIPT = '''\nfrom ray._private import services\n'''", ["ray._private.services"]),
    ],
)  # fmt: skip
def test_what_is_found(source, found):
    assert list(uses(source)) == found


@pytest.mark.parametrize("folder", FOLDERS)
def test_only_public_ray(folder):
    files = sorted((REPO / folder).rglob("*.py"))
    assert files
    found = {f"{f.relative_to(REPO)}: {name}" for f in files for name in uses(f.read_text())}
    found -= {x for x in found if x.startswith("tests/test_public_ray.py")}
    assert not found, "\n".join(sorted(found))
