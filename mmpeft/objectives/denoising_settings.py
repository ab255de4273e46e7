"""What a denoiser learns from which noise: the configuration of the loss. Needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from mmpeft.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]


class Dropping(Settings):
    """Shares of the training samples without a condition, for classifier-free guidance; one draw decides per sample."""

    text: Share = 0.0
    """Without the text (IP-Adapter: 0.05, ControlNet: 0.5)."""
    image: Share = 0.0
    """Without the image prompt (IP-Adapter: 0.05)."""
    both: Share = 0.0
    """Without both (IP-Adapter: 0.05)."""

    @model_validator(mode="after")
    def _consistent(self) -> Dropping:
        if self.text + self.image + self.both > 1:
            raise ValueError(f"text: {self.text:g}, image: {self.image:g} and both: {self.both:g} are more than all")
        return self


class DenoisingSettings(Settings):
    """The loss; what is predicted (noise, velocity, picture or flow) the pipeline's scheduler says."""

    times: Literal["uniform", "logit_normal", "mode", "cubic"] = "uniform"
    """How often each noise level comes: all alike; most often the middle ones (SD3, Flux); ``mode`` of SD3's paper; or
    mostly high ones (T2I-Adapter)."""
    mean: float = 0.0
    """Of ``logit_normal``, before the sigmoid: above 0 means more noise."""
    std: PositiveFloat = 1.0
    """Of ``logit_normal``, before the sigmoid."""
    mode_scale: float = 1.29
    """Of ``mode``: above 0 prefers the middle."""
    min_snr: PositiveFloat | None = None
    """Gamma of min-SNR weighting (5 in the paper); null weighs all noise levels alike."""
    weighting: Literal["none", "sigma_sqrt", "cosmap"] = "none"
    """Weights of noise levels in flow matching."""
    noise_offset: NonNegativeFloat = 0.0
    """Deviation of noise that is the same over a whole channel: learns very dark and very bright pictures (0.05)."""
    zero_terminal_snr: bool = False
    """Rescale the noise so that the last step is noise alone; for models that predict v."""
    prior: NonNegativeFloat = 1.0
    """Weight of the class pictures' loss beside that of the concept's, where there are any."""
    drop: Dropping = Dropping()
    """Training samples without their conditions."""
