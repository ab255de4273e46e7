import pytest
import torch

from mmpeft.training.config import TrainConfig
from mmpeft.training.failures import OutOfDeviceMemoryError, explained_out_of_memory


def test_out_of_memory_names_the_settings_to_change() -> None:
    config = TrainConfig(epochs=1, batch_size=48, accumulate=2)
    with pytest.raises(OutOfDeviceMemoryError) as caught, explained_out_of_memory(config):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    message = str(caught.value)
    assert "Tried to allocate 2.00 GiB" in message
    assert "train.batch_size=24 train.accumulate=4 (now 48 and 2)" in message
    assert "train.precision=bf16 (now fp32)" in message
    assert "train.eval_batch_size=24 (now 48)" in message


def test_what_is_used_already_is_not_advised() -> None:
    config = TrainConfig(epochs=1, batch_size=1, precision="bf16")
    with pytest.raises(OutOfDeviceMemoryError) as caught, explained_out_of_memory(config):
        raise torch.OutOfMemoryError("full")
    assert "train.batch_size" not in str(caught.value)
    assert "train.precision" not in str(caught.value)
