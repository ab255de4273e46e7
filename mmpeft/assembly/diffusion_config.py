"""The configuration that all diffusion tasks share. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from mmpeft.data.diffusion_config import DiffusionData, Paths
from mmpeft.objectives.denoising_settings import DenoisingSettings
from mmpeft.settings import Settings
from mmpeft.training.config import CacheConfig, Monitor, RunConfig, TrainConfig, as_store


class DiffusionTraining(TrainConfig):
    """How the adapters are trained."""

    batch_size: PositiveInt = 4
    """Pictures per process and forward pass; class pictures come on top."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Weight decay."""
    monitor: Monitor | None = None
    """The validation score that selects the best weights, such as ``{metric: loss, mode: min}``; null keeps the last
    ones: the loss says little about pictures."""
    cache: Annotated[CacheConfig, BeforeValidator(as_store)] = CacheConfig(store="off")
    """The cache of a frozen prefix, which a denoiser has not: noise is the first thing that it sees. Its encoders have
    one of their own, under ``cache``."""
    gradient_checkpointing: bool = False
    """Compute blocks again in the backward pass instead of keeping what they made: less memory, a third more time."""


class Sampling(Settings):
    """How pictures are drawn."""

    steps: PositiveInt = 30
    """Steps of the pipeline's scheduler."""
    guidance: Annotated[float, Field(ge=0)] = 7.5
    """Scale of classifier-free guidance; up to 1 there is none."""
    negative: str = ""
    """What the pictures are to be unlike."""
    seed: NonNegativeInt = 0
    """Of the first picture's noise; the next one has the next seed."""


class Loaded(Settings):
    """A finished adapter to draw with."""

    path: str
    """Its directory: ``runs/NAME/adapter``."""
    scale: float | dict[str, float] = Field(default=1.0, examples=[0.8, {"up_blocks.1.*": 1.0}])
    """How much it counts; or numbers by pattern over its places' names and paths, and 0 where none matches."""
    control: str | None = None
    """The control image, for a ControlNet or a T2I-Adapter."""
    edges: bool = False
    """Take the edges of that image (Canny), not the image."""
    guess: bool = False
    """Guess mode of a ControlNet: deep states count more, and what has no text is not controlled."""
    image: Paths = ()
    """The image prompt, or several, for an IP-Adapter."""
    mask: Paths = ()
    """For each image prompt a mask of the picture, white where it counts; without, all count everywhere."""

    @model_validator(mode="after")
    def _consistent(self) -> Loaded:
        if self.mask and len(self.mask) != len(self.image):
            raise ValueError(f"mask: {len(self.mask)} for {len(self.image)} image prompts: none, or one for each")
        if self.control is None and (self.edges or self.guess):
            raise ValueError(f"control: missing; {'edges' if self.edges else 'guess'} is about a control image")
        if self.control is not None and self.image:
            raise ValueError(f"image: {self.image[0]!r} beside control: an adapter takes one of them")
        return self


class PreviewSettings(Sampling):
    """Pictures on the way, always of the same noise."""

    every: PositiveInt
    """Optimizer steps between them; there are some after the last step too."""
    prompts: tuple[str, ...] = ()
    """What to draw; none takes the texts of the first four validation pictures. Control images and image prompts are
    those of the first validation pictures."""


class CacheSettings(Settings):
    """What frozen encoders made, kept by sample id and by text."""

    latents: Literal["memory", "disk"] | None = None
    """Where the autoencoder's means and deviations are kept; random augmentation needs ``data.views``."""
    text: Literal["memory", "disk"] | None = None
    """Where encoded texts are kept; the text encoders must be frozen."""
    path: Path = Path("cache")
    """The folder on disk. What other weights, another picture or another text led to is never found there."""


class DiffusionConfig(RunConfig):
    """One run of a diffusion task."""

    data: DiffusionData
    """Where pictures and texts come from, and how they become training samples."""
    train: DiffusionTraining
    """How the adapters are trained."""
    loss: DenoisingSettings = DenoisingSettings()
    """What is minimised."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the frozen weights; the autoencoder has fp32 all the same, and so have the adapters."""
    cache: CacheSettings = CacheSettings()
    """What frozen encoders made, kept."""
    preview: PreviewSettings | None = None
    """Pictures on the way; null draws none."""
    sampling: Sampling = Sampling()
    """How ``mmpeft predict`` draws."""
    prompt: str | None = None
    """What ``mmpeft predict`` draws; null takes the text of the test picture."""

    @model_validator(mode="after")
    def _cacheable(self) -> DiffusionConfig:
        if self.cache.latents is not None and self.data.random and self.data.views is None:
            raise ValueError(
                f"cache.latents: {self.cache.latents!r} with augmentation that is drawn anew each time keeps what is "
                "never seen again: set data.views to the number of versions of each picture, or leave augmentation off"
            )
        return self
