"""``import`` of a paper's checkpoint, and ``export`` of a run's class embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mmpeft
from mmpeft.cli import main
from mmpeft.formats import READ, WRITTEN
from mmpeft.formats.serving.class_embeddings import read_class_embeddings

Capture = pytest.CaptureFixture[str]

TASK = '''"""A classifier of two classes by their texts."""
from types import SimpleNamespace

import torch
from open_clip.model import CLIP

from mmpeft.heads.zero_shot import ZeroShotClassifier
from mmpeft.training.config import RunConfig as Config


def load_adapted(config):
    """Return the classifier, or on a wish a model that is none."""
    if config.train.seed == 13:
        return SimpleNamespace(model=torch.nn.Linear(2, 2))
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "head_width": 16, "layers": 1, "width": 32}
    text = {"context_length": 9, "vocab_size": 50, "heads": 2, "layers": 1, "width": 32}
    ids = lambda texts: torch.tensor([[1, 2 + len(text), 49] + [0] * 6 for text in texts])
    return SimpleNamespace(model=ZeroShotClassifier(CLIP(16, vision, text).eval(), ["cat", "horse"], ["a {}."], ids))
'''


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """A file of shallow prompts, ``prompt_ep9.pth``, in the current directory."""
    monkeypatch.chdir(tmp_path)
    value = torch.randn(1, 3, 8)
    torch.save({"shallow_prompt": value.numpy()}, "prompt_ep9.pth")
    return value


def test_import_of_a_papers_checkpoint(prompts: torch.Tensor, capsys: Capture) -> None:
    assert main(["import", "prompt_ep9.pth", "ours", "--format", "vpt", "--options", "projected=false"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "prompt_ep9.pth as mmpeft: ours",
        "the file has no head: train one (LinearProbe), or use the features",
    ]
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3)
    assert torch.equal(mmpeft.load(model, "ours").state_dict()["tokens.vpt.tokens"], prompts)


def test_import_refuses(prompts: torch.Tensor, capsys: Capture) -> None:
    assert main(["import", "prompt_ep9.pth", "ours", "--format", "convpass"]) == 2
    assert "it looks like vpt: --format vpt" in capsys.readouterr().err
    assert main(["import", "prompt_ep9.pth", "ours", "--format", "vpt", "--options", "scale=3", "x"]) == 2
    assert "'x': an override looks like key=value" in capsys.readouterr().err
    assert main(["import", "prompt_ep9.pth", "ours", "--format", "vpt", "--options", "scale=3"]) == 2
    assert "format vpt: 1 problem\n  scale: unknown key (one of: projected), got 3" in capsys.readouterr().err
    assert main(["import", "nothing.pth", "ours", "--format", "vpt"]) == 2
    assert "no file 'nothing.pth'" in capsys.readouterr().err
    assert not Path("ours").exists()


def test_help_lists_the_formats(capsys: Capture) -> None:
    for command, known in (("import", READ), ("export", WRITTEN)):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        printed = capsys.readouterr().out
        assert all(f"\n  {name} " in printed and text in printed for name, text in known.items())


def test_export_of_class_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    Path("by_texts.py").write_text(TASK)
    Path("run").mkdir()
    config = (
        "task: by_texts.py\nmodel: tiny/vit\nadapters: {main: lora}\ndata: {name: digits}\ntrain: {epochs: 1, lr: 1e-3"
    )
    Path("run/config.yaml").write_text(config + "}\n")
    command = ["export", "run", "out/classes.safetensors", "--format", "class_embeddings"]
    assert main(command) == 0
    assert capsys.readouterr().out == "run as class_embeddings: out/classes.safetensors\n"
    assert read_class_embeddings(Path("out/classes.safetensors")).classes == ("cat", "horse")
    assert main(["export", "run", "classes", "--format", "class_embeddings"]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err
    assert main(["export", "out", "x.safetensors", "--format", "class_embeddings"]) == 2
    assert "so it is no run directory" in capsys.readouterr().err
    Path("run/config.yaml").write_text(config + ", seed: 13}\n")
    assert main(["export", "run", "x.safetensors", "--format", "class_embeddings"]) == 2
    assert "its Linear does not classify by the texts" in capsys.readouterr().err
