"""From a trained model to the run's model/ folder, which from_pretrained always loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lib.config.adapters import ADAPTERS
from lib.config.job import Model
from lib.models import merging, soft_prompt, unmerged
from lib.models.locate import path


def export(trainer, model: Model, folder: Path) -> None:
    """Writes folder/model (loadable by from_pretrained) and, if an adapter was trained, folder/adapter. An adapter that can't be merged is
    in folder/model (lib/models/unmerged.py).

    Every rank must call it, because sharded weights are gathered. An adapter is merged into the unquantised base, as QLoRA
    does, because nothing can be added to NF4 weights. A fully trained model is written in the dtype in which the base
    stores its weights, or in the format of model.qat. Raises StopTraining if the merged model doesn't reproduce the outputs
    of the trained one.
    """
    import torch
    from transformers.integrations import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config

    main, adapted = trainer.args.process_index == 0, model.adapter != "none"
    target = folder / ("adapter" if adapted else "model")
    ids = merging.probe(trainer) if adapted else None
    trained = merging.answers(trainer.model_wrapped, ids) if adapted else None
    if adapted and ADAPTERS[model.adapter].own:
        from lib.models import added

        added.settle(trainer.model)
    trainer.save_model(str(target))
    if main:
        _plain(target)
    if adapted and is_deepspeed_zero3_enabled():
        unset_hf_deepspeed_config()  # otherwise from_pretrained would shard what it loads over the other ranks
    if main and adapted:
        from peft import PeftModel

        made = trainer.accelerator.unwrap_model(trainer.model)
        made = made.get_base_model() if hasattr(made, "get_base_model") else made
        config, quantized = made.config, model.quantization != "none"
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        weights = "float32" if model.dtype == "auto" and quantized else config.dtype

        def base():
            return type(made).from_pretrained(path(model.base), config=config, dtype=weights, revision=model.revision)

        if quantized:  # trained on rounded weights, so the reference is the adapter on the unrounded base
            trained = merging.answers(PeftModel.from_pretrained(base(), str(target)), ids)
        rounded = not quantized and (trainer.args.bf16 or trainer.args.fp16)
        exact = weights in ("float32", torch.float32) and not rounded
        if ADAPTERS[model.adapter].soft:
            _soft_prompt(trainer, base(), trained[-ids.shape[1] :], folder, ids, exact)
        else:
            if ADAPTERS[model.adapter].own:
                (target / added.WEIGHTS).rename(target / unmerged.FILE)
            if not ADAPTERS[model.adapter].merges:
                unmerged.write(base(), target, folder / "model")
            elif model.adapter == "parallel":
                from lib.models import parallel

                parallel.merge(base(), made, folder / "model")
            else:
                merging.merge(base(), target, folder / "model")
            merging.hold(trained, folder / "model", type(made), ids, exact)
    if main:
        trainer.processing_class.save_pretrained(str(folder / "model"))
    if main and not adapted:
        _shrink(model, folder / "model")


def _soft_prompt(trainer, base, trained, folder: Path, ids, exact: bool) -> None:
    """Writes folder/model of a soft prompt, and gives the trainer the tokenizer that goes with it."""
    peft = trainer.accelerator.unwrap_model(trainer.model)
    vectors = peft.get_prompt_embedding_to_save(peft.active_adapter)
    trainer.processing_class, new = soft_prompt.with_tokens(trainer.processing_class, len(vectors))
    soft_prompt.export(base, vectors, new, trained, folder / "model")
    soft_prompt.hold(trained, folder / "model", type(base), ids, new, exact)
    (folder / "adapter" / soft_prompt.ENCODER).unlink()


def _plain(folder: Path) -> None:
    """Deletes training_args.bin, a pickle that nothing reads, and sorts the lists that PEFT writes in set order, which differs
    between processes."""
    (folder / "training_args.bin").unlink(missing_ok=True)
    if (file := folder / "adapter_config.json").is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        for key in ("target_modules", "exclude_modules", "feedforward_modules"):
            if isinstance(config.get(key), list):
                config[key] = sorted(config[key])
        file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _shrink(model: Model, folder: Path) -> None:
    """Rewrites the weights in `folder`, which were trained in float32, in the base's stored dtype or the format of model.qat."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(path(model.base), revision=model.revision).dtype or torch.float32
    kept = model.dtype if model.dtype != "auto" else str(stored).removeprefix("torch.")
    if model.qat != "none":
        from lib.models.quantization.schemes import quantize

        quantize(model.qat, str(folder), str(target := folder.with_name("quantized")), kept)
        shutil.rmtree(folder)
        target.rename(folder)
    elif kept != "float32":
        for file in folder.glob("*.safetensors"):
            tensors = load_file(file)
            floats = {n: t.to(getattr(torch, kept)) for n, t in tensors.items() if t.is_floating_point()}
            save_file(tensors | floats, file, {"format": "pt"})
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {"dtype": kept}, indent=2), encoding="utf-8")
