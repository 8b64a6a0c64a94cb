"""The base model and adapters on it: loading, saving, exporting, and choosing which policy answers."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from attune.errors import NotFound
from attune.ids import BASE_POLICY

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

TRAINED = "default"  # PEFT's name for the adapter that a trainer makes


def load_base(folder: Path, dtype: str) -> PreTrainedModel:
    """The base model from its folder alone, in evaluation mode; `dtype` is a torch name such as `float32`."""
    if not (folder / "config.json").is_file():
        raise NotFound(f"{folder} holds no model: config.json is missing")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True
    )
    return model.to(_device()).eval()


def adapter_config(rank: int, alpha: int) -> LoraConfig:
    """LoRA on every linear layer but the output head, without dropout: the only kind that the engine serves."""
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")


def load_adapter(base: PreTrainedModel, folder: Path, name: str) -> PeftModel:
    """Puts a saved adapter on the base, in place, under a name of its own; the result holds any number of them."""
    if isinstance(base, PeftModel):
        base.load_adapter(str(folder), adapter_name=name)
        return base
    return PeftModel.from_pretrained(base, str(folder), adapter_name=name)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Writes the trained adapter as a plain PEFT folder, which names no path of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.peft_config[TRAINED]
    config.base_model_name_or_path = ""
    config.inference_mode = True
    model.save_pretrained(str(folder), selected_adapters=[TRAINED], save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


@contextlib.contextmanager
def answering_as(model: PreTrainedModel | PeftModel, policy: str) -> Iterator[Any]:
    """The model as one policy: an adapter's name, or `base`.

    In float32 the adapter is merged meanwhile, which makes small models about twice as fast on CPU and leaves no more
    than rounding behind.
    """
    if not isinstance(model, PeftModel):
        yield model
        return
    if policy == BASE_POLICY:
        with model.disable_adapter():
            yield model.get_base_model()
        return
    model.set_adapter(policy)
    merging = next(model.parameters()).dtype == torch.float32
    if merging:
        model.merge_adapter([policy])
    try:
        yield model.get_base_model()
    finally:
        if merging:
            model.unmerge_adapter()


def export_policy(base_folder: Path, adapter_folder: Path | None, target: Path, *, merged: bool) -> None:
    """Writes a policy for use elsewhere: a plain PEFT folder, or one model with its tokenizer as transformers loads it.

    Merged weights are float32, because a merge into bfloat16 loses part of what was learnt. Without an adapter the
    policy is the base itself.
    """
    if adapter_folder is None:
        shutil.copytree(base_folder, target, dirs_exist_ok=True)
        return
    if not merged:
        target.mkdir(parents=True, exist_ok=True)
        for name in ADAPTER_FILES:
            shutil.copyfile(adapter_folder / name, target / name)
        return
    model = load_adapter(load_base(base_folder, "float32"), adapter_folder, TRAINED).merge_and_unload()
    model.save_pretrained(str(target))
    AutoTokenizer.from_pretrained(base_folder, local_files_only=True).save_pretrained(str(target))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
