"""README's commands, as a reader would paste them: taken from its blocks and carried out in a copy of the project.

What can't be done here (days of training, real markets, a server that runs until Ctrl-C) is done as far as it can be, by
the first of RULES that fits; a command that no rule fits is a failure, so that none is left out unseen.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.conftest import free_port


class Wrong(AssertionError):
    """A command of README's that doesn't work."""


@dataclass(frozen=True)
class Command:
    line: int
    text: str


def commands(readme: str) -> Iterator[Command]:
    """Of README's blocks, and jobs in its text, in order; comments are off and continued lines joined."""
    inside, begun = False, ""
    for number, line in enumerate(readme.splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif inside:
            begun += re.sub(r"\s+#.*", "", line)
            if begun.endswith("\\"):
                begun = begun[:-1]
            elif begun:
                yield Command(number, begun.strip())
                begun = ""
        else:
            yield from (Command(number, text) for text in re.findall(r"`(python jobs/[^`]+)`", line))


@dataclass
class Terminal:
    """A shell in `folder`, which holds the project; `markets`: what a simulator says to export."""

    folder: Path
    env: dict[str, str]
    markets: dict[str, str]
    settings: list[str] = field(default_factory=list)
    """Lines that hold for all later ones."""
    parsed: list[tuple[Command, list[str]]] = field(default_factory=list)
    """Commands that check() hands to the programs' own parsers, all at once since those take seconds to import."""

    def paste(self, found: list[Command]) -> list[str]:
        """What is wrong, one text for each command that is."""
        wrong = []
        for command in found:
            try:
                self.one(command)
            except Wrong as e:
                wrong.append(f"README.md:{command.line}: {command.text}\n{e}")
        return wrong + self.check()

    def one(self, command: Command, text: str | None = None) -> None:
        text = text or command.text
        for pattern, rule in RULES:
            if re.match(pattern, text):
                return rule(self, command, text)
        raise Wrong("tests/paste.py has no rule for such a command.")

    def run(self, text: str) -> str:
        """What a command prints. Raises Wrong where it fails."""
        script = "\n".join(["set -eo pipefail", *self.settings, text])
        done = subprocess.run(["bash", "-c", script], cwd=self.folder, env=self.env, capture_output=True, text=True)
        if done.returncode:
            raise Wrong(f"exit code {done.returncode}\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
        return done.stdout

    # -- rules ----------------------------------------------------------------------------------------------------

    def really(self, command: Command, text: str) -> None:
        self.run(text)

    def setting(self, command: Command, text: str) -> None:
        """A line such as export; keys of the markets that a reader has to fill in are the simulator's."""
        if "…" in text:
            names = re.findall(r"(\w+)=…", text)
            if unknown := set(names) - self.markets.keys():
                raise Wrong(f"no market has a {', '.join(unknown)}")
            text = "export " + " ".join(f"{k}={shlex.quote(v)}" for k, v in self.markets.items())
        self.run(text)
        self.settings.append(text)

    def target(self, command: Command, text: str) -> None:
        """Whether make knows how, without doing it."""
        self.run(f"{text} --dry-run")

    def planned(self, command: Command, text: str) -> None:
        """The job's own --dry-run. Where it would leave a run, a link to the quickstart's takes its place for later commands."""
        said = self.run(f"{text} --dry-run")
        made = re.search(r"^stage +jobs/\w+\.py → (/\S+)", said, re.M)
        if made and "jobs/drill.py" not in text:
            run = Path(made[1])
            if not run.exists():
                run.symlink_to(self.folder / "runs/quickstart/sft")

    def page(self, command: Command, text: str) -> None:
        """A page that is served until Ctrl-C: once it answers, that is typed."""
        port = free_port()
        script = "\n".join([*self.settings, f"exec {text} --port {port}"])
        process = subprocess.Popen(
            ["bash", "-c", script], cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )  # fmt: skip
        while process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/").status_code == 200:
                    process.send_signal(signal.SIGINT)
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        said = process.communicate()[0]
        if process.returncode:
            raise Wrong(f"exit code {process.returncode}\n{said[-1500:]}")

    def head(self, command: Command, text: str) -> None:
        """Without a machine to rent it is stopped instead, which reads the same file and asks the same markets."""
        self.run(f"{text} --stop")

    def asked(self, command: Command, text: str) -> None:
        """Up to its question, to which nobody says yes."""
        if "Nothing was rented." not in (said := self.run(f"{text} < /dev/null || true")):
            raise Wrong(said[-1500:])

    def elsewhere(self, command: Command, text: str) -> None:
        """On a box that isn't there."""
        if "No market lists a rental" not in (said := self.run(f"{text} 2>&1 || true")):
            raise Wrong(said[-1500:])

    def submitted(self, command: Command, text: str) -> None:
        """The options by Ray's own parser, and the job by its dry run, as on a cluster."""
        outer, _, inner = text.partition(" -- ")
        self.parse(command, outer + " -- true")
        self.one(command, "RAY_ADDRESS=http://127.0.0.1:8265 " + inner.replace("s3://BUCKET/", "s3://runs/"))

    def parse(self, command: Command, text: str) -> None:
        words = [w for w in shlex.split(text)]
        while "=" in words[0]:
            words = words[1:]
        self.parsed.append((command, words))

    def check(self) -> list[str]:
        """What the parsers of ray and serve, and our applications, find wrong."""
        todo, self.parsed = self.parsed, []
        if not todo:
            return []
        script = [sys.executable, "-c", PARSE, json.dumps([words for _, words in todo])]
        done = subprocess.run(script, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            return [done.stderr[-3000:]]
        said = json.loads(done.stdout.splitlines()[-1])
        return [
            f"README.md:{c.line}: {c.text}\n{why}" for (c, _), why in zip(todo, said, strict=True) if why is not None
        ]


RULES = [
    (r"source |export ", Terminal.setting),
    (r"make quickstart$", Terminal.really),
    (r"make ", Terminal.target),
    (r"echo ", Terminal.really),
    (r"python jobs/.* --dry-run$", Terminal.really),
    (r"python jobs/dpo\.py --config configs/dpo\.yaml --model\.base runs/quickstart/sft ", Terminal.really),
    (r"python jobs/\w+\.py --resume ", Terminal.really),
    (r"python jobs/(diff\.py|\w+\.py --help$)", Terminal.really),
    (r"(RAY_ADDRESS=\S+ )?python jobs/", Terminal.planned),
    (r"python -m serve\.(vote|chat) ", Terminal.page),
    (r"python -m cluster head ", Terminal.head),
    (r"python -m cluster check$", Terminal.asked),
    (r"python -m cluster ssh ", Terminal.elsewhere),
    (r"python -m cluster (offers|plan|status|cost|sweep)\b", Terminal.really),
    (r"(RAY_AUTH_MODE=token )?ray job submit ", Terminal.submitted),
    (r"ray (start|stop|up|down|dashboard)\b", Terminal.parse),
    (r"serve (run|deploy) ", Terminal.parse),
]

PARSE = r'''
import importlib, json, sys
import click, yaml
from ray.autoscaler.sdk import bootstrap_config
from ray.scripts.scripts import cli as ray
from ray.serve.schema import ServeDeploySchema
from ray.serve.scripts import cli as serve, convert_args_to_dict
from lib import vllm_generator

vllm_generator.installed = lambda: True  # README says where vLLM is needed; whether it is here is no matter

def application(path, args):
    module, name = path.split(":")
    getattr(importlib.import_module(module), name)(args)

def parsed(group, words):
    """The values of the last command's parameters."""
    context = group.make_context(words[0], list(words[1:]), resilient_parsing=False)
    while isinstance(context.command, click.Group):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    return context.params

def why(words):
    try:
        given = parsed({"ray": ray, "serve": serve}[words[0]], words)
        if words[:2] == ["serve", "run"]:
            application(given["config_or_import_path"], convert_args_to_dict(given["arguments"]))
        if words[:2] == ["serve", "deploy"]:
            for app in ServeDeploySchema(**yaml.safe_load(open(given["config_or_import_path"]))).applications:
                application(app.import_path, app.args)
        if words[1] in ("up", "down", "dashboard"):
            bootstrap_config(yaml.safe_load(open(given["cluster_config_file"])), no_config_cache=True)
    except click.ClickException as e:
        return e.format_message()
    except Exception as e:
        return f"{type(e).__name__}: {e}"

print(json.dumps([why(words) for words in json.loads(sys.argv[1])]))
'''


def environment(folder: Path, **more: str) -> dict[str, str]:
    """That of a reader whose home is in `folder`, without what this process has of markets, clusters and tokens."""
    ours = ("RAY_", "VAST_", "RUNPOD_", "SHOESTRING_", "HF_", "AWS_", "XDG_")
    home = folder / "home"
    home.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return env | {"HOME": str(home), "PYTHONPATH": str(folder / "shoestring")} | more
