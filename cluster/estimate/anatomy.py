"""A model's sizes, from its config alone: parameters, weights that a token is multiplied with, bytes saved for the backward pass.

The model is built without storage (torch's meta device), PEFT adds its adapter, and the model's own forward runs on shapes
(FakeTensorMode) while autograd's hooks sum what is saved. So the numbers hold for the actual architecture, attention kernel,
adapter and precision; a formula holds for one architecture only, such as Korthikanti et al. 2022
(https://arxiv.org/abs/2205.05198, section 4) for GPT.

Shapes: B sequences of T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from lib.config.job import Model
from lib.models import load, locate
from lib.run import Run, cache

NF4 = 0.5 + (8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of a weight in 4 bits with double quantisation: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, section 3."""


HEADS = ("causal_lm", "masked_lm", "seq2seq_lm")
"""Kinds of model with an output layer over the vocabulary."""


@dataclass(frozen=True)
class Anatomy:
    parameters: int
    """Including the adapter, excluding quantisation constants."""
    trainable: int
    weight_bytes: int
    """As stored, adapter and quantisation included."""
    trainable_bytes: int
    multiplied: int
    """Weights that one token is multiplied with, without the head; of a mixture of experts, only the chosen experts."""
    adapter: int
    """Parameters of the adapter, which train while the base is frozen."""
    head: int
    """V × H; 0 for a reward model."""
    head_trains: bool
    layers: int
    hidden: int
    attention: int
    """Width of all query heads together."""
    vocabulary: int
    largest: int
    """Parameters of the largest layer, which a sharded model gathers."""
    copies: int
    """Bytes of weights cast to the compute type and saved by autocast; independent of B."""
    sequence: int
    """Bytes saved for one sequence of T tokens."""
    tokens: int
    """T."""


def study(
    model: Model, tokens: int, gpu: bool, precision: str, makes: str = "causal_lm", keep_layers: int | None = None
) -> Anatomy:
    """Returns the anatomy of the model that a worker would train. tokens: T; precision: as returned by lib.runtime.hardware.precision; makes:
    the stage's `makes`.

    The first call with the same arguments takes seconds, since it imports torch; the result is cached on disk.
    Raises ValueError if transformers doesn't know the config's architecture.
    """
    where = described(model.base, model.revision)
    text = (Path(where) / "config.json").read_text(encoding="utf-8")
    wanted = [text, asdict(model) | {"base": "", "chat_template": None}, tokens, gpu, precision, makes, keep_layers]
    wanted.append(Path(__file__).read_text(encoding="utf-8"))
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:24]
    file = cache("anatomy", f"{key}.json")
    if not file.is_file():
        found = _study(where, model, tokens, gpu, precision, makes, keep_layers)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(found)), encoding="utf-8")
    return Anatomy(**json.loads(file.read_text(encoding="utf-8")))


def described(base: str, revision: str | None = None) -> str:
    """Returns a folder with config.json and the tokenizer of a base as returned by lib.models.locate.locate; remote weights are not
    downloaded."""
    files = ["*.json", "*.jinja", "*.txt", "tokenizer*", "vocab*"]
    if base.startswith("s3://"):
        run = Run(base)
        target = cache(
            "described", hashlib.sha256(f"{base} {run.provenance().get('model_sha256')}".encode()).hexdigest()[:16]
        )
        for name, size in run.files("model").items():
            if not name.endswith((".safetensors", ".bin", ".index.json")) and size < 64 << 20:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(run.fs.cat_file(run.at(f"model/{name}")))
        return str(target)
    if base.startswith("package:") or Path(base).is_dir():
        return locate.path(base)
    from huggingface_hub import snapshot_download

    return snapshot_download(base, revision=revision, allow_patterns=files)


def _study(
    where: str, model: Model, tokens: int, gpu: bool, precision: str, makes: str, keep_layers: int | None
) -> Anatomy:
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(where)
    shape = config.get_text_config()
    if keep_layers:
        _cut(shape, keep_layers)
    if makes == "reward":
        config.num_labels = 1
    net = _net(config, model, gpu, precision, makes)
    head = net.get_output_embeddings() if makes in HEADS else None
    named = dict(net.named_parameters())
    trained = [p for p in named.values() if p.requires_grad]
    layers = _layers(net)
    size = lambda ps: sum(p.numel() for p in ps)  # noqa: E731
    stored = sum(p.numel() * p.itemsize for p in named.values())
    for linear in net.modules() if model.quantization != "none" else ():
        if isinstance(linear, torch.nn.Linear) and linear is not head and not linear.weight.requires_grad:
            w = linear.weight
            small = w.numel() * NF4 if model.quantization == "4bit" else w.numel() + 4 * w.shape[0]
            stored += math.ceil(small) - w.numel() * w.itemsize
    copies, sequence = _kept(net, config, lambda c: _net(c, model, gpu, precision, makes), tokens, precision)
    return Anatomy(
        parameters=size(named.values()),
        trainable=size(trained),
        weight_bytes=stored,
        trainable_bytes=sum(p.numel() * p.itemsize for p in trained),
        multiplied=_multiplied(layers, shape),
        adapter=_adapter(net),
        head=head.weight.numel() if head is not None else 0,
        head_trains=head is not None and any(p.requires_grad for p in head.parameters()),
        layers=len(layers),
        hidden=shape.hidden_size,
        attention=shape.num_attention_heads
        * (getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads),
        vocabulary=shape.vocab_size,
        largest=max(size(layer.parameters()) for layer in layers),
        copies=copies,
        sequence=sequence,
        tokens=tokens,
    )


