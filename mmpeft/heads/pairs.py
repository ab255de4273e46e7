"""Both towers of a two-tower model in one forward pass, as training on pairs of pictures and words needs them."""

from __future__ import annotations

from torch import Tensor, nn

from mmpeft.anatomies.headed import Headed
from mmpeft.anatomies.reading import anatomy


class PairEncoder(Headed):
    """Images (batch, 3, height, width) and token ids (texts, length) to what a contrastive loss is made of.

    That is their features (batch, width) and (texts, width) in one space, not normalised, the factor on the cosine, and
    the bias that is added, or None. One module with one forward pass is what replicas and shards of a model hang on.

    Raises:
        ValueError: If the model has no such towers.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        joint = anatomy(backbone).joint
        if joint is None:
            raise ValueError(f"model: {type(backbone).__name__} has no towers of images and text in one space")
        self.backbone, self.joint, self.head = backbone, joint, nn.Identity()

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return features of the images and of the texts, scale and bias."""
        return self.joint.image(images), self.joint.text(ids), self.joint.scale(), self.joint.bias()
