"""What the field's benchmarks consist of: data sets, class counts, file names, templates. Facts only, no torch."""

from __future__ import annotations

from collections.abc import Mapping

from mmpeft.data.protocols.few_shot import FEW_SHOT
from mmpeft.data.protocols.fgvc import FGVC
from mmpeft.data.protocols.vtab import VTAB

DATASETS: dict[str, Mapping[str, object]] = {"vtab": VTAB, "fgvc": FGVC, "few_shot": FEW_SHOT}
"""The data sets of each protocol, by the protocol's ``data.name``."""
