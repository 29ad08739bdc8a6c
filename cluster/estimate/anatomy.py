"""A model's sizes, from its config alone: parameters, weights that a token is multiplied with, bytes saved for the backward pass.

The model is built without storage (torch's meta device), PEFT adds its adapter, and the model's own forward runs on shapes
(FakeTensorMode) while autograd's hooks sum what is saved. So the numbers hold for the actual architecture, attention kernel,
adapter and precision; a formula holds for one architecture only, such as Korthikanti et al. 2022
(https://arxiv.org/abs/2205.05198, section 4) for GPT.

Shapes: B sequences of T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.estimate import saved_bytes
from lib.config.adapters import ADAPTERS
from lib.config.job import Model
from lib.models import load, locate
from lib.run import Run, cache

NF4 = 0.5 + (8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of a weight in 4 bits with double quantisation: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, section 3."""


HEADS = ("causal_lm", "adapter", "masked_lm", "seq2seq_lm")
"""Kinds of model with an output layer over the vocabulary. A discriminator's is its generator's."""


@dataclass(frozen=True)
class Pretraining:
    """What an objective of pre-training adds to a model, or makes it read."""

    generator: float = 0.0
    """ELECTRA: width of the generator, as a share of the discriminator's; 0: there is none."""
    decoder: int = 0
    """Tokens that an encoder-decoder's decoder reads for T of its encoder; 0: there is no decoder."""


@dataclass(frozen=True)
class Anatomy:
    parameters: int
    """Including the adapter, excluding quantisation constants."""
    trainable: int
    weight_bytes: int
    """As stored, adapter and quantisation included."""
    trainable_bytes: int
    multiplied: int
    """Weights that one token is multiplied with, without the head; of a mixture of experts, only the chosen experts; of a decoder, as
    many as its own tokens make for one of the encoder's."""
    adapter: int
    """Parameters of the adapter, which train while the base is frozen."""
    head: int
    """V × H; 0 for a reward model."""
    head_trains: bool
    layers: int
    hidden: int
    attention: int
    """Width of all query heads together; of an encoder-decoder, what a decoder-only model with as many layers and the same cost has."""
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
    model: Model,
    tokens: int,
    gpu: bool,
    precision: str,
    makes: str = "causal_lm",
    keep_layers: int | None = None,
    pretraining: Pretraining = Pretraining(),
) -> Anatomy:
    """Returns the anatomy of the model that a worker would train. tokens: T; precision: as returned by lib.runtime.hardware.precision; makes:
    the stage's `makes`.

    The first call with the same arguments takes seconds, since it imports torch; the result is cached on disk.
    Raises ValueError if transformers doesn't know the config's architecture.
    """
    where = described(model.base, model.revision)
    text = (Path(where) / "config.json").read_text(encoding="utf-8")
    wanted = [text, asdict(model) | {"base": "", "chat_template": None}, tokens, gpu, precision, makes, keep_layers]
    wanted += [asdict(pretraining), *(Path(f).read_text(encoding="utf-8") for f in (__file__, saved_bytes.__file__))]
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:24]
    file = cache("anatomy", f"{key}.json")
    if not file.is_file():
        found = _study(where, model, tokens, gpu, precision, makes, keep_layers, pretraining)
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
    where: str,
    model: Model,
    tokens: int,
    gpu: bool,
    precision: str,
    makes: str,
    keep_layers: int | None,
    pretraining: Pretraining,
) -> Anatomy:
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(where)
    shape = config.get_text_config()
    if keep_layers:
        saved_bytes.cut(shape, keep_layers)
    if makes == "reward":
        config.num_labels = 1
    build = lambda c: _net(c, model, gpu, precision, makes, pretraining.generator)  # noqa: E731
    net = build(config)
    generator = getattr(net, "generator", None)
    head = (generator or net).get_output_embeddings() if makes in HEADS or generator else None
    named = dict(net.named_parameters())
    trained = [p for p in named.values() if p.requires_grad]
    layers = saved_bytes.layers(net)
    size = lambda ps: sum(p.numel() for p in ps)  # noqa: E731
    stored = sum(p.numel() * p.itemsize for p in named.values())
    for linear in net.modules() if model.quantization != "none" else ():
        if isinstance(linear, torch.nn.Linear) and linear is not head and not linear.weight.requires_grad:
            w = linear.weight
            small = w.numel() * NF4 if model.quantization == "4bit" else w.numel() + 4 * w.shape[0]
            stored += math.ceil(small) - w.numel() * w.itemsize
    copies, sequence = saved_bytes.kept(net, config, build, (tokens, pretraining.decoder or tokens), precision)
    multiplied, attention = _work(net, shape, pretraining.decoder / tokens)
    return Anatomy(
        parameters=size(named.values()),
        trainable=size(trained),
        weight_bytes=stored,
        trainable_bytes=sum(p.numel() * p.itemsize for p in trained),
        multiplied=multiplied,
        adapter=_adapter(net),
        head=head.weight.numel() if head is not None else 0,
        head_trains=head is not None and any(p.requires_grad for p in head.parameters()),
        layers=len(layers),
        hidden=shape.hidden_size,
        attention=attention,
        vocabulary=shape.vocab_size,
        largest=max(size(layer.parameters()) for layer in layers),
        copies=copies,
        sequence=sequence,
        tokens=tokens,
    )


