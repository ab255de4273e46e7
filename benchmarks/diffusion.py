"""mmpeft beside the training loops of diffusers' examples: the same weights, loss and gradients; time and memory.

python benchmarks/diffusion.py            about 6 minutes on idle cores; --write adds the table to benchmarks/RESULTS.md
python benchmarks/diffusion.py --quick    the embedded model alone and few rounds, a minute
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers_loops import METHODS, Drawn, Loop
from measure import Arm, Row, counted, interleave, peak, publish, timed
from torch import Tensor, nn

import mmpeft
from mmpeft.assembly.diffusion_config import DiffusionTraining
from mmpeft.data.tensor_store import TensorStore
from mmpeft.handle.report import saved_bytes
from mmpeft.heads.denoising import Denoiser
from mmpeft.objectives.denoising import Denoising
from mmpeft.objectives.denoising_settings import DenoisingSettings
from mmpeft.objectives.noise_schedule import noise_schedule
from mmpeft.training.accelerator import make_accelerator
from mmpeft.training.optimizer import make_optimizer
from mmpeft.training.step import Stepper

PRECISIONS = {"fp32": (torch.float32, 1e-4), "bf16": (torch.bfloat16, 0.2)}
"""Of the frozen weights, and how far gradients may be apart, relative to their norm."""


@dataclass(frozen=True)
class Subject:
    """A pipeline, the batch it is trained on, and how often a step is timed."""

    name: str
    places: int
    batch: int
    rounds: int
    widths: tuple[int, ...] | None = None

    def pipeline(self, dtype: torch.dtype) -> Any:
        """Return the embedded pipeline, with a random UNet of these widths if there are any."""
        pipeline: Any = mmpeft.load_model("tiny/sd")
        if self.widths is not None:
            torch.manual_seed(0)
            size = {"block_out_channels": self.widths, "cross_attention_dim": 64, "norm_num_groups": 16}
            unet = UNet2DConditionModel(sample_size=self.places, **size)
            pipeline = StableDiffusionPipeline(**pipeline.components | {"unet": unet}, requires_safety_checker=False)
        return pipeline.to(dtype)

    def data(self) -> dict[str, Any]:
        """Return a batch as a trainer loads it."""
        made = torch.Generator().manual_seed(0)
        shape = (self.batch, 3, 2 * self.places, 2 * self.places)
        images, control = torch.rand(shape, generator=made), torch.rand(shape, generator=made)
        names = [f"picture {number}" for number in range(self.batch)]
        return {
            "id": names, "prompt": names, "image": 2 * images - 1, "control": control,
            "draw": torch.arange(self.batch), "sizes": torch.zeros(self.batch, 6),
        }  # fmt: skip


class Ours(nn.Module):
    """The step of mmpeft's trainer, with latents and texts kept."""

    def __init__(
        self, pipeline: Any, method: mmpeft.Method, accelerator: Accelerator, config: DiffusionTraining
    ) -> None:
        super().__init__()
        self.accelerator, self.model = accelerator, Denoiser(pipeline).requires_grad_(False)
        self.adapters = mmpeft.adapt(pipeline, method)
        settings = DenoisingSettings()
        stores = {"latents": TensorStore(), "text": TensorStore()}
        self.objective = Denoising(noise_schedule(pipeline.scheduler, settings), settings, **stores)
        optimizer = make_optimizer(dict(self.adapters.named_parameters()), config)
        self.stepper = Stepper(self.model, self.adapters, self.objective, optimizer, accelerator, config.clip)
        self.model.train()

    def forward(self, **batch: Any) -> Tensor:
        """Return the loss."""
        with self.accelerator.autocast():
            return self.objective.loss(self.model, batch)[0] / len(batch["id"])

    def step(self, batch: dict[str, Any]) -> None:
        """Make an optimizer step."""
        self.stepper.step([(batch, len(batch["id"]))], len(batch["id"]))

    def drawn(self, batch: dict[str, Any], dtype: torch.dtype) -> tuple[Drawn, Tensor]:
        """Return what the objective makes of a batch, and the latents."""
        generators = [torch.Generator().manual_seed(draw) for draw in batch["draw"].tolist()]
        uniform = torch.stack([torch.rand((), generator=generator) for generator in generators])
        own, schedule = self.objective, self.objective.schedule
        clean = own._clean(self.model, batch, generators)
        noise = own._noise(clean, generators)
        steps = schedule.steps(uniform, own.settings)
        hidden: Any = own._text(self.model, batch["prompt"])
        noisy, target = schedule.mix(clean, noise, steps), schedule.target(clean, noise, steps)
        return Drawn(noisy.to(dtype), schedule.times[steps], hidden["hidden"], batch["control"], target), clean


