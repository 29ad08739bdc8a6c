"""The space of a search: which keys of a job vary, over which values, and under which conditions."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from lib.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

    import optuna

    Asked = optuna.Trial | optuna.trial.FixedTrial

KINDS = ("choice", "grid", "uniform", "loguniform", "quniform", "randint")
"""Ray Tune's names (https://docs.ray.io/en/latest/tune/api/search_space.html). grid is choice; search: grid takes each of its values."""
CORNERS = 16
"""Maximum number of corners that are checked in every combination."""


@dataclass(frozen=True)
class Parameter:
    """A key that varies. kind: one of KINDS. values: the choices; otherwise (low, high), and for quniform (low, high, step)."""

    key: str
    kind: str
    values: tuple[Any, ...]
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """(key, values) pairs: the parameter exists only if each of these keys has one of these values."""

    @property
    def listed(self) -> bool:
        return self.kind in ("choice", "grid")

    def draw(self, trial: Asked) -> Any:
        if self.listed:  # as text, because Optuna's categories can't be lists
            return json.loads(trial.suggest_categorical(self.key, [json.dumps(v) for v in self.values]))
        if self.kind == "randint":
            return trial.suggest_int(self.key, self.values[0], self.values[1] - 1)
        if self.kind == "quniform":  # as the number of steps, which Optuna rounds to no other value
            return (self.all() or [])[trial.suggest_int(self.key, 0, len(self.all() or []) - 1)]
        return trial.suggest_float(self.key, *self.values, log=self.kind == "loguniform")

    def encode(self, value: Any) -> Any:
        if self.listed:
            return json.dumps(value)
        return (self.all() or []).index(value) if self.kind == "quniform" else value

    def all(self) -> list[Any] | None:
        """Returns every value; None if there are infinitely many."""
        if self.listed:
            return list(self.values)
        if self.kind == "randint":
            return list(range(*self.values))
        if self.kind == "quniform":
            low, high, step = (Decimal(str(v)) for v in self.values)  # 0.1 + 2 × 0.1 is 0.3
            whole = all(isinstance(v, int) for v in self.values)
            return [(int if whole else float)(low + i * step) for i in range(int((high - low) / step) + 1)]
        return None

    def ends(self) -> list[Any]:
        """Returns the values at the ends of the range; every choice of a list."""
        if self.listed:
            return list(self.values)
        values = self.all() or self.values
        return [values[0], values[-1]]

    def text(self) -> str:
        shown = ", ".join(map(str, self.values)) if self.listed else " to ".join(f"{v:g}" for v in self.ends())
        only = " and ".join(f"{k} is {' or '.join(map(str, v))}" for k, v in self.when)
        return f"{self.key}: {self.kind} {shown}" + (f", if {only}" if only else "")


