"""Pretrain `tiny/llm`, the embedded language model, from scratch on plain text that needs no download.

A transformers LlamaForCausalLM of 2 million parameters reads the English of Python's own documentation (llm_text.py)
and generated sentences (llm_sentences.py), packed into rows of 64, later of 256 tokens. It is a base model: it goes on
with text, and has never seen a chat turn, an instruction or a refusal. It is shipped in 16 bit, as a folder that
transformers loads.

    OMP_NUM_THREADS=1 python tools/pretrain_llm.py

It is checkpointed every 200 steps: called again with the same `--work`, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from llm_data import LENGTH, SPECIAL, VOCABULARY, build_tokenizer, build_tokens
from llm_measure import measure
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WEIGHTS = Path(__file__).resolve().parents[1] / "mmpeft" / "zoo" / "weights"
REPEATED, SHORT, ROW = 32, 64, 256
"""Tokens of a row: words are learned to be looked up sooner where there are few to look at."""
ARCHITECTURE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a batch")
    parser.add_argument("--short", type=int, default=2000, help="steps on rows of 64 tokens, then")
    parser.add_argument(
        "--repeats", type=int, default=600, help="steps on random tokens that repeat, at the very first"
    )
    parser.add_argument("--documentation", type=float, default=0.12, help="share of the documents")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("/tmp/mmpeft_pretrain_llm"), help="checkpoint and cache")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="folder of the weights to ship")
    return parser.parse_args()


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build the model with fresh weights; generation ends with the text, or with the turn."""
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")]
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = LlamaForCausalLM(LlamaConfig(**ARCHITECTURE, **ids, eos_token_id=ends[0]))
    model.generation_config = GenerationConfig(**ids, eos_token_id=ends)
    return model


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up over 150 steps, fall to nothing over the last 30 %."""
    return peak * min((step + 1) / 150, 1, (steps - step) / (0.3 * steps))


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices decay; norms and the embedding, which has rows that are not trained, don't."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        (others if parameter.ndim < 2 or "embed" in name else matrices).append(parameter)
    return [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]


def next_batch(tokens: torch.Tensor, step: int, options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of a step, and what is learned of them."""
    place = step - options.repeats
    if place < 0:
        return repeat_tokens(options.tokens // REPEATED, torch.Generator().manual_seed(step))
    length = SHORT if place < options.short else ROW
    rows = tokens[place * options.tokens : (place + 1) * options.tokens].view(-1, length)
    return rows, rows


def repeat_tokens(rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows in which 3 to 16 random tokens repeat, to learn to look up what came before (induction heads).

    Of text alone, that took more than a million tokens; nothing is learned of the first occurrences.
    """
    period = torch.randint(3, REPEATED // 2 + 1, (rows, 1), generator=generator)
    fresh = torch.randint(SPECIAL, VOCABULARY, (rows, REPEATED), generator=generator)
    place = torch.arange(REPEATED)[None]
    batch = fresh.gather(1, place % period)
    return batch, batch.masked_fill(place < period, -100)


def train(
    model: LlamaForCausalLM, tokens: torch.Tensor, options: argparse.Namespace, path: Path
) -> tuple[float, float]:
    """Read the tokens once, a batch after the other; return the seconds and the running loss."""
    optimizer = torch.optim.AdamW(grouped(model), betas=(0.9, 0.98), fused=True)
    first, seconds, running = resume(path, model, optimizer)
    start = time.perf_counter() - seconds
    model.train()
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.lr)
        batch, labels = next_batch(tokens, step, options)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        seconds = time.perf_counter() - start
        if step % 100 == 0:
            print(f"{step:6d} {seconds:6.0f} s  loss {running:.3f}", flush=True)
        if (step + 1) % 200 == 0:
            save(path, model, optimizer, {"step": step + 1, "seconds": seconds, "running": running})
    return seconds, running


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, float]) -> None:
    """Write a checkpoint, or none."""
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **state}
    torch.save(parts, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float, float]:
    """Read the checkpoint, if there is one; return its step, the seconds spent so far and the running loss."""
    if not path.exists():
        return 0, 0.0, math.nan
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"], state["running"]


def ship(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, facts: dict[str, Any], folder: Path) -> None:
    """Write the folder with the model in float16 and its tokenizer, and a card beside it.

    Its configuration says float32, so that transformers loads it so: 16 bit is slow on CPUs and too coarse to train.
    """
    model.half().save_pretrained(folder / "tiny_llm")
    tokenizer.save_pretrained(folder / "tiny_llm")
    path = folder / "tiny_llm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    card = {"library": "transformers", "folder": "tiny_llm", "pretraining": facts}
    (folder / "tiny_llm.json").write_text(json.dumps(card, indent=2) + "\n")


def main() -> None:
    """Train, checkpoint, measure and ship."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(options.work / "tokenizer")
    wanted = options.steps * options.tokens
    tokens = build_tokens(tokenizer, wanted, options.documentation, options.seed, options.work / "tokens.npy")
    model = build_model(tokenizer)
    seconds, loss = train(model, tokens, options, options.work / "checkpoint.pt")
    names = ("steps", "tokens", "repeats", "short", "documentation", "lr", "seed")
    facts: dict[str, Any] = {name: getattr(options, name) for name in names}
    facts |= {"seconds": round(seconds), "last_loss": round(loss, 3)}
    model.half().float()
    ship(model, tokenizer, facts | {"measured": measure(model, tokenizer)}, options.output)


if __name__ == "__main__":
    main()