def _net(config, model: Model, gpu: bool, precision: str, makes: str):
    """Builds the model that a worker would train, without storage."""
    import torch

    cls = load.auto(makes)
    attention = model.attn_implementation or ("sdpa" if gpu else "eager")
    # Flash attention isn't installed here, and saves the same tensors as sdpa.
    kernel = "sdpa" if attention.startswith("flash") else attention
    with torch.device("meta"):
        net = cls.from_config(config, dtype=getattr(torch, load.dtype(model, precision)), attn_implementation=kernel)
        if model.adapter != "none":
            from peft import get_peft_model

            config = load.peft_config(model.adapter, model.peft, makes)
            net = get_peft_model(net, config, low_cpu_mem_usage=True).get_base_model()
            load.train_in_fp32(net)
    net.train()
    for layer in net.modules():
        if hasattr(layer, "module_dropout"):
            layer.eval()  # LoHa and LoKr draw whether to drop the layer, which shapes alone don't tell
    return net


def _adapter(net) -> int:
    """Returns the number of an adapter's parameters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = (m for m in net.modules() if isinstance(m, BaseTunerLayer))
    added = (getattr(layer, name) for layer in layers for name in layer.adapter_layer_names)
    return sum(p.numel() for p in {p for part in added for p in part.parameters() if p.requires_grad})


def _layers(net):
    import torch

    if net.config.is_encoder_decoder:  # counted as if each token passed through both
        return torch.nn.ModuleList([*net.get_encoder().block, *net.get_decoder().block])
    lists = (m for m in net.modules() if isinstance(m, torch.nn.ModuleList))
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))


def _cut(shape, layers: int) -> None:
    """Reduces a config to its first `layers` layers."""
    shape.num_hidden_layers = layers
    if getattr(shape, "layer_types", None):
        shape.layer_types = shape.layer_types[:layers]


def _kept(net, config, build, tokens: int, precision: str) -> tuple[int, int]:
    """Returns (bytes independent of B, bytes per sequence). If all layers are alike, models of one and two layers are measured and
    extrapolated."""
    shape = config.get_text_config()
    kinds = getattr(shape, "layer_types", None) or [""] * shape.num_hidden_layers
    looks = [[(n, p.shape) for n, p in layer.named_parameters()] for layer in _layers(net)]
    if any(look != looks[0] for look in looks) or len(set(kinds)) > 1 or len(looks) < 3:
        one, two = (_saved(net, batch, tokens, precision) for batch in (1, 2))
        return 2 * one - two, two - one
    found = []
    for layers in (1, 2):
        small = copy.deepcopy(config)
        _cut(small.get_text_config(), layers)
        one, two = (_saved(build(small), batch, tokens, precision) for batch in (1, 2))
        found.append((2 * one - two, two - one))
    return tuple(first + (second - first) * (len(looks) - 1) for first, second in zip(*found, strict=True))


def _multiplied(layers, shape) -> int:
    total = sum(p.numel() for p in layers.parameters() if p.dim() > 1)
    experts = sum(p.numel() for n, p in layers.named_parameters() if ".experts." in n and p.dim() > 1)
    if not experts:
        return total
    count = getattr(shape, "num_experts", None) or getattr(shape, "num_local_experts", None) or shape.n_routed_experts
    return total - experts + experts * shape.num_experts_per_tok // count


def _saved(net, batch: int, tokens: int, precision: str) -> int:
    """Returns the bytes that autograd saves in a forward pass through the layers, without the weights themselves."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    weights = _pretend(net, mode)
    kept: dict[int, object] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32")
    with mode, hooks, half:
        ids = torch.zeros(batch, tokens, dtype=torch.long)
        where = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if net.config.is_encoder_decoder:
            out = net(**where, decoder_input_ids=ids, use_cache=False)
        else:
            out = getattr(net, net.base_model_prefix)(**where, use_cache=False)
    del out
    return sum(s.nbytes() for c, s in kept.items() if c not in weights)


def _pretend(net, mode) -> set[int]:
    """Replaces meta tensors, which autocast ignores, by fake CPU tensors. Returns the ids of the weights' storages."""
    import torch

    fake: dict[int, torch.nn.Parameter] = {}
    turn = lambda t: mode.fake_tensor_converter.from_meta_and_device(mode, t.detach().to("meta"), torch.device("cpu"))  # noqa: E731
    for module in net.modules():
        for name, p in module._parameters.items():
            if p is not None:
                if id(p) not in fake:
                    fake[id(p)] = torch.nn.Parameter(turn(p), requires_grad=p.requires_grad)
                module._parameters[name] = fake[id(p)]
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = turn(b)
    return {p.untyped_storage()._cdata for p in fake.values()}
