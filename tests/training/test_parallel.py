from pathlib import Path
from typing import Any

import pytest
import torch
from training_program import make_trainer, weights

LAUNCH = ("-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes", "2", "--mixed_precision", "no")
LAUNCH = (*LAUNCH, "--dynamo_backend", "no", "--main_process_port", "0")
SETTINGS = {"optimizer": "sgd", "lr": 0.05, "accumulate": 2, "clip": 1.0, "ema": 0.5}


@pytest.mark.parametrize(
    ("how", "layers", "cache"),
    [
        (("--multi_gpu",), "last:1", "the input of blocks.1"),
        (("--use_fsdp", "--fsdp_version", "2"), "all", "off, for the model is sharded (FSDP)"),
    ],
    ids=["ddp", "fsdp2"],
)
def test_two_processes_train_what_one_does(
    tmp_path: Path, start: Any, how: tuple[str, ...], layers: str, cache: str
) -> None:
    """The same global batches, 22 samples in batches of 8; the program resumes its run once and compares.

    Two processes keep as little for the backward pass as can be, one keeps what it likes.
    """
    options = [f"{key}={value}" for key, value in {**SETTINGS, "layers": layers, "memory": "leanest"}.items()]
    two = start(tmp_path / "two", "batch_size=4", "again=true", *options, launcher=(*LAUNCH, *how))
    one = make_trainer(tmp_path / "one", batch_size=8, cache="off", layers=layers, **SETTINGS)
    result = one.fit()
    output, _ = two.communicate(timeout=200)
    assert two.returncode == 0, output
    assert f"prefix cache: {cache}" in output

    found = torch.load(tmp_path / "two" / "outcome.pt", weights_only=False)
    difference = max(float((found["weights"][name] - value).abs().max()) for name, value in weights(one).items())
    assert difference < 1e-6
    assert found["result"].best_step == result.best_step
    assert found["processes"] == 2
    assert found["test"] == pytest.approx(one.evaluate("test"), rel=1e-5)
    saved = [(tmp_path / run / "adapter").iterdir() for run in ("one", "two")]
    assert sorted(path.name for path in saved[0]) == sorted(path.name for path in saved[1])


def test_fsdp1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmpeft.training.parallel import _shard

    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match=r"fsdp_version: 1 .* use fsdp_version: 2"):
        _shard(torch.nn.Linear(1, 1), [])


def test_the_blocks_of_a_model_with_a_head_of_ours_are_found() -> None:
    from timm.models.vision_transformer import VisionTransformer

    from mmpeft.heads.segmentation import Segmenter
    from mmpeft.training.parallel import _blocks

    backbone = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    assert _blocks(Segmenter(backbone, 3)) == list(backbone.blocks)
