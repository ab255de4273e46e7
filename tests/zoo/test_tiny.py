from __future__ import annotations

import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

from mmpeft.data import DataConfig, load_data
from mmpeft.zoo import load_model
from mmpeft.zoo.cards import WEIGHTS


def test_it_is_a_plain_timm_vision_transformer():
    model = load_model("tiny/vit")
    assert type(model) is VisionTransformer
    assert not model.training
    assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 3e6
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 128)
    assert (WEIGHTS / "tiny_vit.safetensors").stat().st_size < 5_000_000


def test_its_weights_are_the_file():
    state, stored = load_model("tiny/vit").state_dict(), load_file(WEIGHTS / "tiny_vit.safetensors")
    assert state.keys() == stored.keys()
    assert all(torch.equal(value, stored[name].float()) for name, value in state.items())
    assert all(torch.isfinite(value).all() for value in state.values())


def test_a_new_head_is_fresh_and_the_rest_is_not():
    torch.manual_seed(0)
    one, two = load_model("tiny/vit", num_classes=10), load_model("tiny/vit", num_classes=10)
    assert one.head.weight.shape == (10, 128)
    assert not torch.equal(one.head.weight, two.head.weight)
    assert torch.equal(one.blocks[5].mlp.fc2.weight, two.blocks[5].mlp.fc2.weight)
    random = load_model("tiny/vit", pretrained=False)
    assert not torch.equal(random.blocks[5].mlp.fc2.weight, two.blocks[5].mlp.fc2.weight)


def test_timm_reads_its_preprocessing():
    config = timm.data.resolve_model_data_config(load_model("tiny/vit", device="meta"))
    assert config["input_size"] == (3, 32, 32)
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)
    assert config["crop_pct"] == 1.0


def test_options_reach_the_constructor_and_wrong_shapes_are_named():
    assert load_model("tiny/vit", drop_path_rate=0.1).blocks[5].drop_path1.drop_prob == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"does not fit VisionTransformer: .*norm.weight"):
        load_model("tiny/vit", global_pool="avg")


@pytest.fixture
def copied(tmp_path):
    for suffix in (".json", ".safetensors"):
        shutil.copy(WEIGHTS / f"tiny_vit{suffix}", tmp_path / f"mine{suffix}")
    return tmp_path / "mine.safetensors"


def test_a_local_file_loads_the_same_way(copied):
    assert torch.equal(load_model(str(copied)).pos_embed, load_model("tiny/vit").pos_embed)


def test_every_difference_is_in_one_error(copied):
    state = load_file(copied)
    state["pos_embed"] = state["pos_embed"][:, :5].contiguous()
    state["extra"] = state.pop("cls_token")
    save_file(state, copied)
    with pytest.raises(
        ValueError, match=r"no cls_token.*unknown extra.*pos_embed is \(1, 5, 128\), not \(1, 17, 128\)"
    ):
        load_model(str(copied))


def test_a_broken_file_is_named(copied):
    copied.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"mine.safetensors can't be read as safetensors"):
        load_model(str(copied))


def test_features_are_far_better_than_chance_features():
    """A nearest-mean classifier of the digits: no training, so no luck with seeds."""

    def accuracy(model):
        splits = load_data(DataConfig(name="digits"), model)
        train, val = (
            torch.stack([split[i]["image"] for i in range(len(split))]) for split in (splits.train, splits.val)
        )
        with torch.no_grad():
            known, seen = (torch.nn.functional.normalize(model(part), dim=1) for part in (train, val))
        means = torch.stack([known[torch.tensor(splits.train.labels) == digit].mean(0) for digit in range(10)])
        return ((seen @ means.T).argmax(1) == torch.tensor(splits.val.labels)).float().mean().item()

    torch.manual_seed(0)
    assert accuracy(load_model("tiny/vit")) > accuracy(load_model("tiny/vit", pretrained=False)) + 0.1
