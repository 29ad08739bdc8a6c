"""GPUs: their names on the markets, and their manufacturer's published speed."""

from __future__ import annotations

import re

from lib.errors import nearest

TFLOPS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100 SXM": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIE": 756.0,
    "A100 SXM4": 312.0,
    "A100 PCIE": 312.0,
    "RTX PRO 6000 WS": 503.8,
    "RTX PRO 6000 S": 503.8,
    "RTX 6000Ada": 364.2,
    "L40S": 362.1,
    "L40": 181.1,
    "L4": 121.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10": 125.0,
    "RTX A6000": 154.8,
    "RTX A5000": 111.1,
    "RTX A4000": 76.7,
    "RTX 5090": 209.5,
    "RTX 5080": 112.6,
    "RTX 5070 Ti": 87.9,
    "RTX 5070": 61.7,
    "RTX 4090": 165.2,
    "RTX 4080S": 104.4,
    "RTX 4080": 97.5,
    "RTX 4070S Ti": 88.2,
    "RTX 4070 Ti": 80.2,
    "RTX 4070S": 71.0,
    "RTX 4070": 58.3,
    "RTX 3090 Ti": 80.0,
    "RTX 3090": 71.0,
    "RTX 3080 Ti": 68.2,
    "RTX 3080": 59.5,
    "Tesla V100": 125.0,
    "Tesla T4": 65.0,
}
"""Name on Vast → dense bfloat16 TFLOPS with float32 accumulation (float16 for V100 and T4, which have no bfloat16), without
sparsity. From NVIDIA's data sheets of B200, H200, H100, A100, A40, A30, A10, L40S, L40, L4, RTX A6000/A5000/A4000, RTX 6000
Ada, V100, T4, and its whitepapers on GA102 (RTX 30), Ada (RTX 40) and RTX Blackwell (RTX 50, RTX PRO 6000). Training reaches
half of it at best, so these numbers rank GPUs; hours are planned with measured speeds where there are any."""

OTHERS = frozenset(
    """
A2|A10G|A16|A100X|A800 PCIE|A800 SXM4|B300|GB200|GH200 SXM|H200 NVL|H20|H800|L20|MI300X|MI325X|Tesla P4|Tesla P40|Tesla P100|
GTX 1050|GTX 1050 Ti|GTX 1060|GTX 1070|GTX 1070 Ti|GTX 1080|GTX 1080 Ti|GTX 1650|GTX 1650 S|GTX 1650 Ti|GTX 1660|GTX 1660 S|
GTX 1660 Ti|RTX 2060|RTX 2060S|RTX 2070|RTX 2070S|RTX 2080|RTX 2080S|RTX 2080 Ti|RTX 3050|RTX 3060|RTX 3060 laptop|RTX 3060 Ti|
RTX 3070|RTX 3070 laptop|RTX 3070 Ti|RTX 4060|RTX 4060 laptop|RTX 4060 Ti|RTX 4070 laptop|RTX 4080 laptop|RTX 4090D|RTX 5060|
RTX 5060 Ti|Titan RTX|Titan V|Titan X|Titan Xp|Quadro P4000|Quadro P5000|Quadro P6000|Quadro GP100|Quadro GV100|Q RTX 4000|
Q RTX 5000|Q RTX 6000|Q RTX 8000|RTX A2000|RTX A4500|RTX 2000Ada|RTX 4000Ada|RTX 4500Ada|RTX 5000Ada|RTX 5880Ada|
RTX PRO 2000|RTX PRO 4000|RTX PRO 4500|RTX PRO 5000|RTX PRO 6000|RTX PRO 6000 Max-Q
""".replace("\n", "").split("|")
)
"""Other existing names (vast-cli, vastai/data/query.py, and RunPod's catalog), for which TFLOPS has no speed."""

FORMS = {"sxm", "pcie", "nvl", "hbm2", "hbm3"}
"""Words that distinguish variants of one GPU."""


def words(name: str) -> frozenset[str]:
    """Returns the words that identify a GPU: {"a100", "sxm"} for each of "A100 SXM4", "A100_SXM4", "A100-SXM4-80GB" and
    "NVIDIA A100 SXM 80GB"."""
    name = re.sub(
        r"\b\d+ ?gb\b|\bnvidia\b|\bgeforce\b|\btesla\b", " ", name.lower().replace("-", " ").replace("_", " ")
    )
    name = re.sub(r"\bsxm\d", "sxm", name.replace("super", "s"))
    return frozenset(re.sub(r"(?<=\d)(?=[a-z])", " ", name).split())


def fits(wanted: str, name: str) -> bool:
    """Returns whether `name` is the wanted GPU. "A100" matches all its variants; "RTX 4090" doesn't match "RTX 4090D"."""
    return words(wanted) <= words(name) and words(name) - words(wanted) <= FORMS


def speed(name: str) -> float | None:
    """Returns the dense bfloat16 TFLOPS of one GPU; None if TFLOPS doesn't list it."""
    same = [v for k, v in TFLOPS.items() if words(k) == words(name)]
    return same[0] if same else next((v for k, v in TFLOPS.items() if fits(k, name)), None)


def mistaken(name: str) -> str:
    """Returns " Nearest: …." if `name` looks like a misspelt known GPU; "" if it is known, or may be a new one."""
    known = TFLOPS.keys() | OTHERS
    if any(fits(name, k) or words(k) == words(name) for k in known):
        return ""
    return nearest(name.replace("_", " "), known)
