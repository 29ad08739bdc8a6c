"""The adapters of model.adapter: PEFT's config class of each, whose fields model.peft takes, and the fields that its name sets.

All of these can be merged, so that the finished model is a plain one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LORA = "peft.tuners.lora.config:LoraConfig"


@dataclass(frozen=True)
class Adapter:
    title: str
    paper: str
    config: str = LORA
    """module:class of PEFT's config."""
    sets: dict[str, object] = field(default_factory=dict)
    """Fields of the config that follow from the adapter's name."""
    quantized: bool = False
    """Whether it trains on a base of 4 or 8 bits."""


ADAPTERS = {
    "lora": Adapter("LoRA", "Hu et al. 2021, https://arxiv.org/abs/2106.09685", quantized=True),
    "dora": Adapter("DoRA", "Liu et al. 2024, https://arxiv.org/abs/2402.09353", sets={"use_dora": True}, quantized=True),
    "rslora": Adapter("rsLoRA", "Kalajdzievski 2023, https://arxiv.org/abs/2312.03732", sets={"use_rslora": True}, quantized=True),
    "pissa": Adapter("PiSSA", "Meng et al. 2024, https://arxiv.org/abs/2404.02948", sets={"init_lora_weights": "pissa"}),
    "vera": Adapter("VeRA", "Kopiczko et al. 2023, https://arxiv.org/abs/2310.11454", "peft.tuners.vera.config:VeraConfig"),
    "ia3": Adapter("(IA)³", "Liu et al. 2022, https://arxiv.org/abs/2205.05638", "peft.tuners.ia3.config:IA3Config"),
    "loha": Adapter("LoHa", "Hyeon-Woo et al. 2021, https://arxiv.org/abs/2108.06098", "peft.tuners.loha.config:LoHaConfig"),
    "lokr": Adapter("LoKr", "Yeh et al. 2023, https://arxiv.org/abs/2309.14859", "peft.tuners.lokr.config:LoKrConfig"),
    "oft": Adapter("OFT", "Qiu et al. 2023, https://arxiv.org/abs/2306.07280", "peft.tuners.oft.config:OFTConfig"),
    "miss": Adapter("MiSS", "Kang and Yin 2024, https://arxiv.org/abs/2409.15371", "peft.tuners.miss.config:MissConfig"),
    "ln_tuning": Adapter("LN tuning", "Zhao et al. 2023, https://arxiv.org/abs/2312.11420", "peft.tuners.ln_tuning.config:LNTuningConfig"),
}  # fmt: skip
"""{model.adapter: the adapter}; none is not among them."""


def configs() -> dict[str, str]:
    """Returns {PEFT's config class: the first adapter that has it}."""
    found: dict[str, str] = {}
    for name, adapter in ADAPTERS.items():
        found.setdefault(adapter.config, name)
    return found