def _net(config, model: Model, gpu: bool, precision: str, makes: str, share: float):
    """Builds the model that a worker would train, without storage."""
    import torch

    from lib.models import added

    cls = load.auto(makes)
    attention = model.attn_implementation or ("sdpa" if gpu else "eager")
    # Flash attention isn't installed here, and saves the same tensors as sdpa.
    kernel = "sdpa" if attention.startswith("flash") else attention
    how = {"dtype": getattr(torch, load.dtype(model, precision)), "attn_implementation": kernel}
    with torch.device("meta"):
        net = cls.from_config(config, **how)
        if share:
            _add_generator(net, share, how)
        if model.adapter != "none" and ADAPTERS[model.adapter].own:
            added.install(net, model.adapter, load.peft_config(model.adapter, model.peft, makes))
        elif model.adapter != "none":
            from peft import get_peft_model

            config = load.peft_config(model.adapter, model.peft, makes)
            load.without_weights(config)
            peft = get_peft_model(net, config, low_cpu_mem_usage=True)
            net = peft.get_base_model()
            if hasattr(peft, "prompt_encoder"):
                net.prompt_encoder = peft.prompt_encoder  # its parameters are counted with the model's
                net.enable_input_require_grads()  # all layers save what the vectors' gradients need
            load.train_in_fp32(net)
    net.train()
    for layer in net.modules():
        if hasattr(layer, "module_dropout"):
            layer.eval()  # LoHa and LoKr draw whether to drop the layer, which shapes alone don't tell
    return net


def _add_generator(net, share: float, how: dict) -> None:
    """Gives ELECTRA's discriminator its generator, with the embeddings shared as in lib/methods/pretraining/electra.py."""
    from lib.methods.pretraining.electra import generator_config

    config = generator_config(net.config, share)
    config.tie_word_embeddings = True
    net.generator = load.auto("masked_lm").from_config(config, **how)
    net.generator.electra.embeddings = net.electra.embeddings
    net.generator.tie_weights()


def _adapter(net) -> int:
    """Returns the number of an adapter's parameters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    from lib.models.added import Added

    layers = (m for m in net.modules() if isinstance(m, BaseTunerLayer))
    added = [getattr(layer, name) for layer in layers for name in layer.adapter_layer_names]
    added += [net.prompt_encoder] if hasattr(net, "prompt_encoder") else []
    added += [m for m in net.modules() if isinstance(m, Added)]
    return sum(p.numel() for p in {p for part in added for p in part.parameters() if p.requires_grad})


def _work(net, shape, read: float) -> tuple[int, int]:
    """Returns Anatomy's (multiplied, attention). read: tokens of the decoder for one of the encoder."""
    width = _width(shape)
    if net.config.is_encoder_decoder:
        encoder, decoder = net.get_encoder().block, net.get_decoder().block
        ahead, behind = len(encoder), len(decoder)  # the decoder attends to itself and to the encoder's output
        cost = (ahead + behind * (read * read + read)) / (ahead + behind)
        return round(_multiplied(encoder, shape) + read * _multiplied(decoder, shape)), round(width * cost)
    if generator := getattr(net, "generator", None):
        small = generator.config
        return (
            _multiplied(saved_bytes.layers(net.electra), shape)
            + _multiplied(saved_bytes.layers(generator.electra), small),
            width + _width(small),
        )
    return _multiplied(saved_bytes.layers(net), shape), width


def _width(shape) -> int:
    heads = shape.num_attention_heads
    return heads * (getattr(shape, "head_dim", None) or shape.hidden_size // heads)


def _multiplied(layers, shape) -> int:
    total = sum(p.numel() for p in layers.parameters() if p.dim() > 1)
    experts = sum(p.numel() for n, p in layers.named_parameters() if ".experts." in n and p.dim() > 1)
    if not experts:
        return total
    count = getattr(shape, "num_experts", None) or getattr(shape, "num_local_experts", None) or shape.n_routed_experts
    return total - experts + experts * shape.num_experts_per_tok // count
