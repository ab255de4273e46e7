"""A training step of LoRA on a Llama: mmpeft by level of memory, peft, full fine-tuning and the floor.

python benchmarks/train_llm.py            about 4 minutes; --write adds the table to benchmarks/RESULTS.md
python benchmarks/train_llm.py --quick    a small model and few rounds, 20 seconds

The model ends at its last norm: what an output layer and its loss take is alike on all sides, and a matter of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from training_arms import Subject
from training_steps import main
from transformers import LlamaConfig, LlamaModel

WORDS = 2000


def loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the mean square of the distance of each position's state to a drawn one."""
    hidden = model(input_ids=batch["ids"], use_cache=False).last_hidden_state
    found: Tensor = (hidden - batch["aims"]).square().mean()
    return found


def subject(quick: bool) -> Subject:
    """Return a Llama of 6 blocks of width 512, or with ``quick`` two of its blocks and one row."""
    depth, rows = (2, 1) if quick else (6, 4)
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}

    def make() -> nn.Module:
        size = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": depth}
        return LlamaModel(LlamaConfig(vocab_size=WORDS, **size, **heads))

    made = torch.Generator().manual_seed(0)
    batch = {
        "ids": torch.randint(WORDS, (rows, 256), generator=made),
        "aims": torch.randn(rows, 256, 512, generator=made),
    }
    return Subject(
        f"Llama of {depth} blocks of width 512 (keys and values of 256, MLP of 1408), {rows} x 256 tokens, LoRA of "
        "rank 8 on all seven layers of each block",
        make,
        batch,
        loss,
        targets=("attn.*", "mlp.*"),
        pattern=r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
        first=("layers.0.self_attn.q_proj",),
        checkpoint=lambda model: model.gradient_checkpointing_enable({"use_reentrant": False}),
    )


if __name__ == "__main__":
    main("train_llm", subject, ("transformers",), rounds=5, doc=__doc__)