@dataclass(frozen=True)
class Space:
    parameters: tuple[Parameter, ...]

    def draw(self, trial: Asked) -> dict[str, Any]:
        """Returns {key: value} as proposed by an Optuna trial, in the order of the YAML."""
        drawn: dict[str, Any] = {}
        for p in self.parameters:
            if holds(p, drawn):
                drawn[p.key] = p.draw(trial)
        return drawn

    def encode(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Returns `settings` as Optuna stores them: choices as text, multiples of a step as their number."""
        named = {p.key: p for p in self.parameters}
        return {k: named[k].encode(v) for k, v in settings.items() if k in named}

    def grid(self) -> list[dict[str, Any]]:
        """Returns every combination, without repeats. Raises ValueError if a parameter has infinitely many values."""
        for p in self.parameters:
            if p.all() is None:
                raise ValueError(f"space.{p.key}: search: grid needs listed values: choice, grid, randint or quniform.")
        return self._product([p.all() or [] for p in self.parameters])

    def corners(self) -> list[dict[str, Any]]:
        """Returns the settings to check before the search starts: every combination of the parameters' ends or, if those are more
        than CORNERS, every end of each parameter with the first ends of the others."""
        ends = [p.ends() for p in self.parameters]
        if math.prod(map(len, ends)) <= CORNERS:
            return self._product(ends)
        each = [[[e[0]] if j != i else e for j, e in enumerate(ends)] for i in range(len(ends))]
        found = [corner for axis in each for corner in self._product(axis)]
        return [c for i, c in enumerate(found) if c not in found[:i]]

    def _product(self, values: list[list[Any]]) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for combination in itertools.product(*values):
            drawn: dict[str, Any] = {}
            for p, value in zip(self.parameters, combination, strict=True):
                if holds(p, drawn):
                    drawn[p.key] = value
            found.setdefault(json.dumps(drawn, sort_keys=True), drawn)
        return list(found.values())


def holds(p: Parameter, drawn: dict[str, Any]) -> bool:
    """Whether the conditions of `p` hold for what was drawn before it."""
    return all(key in drawn and drawn[key] in values for key, values in p.when)


def read(tree: dict[str, Any]) -> tuple[Space, list[str]]:
    """Returns (the space of the YAML's `space`, a line for each problem)."""
    found: list[Parameter] = []
    problems: list[str] = (
        [] if tree else ["space: names no key to vary: {train.learning_rate: {loguniform: [1e-4, 1e-2]}}."]
    )
    for key, given in tree.items():
        try:
            found.append(_parameter(key, given, found))
        except ValueError as e:
            problems.append(f"space.{key}: {e}")
    return Space(tuple(found)), problems


def _parameter(key: str, given: Any, before: list[Parameter]) -> Parameter:
    if not isinstance(given, dict):
        raise ValueError(f"must be {{kind: values}}, such as {{choice: [1, 2]}}, is {given!r}.")
    kinds = [k for k in given if k != "when"]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        wrong = next((k for k in kinds if k not in KINDS), "")
        raise ValueError(
            f"needs one of {', '.join(KINDS)}, has {', '.join(map(str, kinds)) or 'none'}.{nearest(wrong, KINDS)}"
        )
    (kind,) = kinds
    values = given[kind]
    if not isinstance(values, list) or not values:
        raise ValueError(f"{kind} must be a list of values, is {values!r}.")
    p = Parameter(key, kind, tuple(values), _conditions(given.get("when") or {}, before))
    if p.listed:
        if len({json.dumps(v, sort_keys=True) for v in values}) < len(values):
            raise ValueError(f"{kind} lists a value twice: {values}.")
        return p
    need = 3 if kind == "quniform" else 2
    if len(values) != need or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{kind} must be [low, high{', step' if need == 3 else ''}] in numbers, is {values}.")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{kind} must have finite ends, has {values}.")
    low, high = values[:2]
    if low >= high:
        raise ValueError(f"{kind} must have its lower end first, has {low} and {high}.")
    if kind == "loguniform" and low <= 0:
        raise ValueError(f"loguniform must start above 0, starts at {low}.")
    if kind == "randint" and not all(isinstance(v, int) for v in values):
        raise ValueError(f"randint must have whole numbers, has {values}.")
    if kind == "quniform" and not 0 < values[2] <= high - low:
        raise ValueError(f"quniform must have a step between 0 and {high - low:g}, has {values[2]}.")
    return p


def _conditions(given: Any, before: list[Parameter]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    if not isinstance(given, dict):
        raise ValueError(f"when must be {{key: value or list of values}}, is {given!r}.")
    for key in given:
        if key not in [p.key for p in before]:
            near = nearest(str(key), [p.key for p in before])
            raise ValueError(f"when: {key} is not a key of the space above this one.{near}")
    found = tuple((k, tuple(v) if isinstance(v, list) else (v,)) for k, v in given.items())
    for key, values in found:
        whole = next(p for p in before if p.key == key).all()
        if whole is not None and not set(map(json.dumps, values)) <= set(map(json.dumps, whole)):
            raise ValueError(f"when: {key} never is {', '.join(map(str, values))}.")
    return found


def names(keys: Iterable[str]) -> dict[str, str]:
    """Returns {key: its last part}, or {key: key} where two end alike: {"train.learning_rate": "learning_rate"}."""
    ends = {k: k.rsplit(".", 1)[-1] for k in keys}
    return {k: e if list(ends.values()).count(e) == 1 else k for k, e in ends.items()}


def short(settings: dict[str, Any]) -> str:
    """Returns "learning_rate 0.00123, 0.002 after step 30, r 8": the settings without their sections, unless two keys end alike."""
    keys = names(k for k in settings if not k.startswith("schedule."))
    out = []
    for key, name in keys.items():
        out.append(f"{name} {_figure(settings[key])}")
        changes = settings.get(f"schedule.{key.rsplit('.', 1)[-1]}", {})
        out += [f"{_figure(value)} after step {step}" for step, value in changes.items()]
    return ", ".join(out)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