@dataclass
class Comparison:
    """One method on one subject in one precision: both sides with equal weights, and the floor under them."""

    subject: Subject
    method: str
    precision: str

    def __post_init__(self) -> None:
        method, loop, first = METHODS[self.method]
        dtype, self.tolerance = PRECISIONS[self.precision]
        config = DiffusionTraining(max_steps=1, precision=self.precision, clip=1.0)
        accelerator = make_accelerator(config, Path())
        self.ours = Ours(self.subject.pipeline(dtype), method, accelerator, config)
        own = self.subject.pipeline(dtype)
        self.theirs: Loop = loop(own.unet, own.scheduler, accelerator, dtype)
        self.frozen = self.subject.pipeline(dtype).unet.requires_grad_(False)
        joined = next(module for name, module in self.frozen.named_modules() if name.endswith(first))
        joined.register_forward_hook(lambda module, args, y: y.requires_grad_())
        self.batch = self.subject.data()
        self.drawn, self.latents = self.ours.drawn(self.batch, dtype)

    def check(self) -> None:
        """Give both the same weights, and raise if their losses or gradients differ."""
        pairs = [*self.theirs.pairs(self.ours.adapters)]
        made = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for own, other in pairs:
                other.copy_(own.add_(torch.randn(own.shape, generator=made), alpha=0.02))
        assert {id(other) for _, other in pairs} == {id(parameter) for parameter in self.theirs.trained}
        losses = self.ours(**self.batch), self.theirs(self.drawn)
        torch.testing.assert_close(*losses, rtol=self.tolerance / 10, atol=0)
        for loss in losses:
            loss.backward()
        for own, other in pairs:
            assert own.grad is not None and other.grad is not None
            apart = (own.grad - other.grad).norm() / other.grad.norm()
            assert apart < self.tolerance, f"{self.method}: gradients differ by {apart:.2g}"

    def floor(self) -> None:
        """Run the frozen UNet forward, and back to the first place that depends on what is trained."""
        drawn = self.drawn
        self.frozen(drawn.noisy, drawn.times, drawn.hidden).sample.float().square().mean().backward()

    def rows(self) -> list[Row]:
        """Check, and measure."""
        self.check()
        what = f"{self.subject.name}, {self.method}, {self.precision}"
        ready = (self.latents.to(self.drawn.noisy), self.drawn.hidden, self.drawn.control)
        steps = {"ours": partial(self.ours.step, self.batch), "diffusers": partial(self.theirs.step, *ready)}
        arms = {"floor": self.floor, **steps}
        times = interleave(self.subject.rounds, **{name: Arm(lambda _, run=run: run()) for name, run in arms.items()})
        over = {name: times[name].over(times["floor"]) for name in steps}
        peaks = []
        for side, run in zip((self.ours, self.theirs), steps.values(), strict=True):
            side.zero_grad()
            peaks.append(peak(run))
        kept = saved_bytes(self.ours, self.batch), saved_bytes(self.theirs, self.drawn)
        return [
            timed(f"{what}: step", times, "diffusers"),
            Row("the same over its floor", *(f"{one:.2f}" for one in over.values()), over["ours"] / over["diffusers"]),
            counted("bytes kept for backward", *kept),
            counted("most bytes at once in a step", *peaks),
        ]


def main() -> None:
    """Measure everything and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the embedded model alone, and few rounds")
    parser.add_argument("--write", action="store_true", help="add the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tiny = Subject("tiny/sd", places=16, batch=4, rounds=3 if options.quick else 9)
    middle = Subject("53 M UNet", places=32, batch=2, rounds=4, widths=(80, 160, 320, 320))
    rows = [
        row
        for subject in ([tiny] if options.quick else [tiny, middle])
        for precision in PRECISIONS
        for method in METHODS
        for row in Comparison(subject, method, precision).rows()
    ]
    publish("diffusion", rows, ("torch", "diffusers", "peft", "accelerate"), options.write, ("mmpeft", "diffusers"))


if __name__ == "__main__":
    main()
