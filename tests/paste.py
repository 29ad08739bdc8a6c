"""The commands of README.md and docs/*.md, taken from the code blocks and run in a copy of the project as a reader would paste them.

README's jobs and its server run in full. Elsewhere a job is planned with --dry-run, and `serve` and `ray` commands are checked by
their own parsers; markets are simulated everywhere. The first matching rule of README_RULES and RULES applies; a command without a
rule is an error, so that none is skipped unnoticed. MARK (tests/blocks.py) introduces a block that can't be run at all.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.blocks import README, Command
from tests.conftest import free_port
from tests.http import http

NO_CLUSTER = "http://127.0.0.1:8265"
"""Value of RAY_ADDRESS: no GCS answers there, as if the cluster could not be reached."""


class Wrong(AssertionError):
    """A command that doesn't work."""


@dataclass
class Terminal:
    """A shell in `folder`, which contains the project. markets: the exports that a simulator prints."""

    folder: Path
    env: dict[str, str]
    markets: dict[str, str]
    settings: list[str] = field(default_factory=list)
    """Lines that stay in effect for all later ones."""
    parsed: list[tuple[Command, list[str]]] = field(default_factory=list)
    """Commands that check() passes to the programs' own parsers, all at once since importing those takes seconds."""
    server: tuple[subprocess.Popen, int] | None = None
    """The server of the current block, and its port."""

    def paste(self, found: list[Command]) -> list[str]:
        """Runs the commands and returns one text for each that fails. Skips marked commands."""
        wrong, at = [], None
        for command in (c for c in found if not c.marked):
            try:
                if (command.page, command.block) != at:
                    at = command.page, command.block
                    self.stop()
                self.one(command)
            except Wrong as e:
                wrong.append(f"{command}\n{e}")
        try:
            self.stop()
        except Wrong as e:
            wrong.append(f"{command}\n{e}")
        return wrong + self.check()

    def one(self, command: Command, text: str | None = None) -> None:
        text = text or command.text
        rule = rule_of(command, text)
        if rule is None:
            raise Wrong("tests/paste.py has no rule for such a command.")
        rule(self, command, text)

    def run(self, text: str) -> str:
        """Runs a command and returns its output. Raises Wrong if it fails."""
        script = "\n".join(["set -eo pipefail", *self.settings, text])
        done = subprocess.run(["bash", "-c", script], cwd=self.folder, env=self.env, capture_output=True, text=True)
        if done.returncode:
            raise Wrong(f"exit code {done.returncode}\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
        return done.stdout

    # -- rules ----------------------------------------------------------------------------------------------------

    def really(self, command: Command, text: str) -> None:
        self.run(text)

    def setting(self, command: Command, text: str) -> None:
        """A line such as export. Market keys that a reader has to fill in are replaced by the simulator's."""
        if "…" in text:
            names = re.findall(r"(\w+)=…", text)
            if unknown := set(names) - self.markets.keys():
                raise Wrong(f"no market has a {', '.join(unknown)}")
            text = "export " + " ".join(f"{k}={shlex.quote(v)}" for k, v in self.markets.items())
        self.run(text)
        self.settings.append(text)

    def target(self, command: Command, text: str) -> None:
        """Checks with --dry-run that make has the target."""
        self.run(f"{text} --dry-run")

    def planned(self, command: Command, text: str) -> None:
        """Runs the job's own --dry-run. If the job would leave a run, a link to one of the quickstart's is created for later commands."""
        text = text.replace("RAY_ADDRESS=auto", f"RAY_ADDRESS={NO_CLUSTER}")  # auto might find the Ray of another test
        said = self.run(f"{text} --dry-run")
        made = re.search(r"^stage +jobs/\w+\.py → (/\S+)", said, re.M)
        if made and "jobs/drill.py" not in text:
            run = Path(made[1])
            if not run.exists():
                run.symlink_to(self.folder / "runs/quickstart/sft")

    def searched(self, command: Command, text: str) -> None:
        """Runs the search's own --dry-run."""
        self.run(f"{text} --dry-run")

    def found(self, command: Command, text: str) -> None:
        """A job that a search would have written: the dry run of the one that it starts from, which leaves no run for later commands."""
        stage, path = re.search(r"jobs/(\w+)\.py --config (\S+)", text).groups()
        (self.folder / path).parent.mkdir(parents=True)
        start = "pipeline/quickstart" if stage == "pipeline" else stage
        shutil.copy(self.folder / f"configs/{start}.yaml", self.folder / path)
        self.run(f"{text} --dry-run")

    def searchable(self, command: Command, text: str) -> None:
        """A search page, over fewer documents."""
        self.page(command, text.replace("docs/*.md", "docs/serving.md"))

    def page(self, command: Command, text: str) -> None:
        """A page that is served until Ctrl-C, which is sent once the page answers."""
        port = free_port()
        script = "\n".join([*self.settings, f"exec {text} --port {port}"])
        process = subprocess.Popen(
            ["bash", "-c", script], cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )  # fmt: skip
        while process.poll() is None:
            try:
                if http.get(f"http://127.0.0.1:{port}/").status_code == 200:
                    process.send_signal(signal.SIGINT)
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        said = process.communicate()[0]
        if process.returncode:
            raise Wrong(f"exit code {process.returncode}\n{said[-1500:]}")

    def served(self, command: Command, text: str) -> None:
        """A server that later commands of its block use, on its own Ray and port. It is stopped at the end of the block."""
        port, log = free_port(), self.folder / "server.log"
        text = text.replace("serve run ", "serve run --address local ", 1)
        script = "\n".join([*self.settings, f"exec {text} port={port}"])
        with log.open("w") as file:
            process = subprocess.Popen(
                ["bash", "-c", script], cwd=self.folder, env=self.env, stdout=file, stderr=subprocess.STDOUT
            )
        self.server = process, port
        while process.poll() is None:
            try:
                if http.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        self.server = None
        raise Wrong(f"exit code {process.returncode}\n{log.read_text()[-3000:]}")

    def stop(self) -> None:
        """Sends Ctrl-C to the server, if one is running."""
        if not self.server:
            return
        (process, _), self.server = self.server, None
        process.terminate()
        if process.wait() not in (143, -signal.SIGTERM):
            raise Wrong(f"the server's exit code is {process.returncode}")

    def asking(self, command: Command, text: str) -> None:
        """A request to the server of its block."""
        if not self.server:
            raise Wrong("no server of this block runs.")
        self.run(text.replace("127.0.0.1:8000", f"127.0.0.1:{self.server[1]}"))

    def gated(self, command: Command, text: str) -> None:
        """The gate must be evaluated, but the small model need not pass it."""
        if "gate: " not in (said := self.run(f"{text} 2>&1 || [ $? = 1 ]")):
            raise Wrong(said[-1500:])

    def simulated(self, command: Command, text: str) -> None:
        """The simulator, without boxes, which need root. It is stopped once it has printed its exports."""
        text = text.removeprefix("sudo ") + f" --boxes none --vast 0 --runpod 0 --state {self.folder}/sim"
        script = "\n".join([*self.settings, f"exec {text}"])
        process = subprocess.Popen(
            ["bash", "-c", script], cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )  # fmt: skip
        said = []
        for line in process.stdout:
            said.append(line)
            if "Ctrl-C" in line:
                process.terminate()
        process.wait()
        keys = [name for name in self.markets if name.endswith("_API_KEY")]
        if not keys or not all(f"export {name}=" in "".join(said) for name in keys):
            raise Wrong("".join(said)[-1500:])

    def head(self, command: Command, text: str) -> None:
        """Runs the command with --stop, which reads the same file and calls the same markets, since there is no machine to rent."""
        self.run(f"{text} --stop")

    def asked(self, command: Command, text: str) -> None:
        """A command up to its confirmation question, which gets no yes."""
        if "Nothing was rented." not in (said := self.run(f"{text} < /dev/null || true")):
            raise Wrong(said[-1500:])

    def elsewhere(self, command: Command, text: str) -> None:
        """A command for a box that doesn't exist here."""
        if "No market lists a rental" not in (said := self.run(f"{text} 2>&1 || true")):
            raise Wrong(said[-1500:])

    def submitted(self, command: Command, text: str) -> None:
        """Checks the options with Ray's own parser, and the job with its dry run, as on a cluster."""
        outer, _, inner = text.partition(" -- ")
        self.parse(command, outer + " -- true")
        self.one(command, f"RAY_ADDRESS={NO_CLUSTER} " + inner.replace("s3://BUCKET/", "s3://runs/"))

    def parse(self, command: Command, text: str) -> None:
        words = [w for w in shlex.split(text)]
        while "=" in words[0]:
            words = words[1:]
        self.parsed.append((command, words))

    def check(self) -> list[str]:
        """Returns the errors that the parsers of ray and serve, and our applications, report."""
        todo, self.parsed = self.parsed, []
        if not todo:
            return []
        script = [sys.executable, "-c", PARSE, json.dumps([words for _, words in todo])]
        done = subprocess.run(script, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            return [done.stderr[-3000:]]
        said = json.loads(done.stdout.splitlines()[-1])
        return [f"{c}\n{why}" for (c, _), why in zip(todo, said, strict=True) if why is not None]


README_RULES = [
    (r"python jobs/eval\.py --config configs/eval/gate\.yaml$", Terminal.gated),
    (r"python jobs/", Terminal.really),
    (r"serve run ", Terminal.served),
    (r"curl ", Terminal.asking),
]
"""Rules for README.md, tried before RULES: its journeys run in full."""

RULES = [
    (r"source |export ", Terminal.setting),
    (r"make quickstart$", Terminal.really),
    (r"make ", Terminal.target),
    (r"(echo|python -c) ", Terminal.really),
    (r"python jobs/.* --dry-run$", Terminal.really),
    (r"python -m tune ", Terminal.searched),
    (r"python jobs/\w+\.py --config \S+/best\.yaml$", Terminal.found),
    (r"python jobs/dpo\.py --config configs/dpo\.yaml --model\.base runs/quickstart/sft ", Terminal.really),
    (r"python jobs/\w+\.py --resume ", Terminal.really),
    (r"python jobs/(diff\.py|\w+\.py --help$)", Terminal.really),
    (r"(RAY_ADDRESS=\S+ )?python jobs/", Terminal.planned),
    (r"python -m serve\.(vote|chat) ", Terminal.page),
    (r"python -m serve\.search ", Terminal.searchable),
    (r"python -m serve\.passages ", Terminal.really),
    (r"python -m cluster head .* --stop$", Terminal.really),
    (r"python -m cluster head ", Terminal.head),
    (r"python -m cluster check\b", Terminal.asked),
    (r"sudo \.venv/bin/python -m cluster\.sim", Terminal.simulated),
    (r"python -m cluster ssh ", Terminal.elsewhere),
    (r"python -m cluster (offers|plan|status|cost|sweep)\b", Terminal.really),
    (r"(RAY_AUTH_MODE=token )?ray job submit ", Terminal.submitted),
    (r"ray (start|stop|up|down|dashboard)\b", Terminal.parse),
    (r"serve (run|deploy) ", Terminal.parse),
]


def rule_of(command: Command, text: str):
    """Returns the Terminal method for `text`, the command or a part of it, or None if no rule matches."""
    rules = README_RULES + RULES if command.page == README else RULES
    return next((rule for pattern, rule in rules if re.match(pattern, text)), None)


PARSE = r'''
import importlib, json, sys
import click, yaml
from ray.autoscaler.sdk import bootstrap_config
from ray.scripts.scripts import cli as ray
from ray.serve.schema import ServeDeploySchema
from ray.serve.scripts import cli as serve, convert_args_to_dict
from lib.generation import vllm_generator

vllm_generator.installed = lambda: True  # the pages name what needs vLLM; whether it is installed here doesn't matter

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
    """The environment of a reader whose home is in `folder`, without this process's markets, clusters and tokens."""
    ours = ("RAY_", "VAST_", "RUNPOD_", "SHOESTRING_", "HF_", "AWS_", "XDG_")
    home = folder / "home"
    home.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return env | {"HOME": str(home), "PYTHONPATH": str(folder / "shoestring")} | more
