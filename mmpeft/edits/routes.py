"""Which samples of a batch each adapter serves, within ``adapters.route([...])``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpeft.kernels.routing import BatchLayout
from mmpeft.kernels.scoped import Scoped


@dataclass(frozen=True, eq=False)
class Route:
    """The samples of a batch that an adapter serves: indices into ``batch`` samples."""

    samples: tuple[int, ...]
    batch: int
    device: torch.device

    def rows(self, length: int) -> Tensor:
        """Indices into a leading dimension of ``length``, where each sample may have become several rows (windows)."""
        each, rest = divmod(length, self.batch)
        if rest:
            raise ValueError(f"route: {self.batch} names for a batch of {length}")
        samples = torch.tensor(self.samples, device=self.device)
        if each == 1:
            return samples
        return (samples[:, None] * each + torch.arange(each, device=self.device)).flatten()


class Served:
    """The samples that each adapter serves within one ``adapters.route``."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self.routes = routes
        self.each = 1
        """How many rows of the model's input each sample has become (the beams of ``generate``)."""
        self._layouts: dict[tuple[str, ...], BatchLayout] = {}

    def layout(self, names: tuple[str, ...]) -> BatchLayout:
        """Return how the samples of these adapters lie in the batch."""
        if names not in self._layouts:
            routes = [self.routes[name] for name in names]
            self._layouts[names] = BatchLayout([route.samples for route in routes], routes[0].batch, routes[0].device)
        return self._layouts[names]


class RoutingTable(Scoped[Served]):
    """Adapter to samples, for the ``adapters.route`` of this thread or task.

    Prepared calls hold on to the table and read it in each pass, so that routing the next batch rebuilds none of them.
    """

    def __init__(self) -> None:
        super().__init__(Served({}))


@dataclass(frozen=True)
class Share:
    """Which rows of the routed batch belong to one adapter, looked up in the table when a pass asks."""

    table: RoutingTable
    name: str

    def rows(self, length: int) -> Tensor:
        """Indices of the adapter's samples into a leading dimension of ``length``."""
        return self.table.value.routes[self.name].rows(length)
