"""``inspect``, ``merge``, ``export`` and ``import``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import mmpeft
from mmpeft.cli import main

Capture = pytest.CaptureFixture[str]
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


@pytest.fixture
def adapted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The embedded ViT with a LoRA and a head that do something, saved as ``adapter`` in the current directory."""
    monkeypatch.chdir(tmp_path)
    model: nn.Module = mmpeft.load_model("tiny/vit", num_classes=10)
    adapters = mmpeft.adapt(model, [mmpeft.LoRA(rank=2), mmpeft.LinearProbe()])
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(std=0.1)
    adapters.save("adapter")
    return model


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IMAGES)


def test_inspect_prints_the_anatomy(capsys: Capture) -> None:
    assert main(["inspect", "tiny/vit"]) == 0
    printed = capsys.readouterr().out
    assert "attn.q" in printed
    assert "blocks.*.mlp.fc1" in printed


def test_inspect_of_an_unknown_model(capsys: Capture) -> None:
    assert main(["inspect", "tiny/vti"]) == 2
    assert "did you mean 'tiny/vit'" in capsys.readouterr().err


def test_merge_writes_plain_weights_of_the_same_function(adapted: nn.Module) -> None:
    assert main(["merge", "tiny/vit", "adapter", "out/merged.safetensors", "--num-classes", "10"]) == 0
    assert [path.name for path in Path("out").iterdir()] == ["merged.safetensors"]
    model = mmpeft.load_model("tiny/vit", num_classes=10)
    model.load_state_dict(load_file("out/merged.safetensors"))
    assert torch.allclose(output(model), output(adapted), atol=1e-5)
    assert not torch.allclose(output(model), output(mmpeft.load_model("tiny/vit", num_classes=10)), atol=1e-1)


def test_merge_refuses(adapted: nn.Module, capsys: Capture) -> None:
    assert main(["merge", "tiny/vit", "adapter", "merged.pt", "--num-classes", "10"]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err
    Path("there.safetensors").touch()
    assert main(["merge", "tiny/vit", "adapter", "there.safetensors", "--num-classes", "10"]) == 2
    assert "is not overwritten" in capsys.readouterr().err
    assert main(["merge", "tiny/vit", "adapter", "new.safetensors", "--num-classes", "7"]) == 2
    assert "shape" in capsys.readouterr().err
    assert not Path("new.safetensors").exists()


def test_export_and_import_round_trip(adapted: nn.Module) -> None:
    assert main(["export", "adapter", "for_peft", "--format", "peft"]) == 0
    assert Path("for_peft/adapter_config.json").is_file()
    assert main(["import", "for_peft", "back", "--format", "peft"]) == 0
    model = mmpeft.load_model("tiny/vit", num_classes=10)
    mmpeft.load(model, "back")
    assert torch.allclose(output(model), output(adapted), atol=1e-5)


def test_export_refuses(adapted: nn.Module, capsys: Capture) -> None:
    assert main(["export", "adapter", "x", "--format", "pfet"]) == 2
    assert "did you mean 'peft'" in capsys.readouterr().err
    assert main(["export", "adapter", "adapter", "--format", "peft"]) == 2
    assert "is not overwritten" in capsys.readouterr().err
