"""README.md, CONTRIBUTING.md, docs/*.md and benchmarks/README.md: their links and file names exist, README is short, each fact is
stated once, and each command has a rule or a mark."""

import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from tests.blocks import PAGES, README, Command, commands
from tests.conftest import REPO
from tests.paste import rule_of

DOCUMENTS = [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]
TEXTS = {page: (REPO / page).read_text(encoding="utf-8") for page in DOCUMENTS}
NOT_RUN = {
    "docs/classification.md": [
        "for s in train test; do python -c \"import json, sys; [print(json.dumps(dict(sentence1=p[5], sentence2=p[6], score=float(p[4])))) for p in (l.rstrip('\\n').split('\\t') for l in sys.stdin)]\" < sts-$s.csv > sts-$s.jsonl; done",
        "python jobs/classify.py --config configs/classify.yaml --data.source sts-train.jsonl --data.heldout sts-test.jsonl --data.leaks drop --data.heldout_limit 200 --train.max_steps 120 --train.warmup_steps 12 --train.save_steps 40 --run runs/sts",
        "python jobs/eval.py --runs.classify runs/sts --tasks scores --data.source sts-test.jsonl --data.heldout_fraction 1 --limit null --run runs/eval-scores",
        "python jobs/eval.py --runs.base sentence-transformers/all-MiniLM-L6-v2 --tasks sts --data.source sts-test.jsonl --data.heldout_fraction 1 --limit null --run runs/eval-cosines",
    ],
    "docs/embeddings.md": [
        "python -c \"print('\\n'.join(dict.fromkeys(s.strip(' .') + ' .' for l in open('wikitext2_train_4k_lines.txt') if l.strip() and not l.strip().startswith('=') for s in l.strip().split(' . ') if 5 <= len(s.split()) <= 40)))\" > sentences.txt",
        "python -c \"import json; [print(json.dumps(dict(sentence1=p[5], sentence2=p[6], score=float(p[4])))) for p in (l.rstrip('\\n').split('\\t') for l in open('sts-test.csv'))]\" > sts.jsonl",
        "python jobs/embed.py --config configs/embed.yaml --model.base HuggingFaceTB/SmolLM2-135M-Instruct --data.source sentences.txt --data.incomplete accept --data.heldout_limit 100 --train.loss simcse --train.learning_rate 5e-5 --train.max_length 32 --train.max_steps 16 --train.warmup_steps 2 --scale.workers 1 --scale.global_batch 32 --run runs/simcse",
        "python jobs/eval.py --runs.base HuggingFaceTB/SmolLM2-135M-Instruct --runs.simcse runs/simcse --tasks sts --data.source sts.jsonl --data.heldout_fraction 1 --limit null --run runs/eval-simcse",
    ],
    "docs/serving.md": ['pip install -e ".[gpu]"'],
}
"""All commands of blocks marked "not run by the tests: needs …"."""

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(
    r"(?<![\w/])(?:jobs|lib|serve|cluster|tune|configs|tests|benchmarks|docs)/[\w./-]*\.(?:pyi?|ya?ml|ipynb|sh|md|txt|png)\b"
)
"""Matches a file of this repository by its path from the root. NAME stands for a name of the reader's choice."""


def prose(text: str) -> str:
    """Returns a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
    """Returns the fragments that GitHub generates for a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def broken(page: str, text: str) -> list[str]:
    """Returns a page's broken relative links and the named files that don't exist."""
    found = []
    for target in LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (REPO / page).parent / path
        if path and not file.exists():
            found.append(f"{page}: {target}")
        elif fragment and fragment not in anchors(file.read_text(encoding="utf-8") if path else text):
            found.append(f"{page}: {target}: no such heading")
    named = [name for name in FILE.findall(text) if "NAME" not in name]
    return found + [f"{page}: {name}" for name in dict.fromkeys(named) if not (REPO / name).exists()]


@pytest.mark.parametrize("page", DOCUMENTS)
def test_links_and_files_exist(page):
    assert broken(page, TEXTS[page]) == []


def test_a_broken_link_is_seen():
    text = "[a](lib/run.py) [b](gone.py) [c](#there) [d](#gone) `jobs/gone.py` `jobs/NAME.py` https://x.org/lib/y.py\n# There\n"
    assert broken(README, text) == [
        "README.md: gone.py",
        "README.md: #gone: no such heading",
        "README.md: jobs/gone.py",
    ]


def test_readme_is_short_and_leads_to_every_page():
    assert len(TEXTS[README].splitlines()) <= 150
    missing = [page for page in PAGES[1:] if f"]({page})" not in TEXTS[README]]
    assert not missing


def test_no_sentence_stands_twice():
    where = defaultdict(list)
    for page, text in TEXTS.items():
        plain = re.sub(r"\s+", " ", re.sub(r"^(\||#).*$", ".", prose(text), flags=re.M))
        for sentence in re.split(r"(?<=[.:;!?])\s", plain):
            if len(sentence.split()) >= 8:
                where[sentence.strip(" -*").lower()].append(page)
    assert {s: pages for s, pages in where.items() if len(pages) > 1} == {}


def test_each_command_has_a_rule_or_a_mark():
    found = [c for page in PAGES for c in commands(page, TEXTS[page])]
    assert [str(c) for c in found if not c.marked and rule_of(c, c.text) is None] == []
    marked = defaultdict(list)
    for c in found:
        if c.marked:
            marked[c.page].append(c.text)
    assert marked == NOT_RUN
    assert len(re.findall("not run by the tests", "".join(TEXTS[page] for page in PAGES))) == len(NOT_RUN)


def test_no_command_of_readme_is_marked():
    assert not any(c.marked for c in commands(README, TEXTS[README]))


def test_what_is_a_command():
    text = (
        "a\n```\nmake x      # comment\npython jobs/a.py \\\n  --b '#c'\n\n```\nin `python jobs/b.py --help`\n"
        "\nBut this is not run by the tests: needs a GPU.\n\n```\nmake gpu\n```\n\n```\nmake y\n```\n```mermaid\nmake z\n```\n"
    )
    assert list(commands("p", text)) == [
        Command("p", 3, "make x", 1),
        Command("p", 5, "python jobs/a.py   --b '#c'", 1),
        Command("p", 8, "python jobs/b.py --help"),
        Command("p", 13, "make gpu", 2, marked=True),
        Command("p", 17, "make y", 3),
    ]


def test_pre_commit_runs_what_make_lint_does():
    hooks = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [h["entry"].split()[1] for h in hooks] == ["check", "format"]
    lint = re.search(r"^lint:.*\n\t(.*)", (REPO / "Makefile").read_text(), re.M)[1]
    assert re.findall(r"ruff (\w+)", lint) == ["check", "format"]
    assert "ruff" in " ".join(
        tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    )


def test_workflows_run_targets_that_exist():
    targets = set(re.findall(r"^(\w+):", (REPO / "Makefile").read_text(), re.M))
    for path in Path(REPO / ".github/workflows").glob("*.yml"):
        runs = [
            s["run"] for job in yaml.safe_load(path.read_text())["jobs"].values() for s in job["steps"] if "run" in s
        ]
        made = [word for run in runs for word in re.findall(r"make (\w+)", run)]
        assert made and set(made) <= targets, path


def test_the_bug_form_asks_for_check_and_provenance():
    form = yaml.safe_load((REPO / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    ids = [item["id"] for item in form["body"]]
    labels = " ".join(item["attributes"]["label"] for item in form["body"])
    assert len(set(ids)) == len(ids) and "python -m cluster check" in labels and "provenance.json" in labels
