"""An adapted language model stays the library's own object: what takes such a model goes on to take it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file
from tiny_language import llama, tokenizer
from transformers import Trainer, TrainingArguments, pipeline
from trl import SFTConfig, SFTTrainer

import mmpeft

TEXTS = ["one plus two ? three .", "red cat and blue dog .", "big sun , small moon !", "what is the answer ? no ."]
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_strategy": "no"}


def adapted(moved: bool = True) -> tuple[Any, mmpeft.Adapters]:
    model = llama().eval()
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=4, targets="all"))
    if moved:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in adapters.parameters():
                parameter.normal_(std=0.3)
    return model, adapters


def base_state(model: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("mmpeft.")}


@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"num_beams": 3}, {"cache_implementation": "static"}])
def test_generate(how: dict[str, Any]) -> None:
    """What a merged, and so plain, model writes, the adapted one writes too."""
    model, adapters = adapted()
    words = tokenizer()
    words.padding_side = "left"
    batch = words(TEXTS[:2], return_tensors="pt", padding=True)
    written = model.generate(**batch, max_new_tokens=8, do_sample=False, **how)
    adapters.merge()
    assert torch.equal(written, model.generate(**batch, max_new_tokens=8, do_sample=False, **how))
    adapters.unmerge()
    with adapters.off():
        assert not torch.equal(written, model.generate(**batch, max_new_tokens=8, do_sample=False, **how))


def test_a_pipeline_of_transformers() -> None:
    model, adapters = adapted()
    write = pipeline("text-generation", model=model, tokenizer=tokenizer())
    how = {"max_new_tokens": 6, "do_sample": False}
    text = write(TEXTS[0], **how)[0]["generated_text"]
    with adapters.off():
        assert write(TEXTS[0], **how)[0]["generated_text"] != text


@pytest.mark.parametrize("memory", [None, "lean"])
def test_the_trainer_of_transformers_trains_the_adapter_and_nothing_else(tmp_path: Path, memory: Any) -> None:
    """A level of memory stands at the root, whose name and signature Trainer and `save_pretrained` read."""
    model, adapters = adapted(moved=False)
    if memory:
        mmpeft.use_memory(model, memory)
    before, own = base_state(model), {key: value.clone() for key, value in adapters.state_dict().items()}
    rows = [{"input_ids": ids, "labels": ids} for ids in tokenizer()(TEXTS)["input_ids"]]
    longest = max(len(row["input_ids"]) for row in rows)
    rows = [{key: ids + [0] * (longest - len(ids)) for key, ids in row.items()} for row in rows]
    arguments = TrainingArguments(tmp_path, max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, **QUIET)
    trainer = Trainer(model, arguments, train_dataset=Dataset.from_list(rows))
    trainer.train()
    assert all(torch.equal(value, before[key]) for key, value in base_state(model).items())
    assert any(not torch.equal(value, own[key]) for key, value in adapters.state_dict().items())
    adapters.save(tmp_path / "adapter")
    trained = mmpeft.load(llama().eval(), tmp_path / "adapter")
    assert all(torch.equal(value, adapters.state_dict()[key]) for key, value in trained.state_dict().items())
    trainer.save_model(tmp_path / "whole")
    stored = load_file(tmp_path / "whole/model.safetensors")
    assert {key for key in stored if not key.startswith("mmpeft.")} <= before.keys()
    assert json.loads((tmp_path / "whole/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_trl_s_sft_trainer(tmp_path: Path) -> None:
    model, adapters = adapted(moved=False)
    before = base_state(model)
    rows = [
        {"prompt": [{"role": "user", "content": text}], "completion": [{"role": "assistant", "content": "yes ."}]}
        for text in TEXTS
    ]
    arguments = SFTConfig(tmp_path, max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, **QUIET)
    data = Dataset.from_list(rows)
    SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer()).train()
    assert all(torch.equal(value, before[key]) for key, value in base_state(model).items())
    assert any(value.abs().sum() > 0 for key, value in adapters.state_dict().items() if key.endswith("lora_B"))


class Colours(ConfigurableTask):
    """A task of the evaluation harness that needs no download: which of two words goes on."""

    VERSION = 1

    def __init__(self, config: Any = None) -> None:
        rows = [{"text": text, "choices": ["red", "blue"], "answer": 0} for text in TEXTS]
        self.rows = {"test": Dataset.from_list(rows)}
        super().__init__(
            config={
                "task": "colours",
                "output_type": "multiple_choice",
                "test_split": "test",
                "custom_dataset": lambda **_: self.rows,
                "doc_to_text": "{{text}}",
                "doc_to_choice": "choices",
                "doc_to_target": "answer",
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            }
        )


def test_the_evaluation_harness_scores_the_live_model() -> None:
    model, adapters = adapted()
    words = tokenizer()

    def share() -> float:
        scorer = HFLM(pretrained=model, tokenizer=words, batch_size=2)
        manager = TaskManager(include_defaults=False)
        found = lm_eval.simple_evaluate(scorer, tasks=[Colours()], bootstrap_iters=0, task_manager=manager)
        return float(found["results"]["colours"]["acc,none"])

    def ours() -> float:
        right = 0
        for text in TEXTS:
            ids = torch.tensor([words(text)["input_ids"]])
            logits = model(ids).logits[0, -1]
            right += int(logits[words.convert_tokens_to_ids("red")] > logits[words.convert_tokens_to_ids("blue")])
        return right / len(TEXTS)

    assert share() == ours()
    with adapters.off():
        assert share() == ours()
