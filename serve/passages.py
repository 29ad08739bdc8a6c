"""Documents as passages: Markdown or plain text, cut at headings, paragraphs and sentences so that an encoder can read each whole.

    python -m serve.passages --run ENCODER --documents docs/*.md --questions docs/questions.jsonl --out runs/docs-rows

writes rows for jobs/embed.py to OUT/train.jsonl: the headings above each passage, and its text. With --questions, a JSON Lines file of
{question, file, words}, OUT/heldout.jsonl has each question and the passage that contains the words, for the task `retrieval`; these passages
are in no training row, and the first held-out row has all other passages as negatives, so that each question is compared with all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from lib.evals.measures.embedding import ALSO

NAMED = 2
"""Headings above a passage that are embedded with it: the innermost ones."""
SHORTEST = 32
"""Fewest tokens that a passage may be limited to."""


@dataclass(frozen=True)
class Passage:
    file: str
    line: int
    """Of its first line, from 1."""
    headings: tuple[str, ...]
    """The headings above it, outermost first."""
    text: str

    @property
    def embedded(self) -> str:
        """What an encoder reads: without its headings, a passage such as a list of keys doesn't say what it is about."""
        return "\n".join([*self.headings[-NAMED:], self.text])


def split(files: list[str], tokenizer: Any, most: int) -> list[Passage]:
    """Returns the passages of UTF-8 files; each has at most `most` tokens together with its headings.

    tokenizer: the encoder's, of transformers. Raises ValueError, naming --documents, for a file that can't be read or has no text.
    """
    from semantic_text_splitter import MarkdownSplitter

    def size(text: str) -> int:
        return len(tokenizer(text, truncation=False, verbose=False)["input_ids"])

    found = []
    for file in files:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            why = "is not UTF-8 text" if isinstance(e, UnicodeDecodeError) else f"can't be read: {e.strerror}"
            raise ValueError(f"--documents: {file} {why}. Give Markdown or plain text.") from None
        before = len(found)
        for at, end, above in sections(text):
            room = most - size("\n".join([*above[-NAMED:], ""]))
            if room < SHORTEST:
                line = text.count("\n", 0, at)
                raise ValueError(
                    f"--documents: {file}:{line} has headings that leave no room for text. Raise --tokens."
                )
            splitter = MarkdownSplitter.from_callback(size, room)
            for offset, piece in splitter.chunk_indices(text[at:end]):
                line = text.count("\n", 0, at + offset) + 1
                found.append(Passage(file, line, above, piece))
        if len(found) == before:
            raise ValueError(f"--documents: {file} has no text. Leave it out.")
    return found


def sections(text: str) -> list[tuple[int, int, tuple[str, ...]]]:
    """Returns (start, end, the headings above) of each part of a Markdown text between two headings, in characters."""
    from markdown_it import MarkdownIt

    at = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
    tokens = MarkdownIt().parse(text)
    found: list[tuple[int, int, tuple[str, ...]]] = []
    above: list[tuple[int, str]] = []
    start = 0
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open" and opening.level == 0 and opening.map:
            found.append((start, at[opening.map[0]], tuple(name for _, name in above)))
            depth, start = int(opening.tag[1:]), min(at[opening.map[1]], len(text))
            above = [(d, name) for d, name in above if d < depth] + [(depth, inline.content)]
    return [*found, (start, len(text), tuple(name for _, name in above))]


def rows(passages: list[Passage], questions: list[dict]) -> tuple[list[dict], list[dict]]:
    """Returns (training rows, held-out rows), as described above. Raises ValueError for a question whose words aren't in exactly one passage."""
    heldout, answers = [], set()
    for number, asked in enumerate(questions, 1):
        if not all(isinstance(asked.get(key), str) for key in ("question", "file", "words")):
            raise ValueError(f"--questions: line {number}: needs question, file and words, each a text.")
        words = _plain(asked["words"])
        found = [n for n, p in enumerate(passages) if Path(p.file).match(asked["file"]) and words in _plain(p.text)]
        if len(found) != 1:
            raise ValueError(
                f"--questions: line {number}: {len(found)} passages of {asked['file']} contain {asked['words']!r}. Name words of one."
            )
        answers.add(found[0])
        heldout.append({"question": asked["question"], "passage": passages[found[0]].embedded, "negatives": []})
    if heldout:
        texts = dict.fromkeys(p.embedded for p in passages)
        heldout[0]["negatives"] = [text for text in texts if text != heldout[0]["passage"]]
    train = [
        {"question": ": ".join(p.headings[-NAMED:]), "passage": p.text}
        for n, p in enumerate(passages)
        if p.headings and n not in answers
    ]
    return train, heldout


def _read(file: str) -> list[dict]:
    try:
        found = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as e:
        raise ValueError(f"--questions: {file} is no JSON Lines file: {e}.") from None
    return [row if isinstance(row, dict) else {} for row in found]


def _plain(text: str) -> str:
    return " ".join(text.split())


def main(argv: list[str] | None = None) -> int:
    """Writes the rows and returns 0. Exits with 2 if an option is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.passages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", required=True, help="the encoder whose tokens are counted: a run, a model folder or a hub name"
    )
    parser.add_argument("--documents", nargs="+", required=True, metavar="FILE", help="Markdown or plain text")
    parser.add_argument("--questions", metavar="FILE", help="JSON Lines: {question, file, words}")
    parser.add_argument("--tokens", type=int, default=200, help="most tokens of a passage (default: %(default)s)")
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="where train.jsonl and heldout.jsonl are written"
    )
    options = parser.parse_args(argv)
    from transformers import AutoTokenizer

    from lib.generation import model_spec
    from lib.models import locate
    from lib.runtime.refusing import refusing

    with refusing("serve.passages"):
        found = model_spec.find("--run", options.run, options.run, "float32", "encoder", also=ALSO)
        tokenizer = AutoTokenizer.from_pretrained(locate.path(found.base))
        passages = split(options.documents, tokenizer, options.tokens)
        sides = rows(passages, _read(options.questions) if options.questions else [])
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in zip(("train", "heldout"), sides, strict=True):
        if made:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    print(f"{len(passages):,} passages: {len(sides[0]):,} training rows, {len(sides[1]):,} questions in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
