"""The check's table, and its JSON report for bug reports, which contains no key, address, host or user name."""

from __future__ import annotations

import getpass
import platform
import re
import socket
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from cluster.check.pipeline import Pipeline, mark
from cluster.cost import table
from lib.runtime.provenance import git_state

ADDRESS = re.compile(
    r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)"  # IPv4
    r"|(?<![\w:])(?:[0-9a-f]{0,4}:){3,7}[0-9a-f]{0,4}(?![\w:])",  # IPv6
    re.IGNORECASE,
)
HOST = re.compile(
    r"(?<=://)[^/\s'\"]+|(?<=@)[\w.-]+|(?:(?<=host )|(?<=hostname ))[\w.-]+|\b[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}(?=:\d)",
    re.IGNORECASE,
)
"""A host in a URL, a login or an error of ssh, or one followed by a port."""
PUBLIC = ("console.vast.ai", "api.runpod.io", "pypi.org", "files.pythonhosted.org", "download.pytorch.org")
"""Hosts that reveal nothing about the user."""


def clean(text: str, secrets: Iterable[str] = ()) -> str:
    """Returns `text` without names, addresses and credentials. secrets: keys and other texts to remove."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "<secret>")
    text = HOST.sub(lambda found: found[0] if found[0] in PUBLIC else "<host>", text)
    text = ADDRESS.sub("<address>", text)
    text = text.replace(str(Path.home()), "~")
    host = socket.gethostname()
    for name, shown in ((host, "<host>"), (host.split(".")[0], "<host>"), (getpass.getuser(), "<user>")):
        if name:
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", shown, text)
    return text


def made(pipeline: Pipeline, what: dict, usd: float, secrets: Iterable[str]) -> dict:
    """Returns the report. what: the rental and the check's options, as JSON."""
    versions = {name: version(name) for name in ("ray", "torch", "transformers")}
    report = {
        "passed": pipeline.passed,
        "steps": [asdict(r) | {"seconds": round(r.seconds, 2), "usd": round(r.usd, 6)} for r in pipeline.results],
        "usd": round(usd, 6),
        "versions": versions | {"python": platform.python_version(), "shoestring": git_state()},
        "platform": f"{platform.system()} {platform.machine()}",
        **what,
    }
    return _cleaned(report, list(secrets))


def _cleaned(value, secrets: list[str]):
    if isinstance(value, dict):
        return {key: _cleaned(v, secrets) for key, v in value.items()}
    if isinstance(value, list):
        return [_cleaned(v, secrets) for v in value]
    return clean(value, secrets) if isinstance(value, str) else value


def show(pipeline: Pipeline, usd: float) -> None:
    rows = [
        (mark(r), r.step, r.detail or r.outcome, f"{r.seconds:.1f}" if r.outcome != "not reached" else "",
         f"{r.usd:.4f}" if r.usd else "")
        for r in pipeline.results
    ]  # fmt: skip
    seconds = sum(r.seconds for r in pipeline.results)
    rows.append(("", "in all", "", f"{seconds:.1f}", f"{usd:.4f}"))
    table([("", ""), ("step", ""), ("", ""), ("s", "r"), ("$", "r")], rows)
