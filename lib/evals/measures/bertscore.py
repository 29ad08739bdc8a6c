"""BERTScore: similarity of an answer to its reference in an encoder's embeddings (Zhang et al. 2020, https://arxiv.org/abs/1904.09675).

The examples are those of the task `reference`. The bert-score package computes the score: greedy matching by cosine similarity
in the layer that bert-score recommends for the encoder, else the last one, without idf weighting or rescaling. Its magnitude depends on
the encoder, so compare runs, not papers.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from lib.data import reasoning
from lib.evals.context import Context
from lib.evals.measures import search
from lib.evals.task import Example, Scores
from lib.evals.tasks.reference import Reference


def problem(encoder: str | None) -> str | None:
    """Returns why `encoder` can't be used, beginning with the configuration key, or None."""
    if not importlib.util.find_spec("bert_score"):
        return 'tasks: bertscore needs bert-score: pip install "shoestring[eval]".'
    if not encoder:
        return (
            "bert_encoder: bertscore needs an encoder: a folder, or a hub name such as microsoft/deberta-xlarge-mnli."
        )
    folder = Path(encoder).expanduser()
    if (folder.is_absolute() or encoder.startswith((".", "~"))) and not (folder / "config.json").is_file():
        return f"bert_encoder: {folder} has no config.json."
    return None


def examples(addresses: dict[str, str], limit: int | None) -> list[Example]:
    """Returns the examples of the task `reference`, from task_data.bertscore or, if that is not set, task_data.reference."""
    own = addresses.get("bertscore")
    try:
        return Reference(own or addresses.get("reference")).examples(limit)
    except ValueError as e:
        raise ValueError(str(e).replace("task_data.reference", "task_data.bertscore") if own else str(e)) from None


def measure(context: Context) -> list[Scores]:
    """Returns F1, precision and recall of every run's answers with every decoding; an empty answer scores 0."""
    job = context.job
    asked = examples(job.task_data, job.limit)
    scorer = _scorer(job.bert_encoder)
    found = []
    for run, how, got in search.cells(context, "bertscore", [e.prompt for e in asked]):
        texts = [reasoning.answer(a.text) for a in got.answers]
        full = [i for i, t in enumerate(texts) if t.strip()]
        parts = scorer.score([texts[i] for i in full], [asked[i].reference for i in full]) if full else ([], [], [])
        for name, values in zip(("precision", "recall", "f1"), parts, strict=True):
            tops = [0.0] * len(texts)
            for i, v in zip(full, values, strict=True):
                tops[i] = float(v)
            found.append(
                Scores(
                    "bertscore", name, run, [e.id for e in asked], tops, headline=name == "f1", decoding=how.name,
                    version=scorer.hash,
                )
            )  # fmt: skip
    return sorted(found, key=lambda s: not s.headline)


@functools.cache
def _scorer(encoder: str):
    from bert_score import BERTScorer
    from bert_score.utils import model2layers
    from transformers import AutoConfig

    where = str(Path(encoder).expanduser()) if Path(encoder).expanduser().is_dir() else encoder
    config = AutoConfig.from_pretrained(where)
    layers = model2layers.get(encoder) or config.num_hidden_layers
    scorer = BERTScorer(where, num_layers=layers, use_fast_tokenizer=True)
    if (
        scorer._tokenizer.model_max_length > 10**6
    ):  # a placeholder for "unknown" (DeBERTa), at which nothing is truncated
        scorer._tokenizer.model_max_length = min(512, config.max_position_embeddings)
    return scorer
