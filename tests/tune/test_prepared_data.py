"""Trials share their tokenised rows: datasets keeps them beside the rows, under a name that follows from the rows, the tokenizer and the
function that tokenises."""

import pytest

from lib import data
from lib.stage.declared import stages
from lib.stage.training_arguments import arguments
from tune import steps


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo", "reward", "distill"])
def test_a_second_trial_renders_and_tokenises_no_row(stage, tiny_model, chats_file, pairs_file, tmp_path, monkeypatch):
    import datasets
    from transformers import PreTrainedTokenizerBase

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    rendered, render = [], PreTrainedTokenizerBase.apply_chat_template
    monkeypatch.setattr(
        PreTrainedTokenizerBase, "apply_chat_template", lambda *a, **k: rendered.append(1) or render(*a, **k)
    )
    declared = stages()[stage]

    def renderings(rate: str) -> int:
        """Returns how often a chat template is applied while a trainer is built."""
        keys = {"model.base": tiny_model, "data.source": pairs_file if stage in ("dpo", "reward") else chats_file}
        keys |= {"train.teacher": tiny_model, "train.keep_layers": "2"} if stage == "distill" else {}
        keys |= {"run": str(tmp_path / "run"), "scale.workers": "1", "train.learning_rate": rate}
        job = steps.parsed(f"configs/{stage}.yaml", declared, keys)
        args, _ = arguments(job, declared.config, 1, str(tmp_path / "checkpoints"))
        rows = data.load(job.data, declared.rows)
        rendered.clear()
        declared.build(job, args, rows)
        return len(rendered)

    first, second = renderings("0.001"), renderings("0.01")
    assert second < 16 and first - second >= 64  # the trainer itself tries the template a few times
