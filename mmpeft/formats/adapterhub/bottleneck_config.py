"""AdapterHub's ``adapter_config.json`` of a bottleneck adapter, and the methods that it means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from mmpeft.formats.storage import read_json, validated
from mmpeft.formats.tensor_file import described, refuse
from mmpeft.methods import Houlsby, Method, ParallelAdapter, Pfeiffer
from mmpeft.settings import Settings

CONFIG = "adapter_config.json"
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "silu", "silu": "silu", "tanh": "tanh"}
NEUTRAL = {
    *("init_weights", "init_weights_seed", "inv_adapter_reduction_factor", "leave_out", "phm_dim", "phm_c_init"),
    *("phm_init_range", "phm_rank", "phm_bias", "factorized_phm_W", "factorized_phm_rule", "shared_W_phm"),
    *("shared_phm_rule", "learn_phm", "hypercomplex_nonlinearity", "architecture"),
}
"""Keys of how weights begin, and of layers that a plain adapter doesn't have; layers left out show in the tensors."""
Positive = Annotated[float, Field(gt=0)]


class BottleneckConfig(Settings):
    """The options of a bottleneck; a value that mmpeft has no counterpart of is an error that names its key."""

    mh_adapter: bool
    """Behind attention."""
    output_adapter: bool
    """Behind the MLP."""
    reduction_factor: Positive | dict[str, Positive]
    """Width of the model over that of the bottleneck; the tensors have it."""
    non_linearity: Literal["relu", "gelu", "swish", "silu", "tanh"]
    original_ln_before: bool = False
    """Whether the adapter reads LN(y + x), by the block's own norm."""
    original_ln_after: Literal[True] = True
    """Whether the block's own norm stands behind the adapter."""
    ln_before: bool = False
    """A norm of the adapter's own on its input."""
    ln_after: Literal[False] = False
    is_parallel: bool = False
    scaling: float | Literal["learned", "channel"] = 1.0
    residual_before_ln: bool | str = True
    adapter_residual_before_ln: bool = False
    use_gating: Literal[False] = False
    cross_adapter: Literal[False] = False
    inv_adapter: Literal[None] = None
    phm_layer: Literal[False] = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Behind the scaled up-projection, in training."""
    stochastic_depth: float = Field(default=0.0, ge=0, lt=1)

    @property
    def targets(self) -> tuple[Literal["attn", "mlp"], ...]:
        """The sublayers with an adapter."""
        chosen: list[Literal["attn", "mlp"]] = ["attn"] if self.mh_adapter else []
        return (*chosen, "mlp") if self.output_adapter else tuple(chosen)

    def method(self, bottleneck: int, layers: tuple[int, ...]) -> Method:
        """Return the method of the layers with this bottleneck."""
        options: dict[str, Any] = {
            "bottleneck": bottleneck,
            "layers": layers,
            "targets": self.targets,
            "activation": ACTIVATIONS[self.non_linearity],
            "norm": self.ln_before,
            "scale": "channels" if self.scaling == "channel" else self.scaling,
            "drop_path": self.stochastic_depth,
        }
        if self.is_parallel:
            return ParallelAdapter(**options)
        family = Houlsby if self.mh_adapter else Pfeiffer
        return family(original_ln_before=self.original_ln_before, **options)


class Around(Settings):
    """What stands around the options: the model that the adapter was trained in."""

    model_config = ConfigDict(extra="ignore")

    config: dict[str, Any]
    name: str = "main"
    model_type: str | None = None
    hidden_size: int | None = None


def read_bottleneck_config(directory: Path) -> BottleneckConfig:
    """Return the options in a directory; another architecture, or what can't be computed here, is a ValueError."""
    path = directory / CONFIG
    around = validated(path, read_json(path), Around)
    architecture = around.config.get("architecture")
    if architecture is not None:
        refuse(path, [f"architecture {described(architecture)}: only bottleneck adapters are read"])
    kept = {key: value for key, value in around.config.items() if key not in NEUTRAL}
    config = validated(path, kept, BottleneckConfig)
    if config.original_ln_before and not config.is_parallel and config.residual_before_ln is not True:
        refuse(path, ["residual_before_ln: with original_ln_before only true is read, the residual y before the norm"])
    if not config.targets:
        refuse(path, ["mh_adapter, output_adapter: neither is true"])
    return config
