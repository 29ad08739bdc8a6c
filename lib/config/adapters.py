"""The adapters of model.adapter: the config class of each, most of them PEFT's, whose fields model.peft takes, and the fields that its
name sets.

The finished model is a plain one, except with adapters that can't be merged: the adapter is merged into the base, or, if it is a soft
prompt, its vectors become tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lib.config.job import Model

LORA = "peft.tuners.lora.config:LoraConfig"


@dataclass(frozen=True)
class Adapter:
    title: str
    config: str = LORA
    """module:class of its config."""
    sets: dict[str, object] = field(default_factory=dict)
    """Fields of the config that follow from the adapter's name."""
    quantized: bool = False
    """Whether it trains on a base of 4 or 8 bits."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Fields of the config that PEFT would overwrite or never read, each with the remedy."""
    rank: str = "r"
    """Field of the config that the plan shows."""
    defaults: dict[str, object] = field(default_factory=dict)
    """Values of fields that the config gives none, or another."""
    where: str = ""
    """Of an adapter of our own: where its modules are, for the plan. "": it is one of PEFT's."""
    merges: bool = True
    """Whether the finished model is a plain one. If not, model/ holds base and adapter apart (lib/models/unmerged.py)."""
    soft: bool = False
    """Whether it is a soft prompt: vectors in front of every row (lib/models/soft_prompt.py)."""

    @property
    def own(self) -> bool:
        """Whether it is ours and not one of PEFT's (lib/models/added.py)."""
        return bool(self.where)


FROM_BASE = dict.fromkeys(
    ("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers", "tokenizer_name_or_path"),
    "follows from model.base. Leave it out.",
) | {"modules_to_save": "a soft prompt is exported without other weights. Leave it out."}


def _soft(title: str, config: str) -> Adapter:
    tokens: dict[str, object] = {"num_virtual_tokens": 20}
    return Adapter(title, config, ignored=FROM_BASE, rank="num_virtual_tokens", defaults=tokens, soft=True)


def _bottleneck(title: str, after: str, after_attention: bool = True, nonlinearity: str = "gelu") -> Adapter:
    return Adapter(
        title,
        "lib.models.bottleneck:BottleneckConfig",
        sets={"after_attention": after_attention},
        defaults={"nonlinearity": nonlinearity},  # those of the papers' code
        where=f"after {after}",
        merges=False,
    )


ADAPTERS = {
    "lora": Adapter("LoRA", quantized=True),  # Hu et al. 2021, https://arxiv.org/abs/2106.09685
    "dora": Adapter("DoRA", sets={"use_dora": True}, quantized=True),  # Liu et al. 2024, https://arxiv.org/abs/2402.09353
    "rslora": Adapter("rsLoRA", sets={"use_rslora": True}, quantized=True),  # Kalajdzievski 2023, https://arxiv.org/abs/2312.03732
    "pissa": Adapter("PiSSA", sets={"init_lora_weights": "pissa"}),  # Meng et al. 2024, https://arxiv.org/abs/2404.02948
    "adalora": Adapter(  # Zhang et al. 2023, https://arxiv.org/abs/2303.10512
        "AdaLoRA",
        "peft.tuners.adalora.config:AdaLoraConfig",
        ignored={
            "total_step": "the number of steps follows from train.max_steps, or from the rows and train.num_train_epochs. Leave it out.",
            "rank_pattern": "training finds the ranks. Set init_r and target_r.",
            "r": "AdaLoRA doesn't read it. Set init_r, at the start, and target_r, the mean at the end.",
        }
        | dict.fromkeys(
            ("alpha_pattern", "use_rslora", "lora_bias", "target_parameters", "use_qalora", "qalora_group_size", "init_lora_weights"),
            "AdaLoRA doesn't read it. Leave it out.",
        ),
        rank="target_r",
    ),
    "vera": Adapter("VeRA", "peft.tuners.vera.config:VeraConfig"),  # Kopiczko et al. 2023, https://arxiv.org/abs/2310.11454
    "ia3": Adapter("(IA)³", "peft.tuners.ia3.config:IA3Config"),  # Liu et al. 2022, https://arxiv.org/abs/2205.05638
    "loha": Adapter("LoHa", "peft.tuners.loha.config:LoHaConfig"),  # Hyeon-Woo et al. 2021, https://arxiv.org/abs/2108.06098
    "lokr": Adapter("LoKr", "peft.tuners.lokr.config:LoKrConfig"),  # Yeh et al. 2023, https://arxiv.org/abs/2309.14859
    "oft": Adapter("OFT", "peft.tuners.oft.config:OFTConfig"),  # Qiu et al. 2023, https://arxiv.org/abs/2306.07280
    "miss": Adapter("MiSS", "peft.tuners.miss.config:MissConfig"),  # Kang and Yin 2024, https://arxiv.org/abs/2409.15371
    "ln_tuning": Adapter("LN tuning", "peft.tuners.ln_tuning.config:LNTuningConfig"),  # Zhao et al. 2023, https://arxiv.org/abs/2312.11420
    "parallel": Adapter("parallel adapter", "lib.models.parallel:ParallelConfig", where="beside each MLP"),  # He et al. 2022, https://arxiv.org/abs/2110.04366
    "prompt": _soft("prompt tuning", "peft.tuners.prompt_tuning.config:PromptTuningConfig"),  # Lester et al. 2021, https://arxiv.org/abs/2104.08691
    "p_tuning": _soft("p-tuning", "peft.tuners.p_tuning.config:PromptEncoderConfig"),  # Liu et al. 2021, https://arxiv.org/abs/2103.10385
    "prefix": Adapter(  # Li and Liang 2021, https://arxiv.org/abs/2101.00190
        "prefix tuning",
        "lib.models.prefix_tuning:PrefixConfig",
        rank="num_virtual_tokens",
        where="keys and values in front of each layer's",
        merges=False,
    ),
    "houlsby": _bottleneck("Houlsby adapter", "attention and MLP of each block"),  # Houlsby et al. 2019, https://arxiv.org/abs/1902.00751
    "pfeiffer": _bottleneck("Pfeiffer adapter", "the MLP of each block", after_attention=False, nonlinearity="relu"),  # Pfeiffer et al. 2020, https://arxiv.org/abs/2005.00247
}  # fmt: skip
"""{model.adapter: the adapter}; none is not among them."""


def merges(adapter: str) -> bool:
    """Whether a run with this model.adapter ends with a plain model."""
    return adapter == "none" or ADAPTERS[adapter].merges


def virtual_tokens(model: Model) -> int:
    """Returns the number of vectors that a job puts in front of every row, which count towards train.max_length."""
    if model.adapter == "none" or not ADAPTERS[model.adapter].soft:
        return 0
    number: int = {**ADAPTERS[model.adapter].defaults, **model.peft}["num_virtual_tokens"]
    return number


def configs() -> dict[str, str]:
    """Returns {PEFT's config class: the first adapter that has it}."""
    found: dict[str, str] = {}
    for name, adapter in ADAPTERS.items():
        found.setdefault(adapter.config, name)
    return found
