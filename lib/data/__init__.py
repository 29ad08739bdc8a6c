"""Rows for training and evaluation: `check` runs on the driver, `load` on a worker. See load.py."""

from lib.data.check import Check
from lib.data.load import Loaded, absolute, check, load
from lib.data.turns import per_answer, prompts

__all__ = ["Check", "Loaded", "absolute", "check", "load", "per_answer", "prompts"]
