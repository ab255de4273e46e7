"""HF peft's directories, ``adapter_config.json`` and safetensors: LoRA, rsLoRA, DoRA, IA3 and prefix tuning."""

from __future__ import annotations

from pathlib import Path

from mmpeft.formats.hf_peft.peft_config import read_config
from mmpeft.formats.hf_peft.peft_prompts import PrefixConfig
from mmpeft.formats.saved_adapter import SavedAdapter
from mmpeft.formats.storage import CONFIG, weights_in
from mmpeft.formats.tensor_file import TensorFile, refuse, refusing


def read_peft(directory: Path) -> SavedAdapter:
    """Return what a directory of HF peft holds: the methods that plan exactly the tensors in its file."""
    weights = weights_in(directory)
    config, file = read_config(directory), TensorFile(weights)
    with refusing(directory / CONFIG):
        methods = config.methods(file.shapes)
    if not isinstance(config, PrefixConfig) and not config.paths(file.shapes):
        refuse(weights, [f"no tensor is named like {config.suffix!r}, as {config.peft_type} needs"])
    return SavedAdapter(directory, file, methods, config=config)
