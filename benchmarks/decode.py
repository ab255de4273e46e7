"""Decoding with an active LoRA: greedy generation of a batch of one, beside the frozen model and HF peft.

python benchmarks/decode.py            about 3 minutes; --write adds the table to benchmarks/RESULTS.md
python benchmarks/decode.py --quick    a small model and few rounds, half a minute
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from typing import Any

import peft
import torch
from measure import Arm, Row, interleave, publish, timed
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import mmpeft

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPT = torch.arange(3, 19)[None]


@dataclass(frozen=True)
class Size:
    """How much to measure."""

    width: int = 1024
    depth: int = 8
    tokens: int = 24
    rounds: int = 9

    def model(self, dtype: torch.dtype) -> Any:
        """Return the frozen model."""
        torch.manual_seed(0)
        heads = self.width // 64
        widths: dict[str, Any] = {"hidden_size": self.width, "intermediate_size": 8 * self.width // 3 // 64 * 64}
        config = LlamaConfig(num_hidden_layers=self.depth, num_attention_heads=heads, vocab_size=2048, **widths)
        return LlamaForCausalLM(config).eval().to(dtype).requires_grad_(False)

    def words(self, model: Any) -> Tensor:
        """Return the words that a model says after the prompt, as many as there are to be."""
        found: Tensor = model.generate(
            input_ids=PROMPT, max_new_tokens=self.tokens, min_new_tokens=self.tokens, do_sample=False
        )
        return found


def rows(size: Size, dtype: torch.dtype) -> list[Row]:
    """Measure the three models in turn; all say the same words, for a new LoRA changes nothing."""
    frozen = size.model(dtype)
    ours, theirs = copy.deepcopy(frozen), copy.deepcopy(frozen)
    mmpeft.adapt(ours, mmpeft.LoRA(rank=8, targets="all"))
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(r=8, lora_alpha=8, target_modules=NAMES)).eval()
    models = {"frozen": frozen, "mmpeft": ours, "peft": wrapped}
    said = {name: size.words(model) for name, model in models.items()}
    assert all(torch.equal(words, said["frozen"]) for words in said.values())
    arms = {name: Arm(lambda _, model=model: size.words(model)) for name, model in models.items()}
    times = interleave(size.rounds, ours=arms["mmpeft"], peft=arms["peft"], frozen=arms["frozen"])
    what = f"{size.tokens} tokens, {size.depth} layers of width {size.width}, {str(dtype).removeprefix('torch.')}"
    return [timed(what, times), timed(f"{what}, beside the frozen model", times, "frozen")]


def main() -> None:
    """Measure and print, and with --write publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few rounds")
    parser.add_argument("--write", action="store_true", help="add the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(width=512, depth=4, tokens=12, rounds=3) if options.quick else Size()
    found = [row for dtype in (torch.float32, torch.bfloat16) for row in rows(size, dtype)]
    publish("decode", found, ("torch", "transformers", "peft"), options.write)


if __name__ == "__main__":
    main()
