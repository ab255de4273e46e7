"""Low-rank deltas of convolutions (LoCon, and DoRA of output channels)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.edits.base import Call
from mmpeft.edits.low_rank import DecomposedLowRank, LowRank
from mmpeft.kernels.dropout import dropped
from mmpeft.kernels.private_names import convolved


class ConvLowRank(LowRank):
    """``y + s B * (A * drop(x))``: A (rank, in, height, width) convolves as the host does, B is (out, rank, 1, 1).

    That is ``dW[o, i, k, l] = s sum_r B[o, r] A[r, i, k, l]``. A starts as torch's own convolutions do, B at zero.
    """

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Add the delta."""
        return y + self._delta(x, call.binding.host)

    def _delta(self, x: Tensor, host: nn.Module) -> Tensor:
        """Return the delta, made with the host's stride, padding and dilation."""
        assert isinstance(host, nn.Conv2d)
        x = dropped(x, self.dropout, self.training)
        a, b = (factor.to(x.dtype) for factor in self.factors())
        return F.conv2d(convolved(host, x, a) * self.scale, b)


class ConvDecomposedLowRank(ConvLowRank, DecomposedLowRank):
    """``m / n (W * x + s B * A * x) + b`` with n = the norms of the output channels of W + s B A, one m for each."""

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Rescale base output and delta by m / n, all but the bias."""
        host = call.binding.host
        ratio, bias = self._ratio(host).to(y.dtype)[:, None, None], self._bias(host)
        plain = y if bias is None else y - bias.to(y.dtype)[:, None, None]
        return y + (ratio - 1) * plain + ratio * self._delta(x, host)
