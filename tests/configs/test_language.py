"""The configurations of the embedded language model find their data, and make a step with any model."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_language import PLAIN_TEMPLATE, byte_tokenizer, llama

from mmpeft.cli.run import load_run
from mmpeft.cli.shipped import configs
from mmpeft.training.config import read_run

RUNS = {name: read_run(path).data for name, path in configs().items()}
NAMES = [name for name, run in RUNS.items() if "tiny/llm" in str(run.get("model")) and "train" in run]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, tokenizer = tmp_path_factory.mktemp("llama"), byte_tokenizer(PLAIN_TEMPLATE)
    llama(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", NAMES)
def test_one_step(name: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [f"model={model}", "data.generated=[40, 8, 8]", "data.max_length=400", f"output={tmp_path / 'run'}"]
    task, config, _ = load_run(configs()[name], small)
    task.check(config)
    text = capsys.readouterr().out
    assert "one step: loss" in text
    assert "sample tiny_" in text
