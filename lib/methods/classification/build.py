"""From a job's rows to its trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

from lib.config.job import Job
from lib.data import Loaded
from lib.methods.classification.check import fits
from lib.methods.classification.config import ClassifyConfig
from lib.methods.classification.trainer import KEYS, ClassifyTrainer
from lib.methods.dropout import RATES, key
from lib.models import load, locate, text_pairs
from lib.rendering.sequences import texts_of
from lib.runtime import logs


class Rows(Dataset):
    """The tokens of each row, what is wanted of it (the index of its class, or its score), and the number of the row, counted over all
    epochs."""

    by_epoch = True
    """As lib/stage/epochs.py reads it."""

    def __init__(self, rows: Any, names: list[str], tokenizer: Any, max_length: int):
        self.rows, self.index = rows, {name: i for i, name in enumerate(names)}
        self.tokenizer, self.max_length = tokenizer, max_length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index % len(self.rows)]
        wanted = self.index[row["label"]] if self.index else row["score"]
        return text_pairs.tokens(self.tokenizer, *texts_of(row), max_length=self.max_length) | {
            "wanted": wanted,
            "row": index,
        }


class Collator:
    """Makes a batch: the tokenizer's fields (B, T), padded on the right; wanted (B,); the keys of the rows' dropout (B,)."""

    def __init__(self, tokenizer: Any, seed: int):
        self.tokenizer, self.seed = tokenizer, seed

    def __call__(self, rows: list[dict]) -> dict:
        read = [{k: v for k, v in row.items() if k not in ("wanted", "row")} for row in rows]
        batch = {**self.tokenizer.pad(read, padding_side="right", return_tensors="pt")}
        keys = torch.tensor([key(self.seed, row["row"], 0) for row in rows])
        return batch | {"wanted": torch.tensor([row["wanted"] for row in rows]), KEYS: keys}


def trainer(job: Job, args: ClassifyConfig, inputs: Loaded) -> ClassifyTrainer:
    """Raises ValueError if the rows have no classes to tell apart, or the base can't become a classifier."""
    fits(inputs.check)
    tokenizer = load.tokenizer(job.model)
    made, names = model(job, args, tokenizer, inputs)
    rows = [side and Rows(side, names, tokenizer, args.max_length) for side in (inputs.train, inputs.heldout)]
    return ClassifyTrainer(
        model=made, args=args, train_dataset=rows[0], eval_dataset=rows[1], processing_class=tokenizer,
        data_collator=Collator(tokenizer, args.seed),
    )  # fmt: skip


def model(job: Job, args: ClassifyConfig, tokenizer: Any, inputs: Loaded) -> tuple[Any, list[str]]:
    """Returns (the base with a head, the names of its classes in the order of its outputs; [] for scores).

    A base that is a classifier of the same classes keeps its head and the order of its classes. All weights that the base lacks are drawn
    with train.seed.
    """
    where, init = locate.path(job.model.base), dict(args.model_init_kwargs or {})
    config = AutoConfig.from_pretrained(where, revision=job.model.revision)
    names = inputs.check.class_names() if inputs.kind == "classified" else []
    problem = "single_label_classification" if names else "regression"
    classifier = any("SequenceClassification" in name for name in config.architectures or ())
    before = [config.id2label[i] for i in range(config.num_labels)] if classifier else None
    same = before is not None and (set(before) == set(names) if names else config.problem_type == problem)
    if before is not None and not same and job.model.adapter != "none":
        raise ValueError(
            f"model.adapter: {job.model.base} is a classifier of other classes, and {job.model.adapter} can't replace its head. Set adapter: none."
        )
    names = before if same and names else names
    drop = {name: args.dropout for name in RATES if isinstance(getattr(config, name, None), int | float)}
    if args.dropout:
        _eager(job, config, drop, init)
    asked = {
        "id2label": dict(enumerate(names or ["score"])),
        "label2id": {name: i for i, name in enumerate(names or ["score"])},
        "problem_type": problem,
    } | drop
    if config.get_text_config().pad_token_id is None:  # a decoder reads the last token before the padding
        asked["pad_token_id"] = tokenizer.pad_token_id
    set_seed(args.seed)
    made, found = AutoModelForSequenceClassification.from_pretrained(
        where, output_loading_info=True, ignore_mismatched_sizes=True, **asked, **init
    )
    head = _head(made)
    if before is not None and not same:
        fresh = AutoModelForSequenceClassification.from_config(made.config)
        weights = {n: w.to(made.dtype) for n, w in fresh.state_dict().items() if n in head}
        made.load_state_dict(weights, strict=False)
        found["missing_keys"] = {*found["missing_keys"], *head}
    new = sorted(found["missing_keys"])
    if lost := [n for n in new if n not in head and ".pooler." not in n]:
        raise ValueError(
            f"model.base: {job.model.base} has no weights for {lost[0]}, which a classifier needs. Use another."
        )
    if new and args.process_index == 0:
        logs.say(f"drawn with train.seed, since the base has none: {', '.join(_modules(new))}")
    if job.model.adapter != "none":
        made = _adapted(made, job, new, where)
    return made, names


def _eager(job: Job, config: Any, drop: dict, init: dict) -> None:
    """Makes attention use the only kernel whose dropout doesn't change with scale. Raises ValueError, naming the key."""
    if not drop:
        raise ValueError(f"train.dropout: a {config.model_type} has none. Use another base, or dropout: 0.")
    if job.model.attn_implementation not in (None, "eager"):
        raise ValueError(
            f"model.attn_implementation: the dropout of {job.model.attn_implementation} changes with scale. Use eager, or train.dropout: 0."
        )
    init["attn_implementation"] = "eager"


def _head(model: Any) -> set[str]:
    """Returns the names of the weights that aren't the base model's."""
    base = {id(p) for p in model.base_model.parameters()}
    return {name for name, p in model.named_parameters() if id(p) not in base}


def _modules(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _adapted(model: Any, job: Job, new: list[str], where: str) -> Any:
    """Returns the model with its adapter. The head, and whatever else was drawn, trains whole and is saved with the adapter."""
    from peft import get_peft_model

    whole = {name.split(".")[0] for name in _head(model)} | ({"pooler"} if any(".pooler." in n for n in new) else set())
    given = job.model.peft
    given = given | {"modules_to_save": sorted({*(given.get("modules_to_save") or ()), *whole})}
    return get_peft_model(model, load.peft_config(job.model.adapter, given, "classifier", where))
