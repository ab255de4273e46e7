"""Learning concepts on the embedded Stable Diffusion: several at once, and what class pictures are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import mmpeft
from mmpeft.cli.shipped import find_task, load_task

STAR = {"class_path": "scenes/plain/star", "class_prompt": "a star"}
HEART = {"path": "scenes/plain/heart", "count": 5, "prompt": "a <new1>"}
MOON = {"path": "scenes/plain/moon", "count": 3, "prompt": "a <new2>"}
WORDS = {"method": "textual_inversion", "words": ["<new1>", "<new2>"], "init": "star"}


def make(output: Path, adapters: Any, concepts: list[dict[str, Any]], **train: Any) -> Any:
    settings = {
        "task": "diffusion/concept",
        "model": "tiny/sd",
        "adapters": {"main": adapters},
        "data": {"name": "concepts", "concepts": concepts},
        "train": {"weight_decay": 0.0, "evaluate_every": 100, "save_every": 100, **train},
        "loss": {"min_snr": 1},
        "sampling": {"steps": 2},
        "output": str(output),
    }
    return load_task(find_task("diffusion/concept")).Config.model_validate(settings)


def learned_words(output: Path, concepts: list[dict[str, Any]]) -> Tensor:
    config = make(output, ["custom_diffusion", WORDS], concepts, max_steps=4, batch_size=8, lr=1e-2)
    task = load_task(find_task("diffusion/concept"))
    assert task.run(config)["steps"] == 4
    assert task.predict(config.model_copy(update={"prompt": "a <new1> and a <new2>"}), 0).picture.is_file()
    state = load_file(output / "adapter" / "adapter_model.safetensors")
    (words,) = (value for name, value in state.items() if name.endswith("vectors"))
    return words


def test_each_of_several_concepts_teaches_its_own_word(tmp_path: Path) -> None:
    pipeline: Any = mmpeft.load_model("tiny/sd")
    (star,) = pipeline.tokenizer("star", add_special_tokens=False).input_ids
    start = pipeline.text_encoder.get_input_embeddings().weight[star].detach()
    one = learned_words(tmp_path / "one", [HEART | STAR])
    both = learned_words(tmp_path / "both", [HEART | STAR, MOON | STAR])
    assert [bool((row - start).abs().max() > 0.01) for row in (*one, *both)] == [True, False, True, True]
    assert torch.equal(one[1], start)


def test_class_pictures_keep_the_class_as_it_is(tmp_path: Path) -> None:
    """Hearts under the word star: what the model still knows of stars is told by its loss on them."""
    task = load_task(find_task("diffusion/concept"))
    lora = {"method": "lora", "rank": 8, "targets": "all", "towers": "unet"}
    stars = {"path": "scenes/plain/star", "prompt": "a star"}
    losses = []
    for name, prior in (("with", STAR), ("without", {})):
        concept = HEART | {"prompt": "a star"} | prior
        config = make(tmp_path / name, lora, [concept], max_steps=40, batch_size=5, lr=5e-3)
        task.run(config)
        asked = make(tmp_path / name, lora, [stars], max_steps=1)
        losses.append(task.evaluate(asked)["loss"])
    assert losses[0] < 0.9 * losses[1]
