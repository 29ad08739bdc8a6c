"""Prompt tuning and p-tuning: N trained vectors in front of every row, which become N tokens of a plain model.

Prompt tuning trains the vectors themselves (Lester et al. 2021, https://arxiv.org/abs/2104.08691), p-tuning a small network that makes them (Liu
et al. 2021, https://arxiv.org/abs/2103.10385). In the exported model they are N more rows of the input embeddings. The chat template begins
with their tokens, and the tokenizer puts them in front of every plain text, as others do with a start token. So whatever reads the
tokenizer's files puts them where they were in training.

No answer may contain those tokens: generation_config.suppress_tokens names them, which transformers and this project's evaluation obey. For
engines that don't, the output layer is untied, and the tokens have the row of the token that the model thinks least likely.

Shapes: N vectors, H channels, T tokens of a row, V tokens of the base.
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from types import MethodType

from lib.models import merging
from lib.runtime import logs

ENCODER = "prompt_encoder.safetensors"
"""In checkpoints: all weights that train. PEFT's own file has only the vectors, from which p-tuning's network can't go on."""


def keep_whole(model) -> None:
    """Makes save_pretrained and load_adapter of a PeftModel, which a Trainer calls for checkpoints, keep every weight that trains."""
    from safetensors.torch import load_file, save_file

    encoder, save = model.prompt_encoder[model.active_adapter], model.save_pretrained

    def save_pretrained(self, save_directory, **kwargs):
        save(save_directory, **kwargs)
        save_file({n: w.contiguous() for n, w in encoder.state_dict().items()}, Path(save_directory, ENCODER))

    def load_adapter(self, model_id, adapter_name, **kwargs):
        encoder.load_state_dict(load_file(Path(model_id, ENCODER)))

    model.save_pretrained = MethodType(save_pretrained, model)
    model.load_adapter = MethodType(load_adapter, model)


def with_tokens(tokenizer, number: int):
    """Returns (a copy of a tokenizer that puts `number` new tokens in front of every conversation and text, their ids).

    Raises ValueError if the tokenizer can't, or would have forgotten it once it is saved and loaded.
    """
    from transformers import AddedToken, AutoTokenizer

    key = "the tokenizer of model.base"
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{key} isn't a fast one, so it can't put tokens in front of a text. Use model.adapter: lora.")
    made, known = copy.deepcopy(tokenizer), tokenizer.get_vocab()
    first = next(k for k in range(len(known) + 1) if f"<|prompt_{k}|>" not in known)
    names = [f"<|prompt_{k}|>" for k in range(first, first + number)]
    made.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    ids = made.convert_tokens_to_ids(names)
    if isinstance(made.chat_template, dict):
        made.chat_template = {name: "".join(names) + text for name, text in made.chat_template.items()}
    elif made.chat_template:
        made.chat_template = "".join(names) + made.chat_template
    _put_in_front(made.backend_tokenizer, names, ids)
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        again = AutoTokenizer.from_pretrained(folder)
        if again("a b")["input_ids"] != [*ids, *tokenizer("a b")["input_ids"]]:
            raise ValueError(f"{key} doesn't keep tokens in front of a text. Use model.adapter: lora.")
    return made, ids


def _put_in_front(backend, names: list[str], ids: list[int]) -> None:
    """Makes a tokenizers.Tokenizer begin every text with tokens, before those that it begins with already. Raises ValueError if it can't."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    before = json.loads(backend.to_str())["post_processor"]
    backend.post_processor = TemplateProcessing(
        single=[*names, "$A"], pair=[*names, "$A", "$B:1"], special_tokens=list(zip(names, ids, strict=True))
    )
    whole = json.loads(backend.to_str())
    ahead = whole["post_processor"]
    steps = [] if before is None else before["processors"] if before["type"] == "Sequence" else [before]
    if other := [step["type"] for step in steps if step["type"] not in ("ByteLevel", "TemplateProcessing")]:
        raise ValueError(
            f"the tokenizer of model.base ends with {other[0]}, which can't be extended. Use model.adapter: lora."
        )
    for n, step in enumerate(steps):
        if step["type"] == "TemplateProcessing":  # a Sequence can't hold two of them
            both = {side: [*ahead[side][: len(names)], *step[side]] for side in ("single", "pair")}
            ahead = ahead | both | {"special_tokens": ahead["special_tokens"] | step["special_tokens"]}
            del steps[n]
            break
    whole["post_processor"] = {"type": "Sequence", "processors": [*steps, ahead]}
    backend.post_processor = Tokenizer.from_str(json.dumps(whole)).post_processor


def export(base, vectors_NH, ids: list[int], trained_TV, target: Path) -> None:
    """Writes the plain model: `base` with the vectors as the embeddings of `ids`. trained_TV: log probabilities of the trained model, which
    show the least likely token."""
    import torch

    head = base.get_output_embeddings()
    weight_VH, bias_V = head.weight.detach().clone(), None if head.bias is None else head.bias.detach().clone()
    rows, high = len(weight_VH), max(ids) + 1
    least = int(trained_TV.amax(0).argmin())
    base.resize_token_embeddings(max(rows, high), mean_resizing=False)
    embeddings = base.get_input_embeddings().weight
    new = torch.nn.Linear(weight_VH.shape[1], len(embeddings), bias=bias_V is not None, dtype=weight_VH.dtype)
    with torch.no_grad():
        embeddings[ids] = vectors_NH.to(embeddings.dtype)
        for mine, before in ((new.weight, weight_VH), (new.bias, bias_V)):
            if before is not None:
                mine[:rows], mine[rows:] = before, before[least]
                mine[ids] = before[least]
    base.set_output_embeddings(new)
    base.config.tie_word_embeddings = False
    base.generation_config.suppress_tokens = sorted({*(base.generation_config.suppress_tokens or []), *ids})
    base.save_pretrained(str(target))


def hold(trained_TV, target: Path, kind, row_1T, ids: list[int], exact: bool) -> None:
    """Raises StopTraining if the model of class `kind` in folder `target`, with `ids` in front of a row, isn't what was trained; otherwise
    prints how likely the new tokens are if an engine doesn't suppress them."""
    import torch

    read = torch.cat([torch.tensor([ids]), row_1T], 1)
    made_TV = merging.answers(kind.from_pretrained(str(target)), read)[len(ids) :]
    others = [v for v in range(trained_TV.shape[1]) if v not in {*ids}]
    merging.refuse_apart(trained_TV[:, others].log_softmax(-1), made_TV[:, others].log_softmax(-1), exact)
    mass = made_TV[:, ids].exp().sum(-1).max().item()
    logs.say(
        f"an engine that ignores suppress_tokens would give the {len(ids)} new tokens a probability of up to {mass:.2g} on a training row"
    )


def suppress(model) -> None:
    """Makes the tokens of generation_config.suppress_tokens impossible, in place. Their logits stay finite, which contrasting two models
    needs."""
    import torch

    def without(head, inputs, logits):
        logits[..., never] = torch.finfo(logits.dtype).min / 8

    if never := model.generation_config.suppress_tokens:
        model.get_output_embeddings().register_forward_hook(without)
