"""How long the steps of an optimiser are to be, which some parameters need longer than others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

PACE = {'sigma': 10.0, 'mu': 3.0, 'raw_w': 3.0, 'erev': 3.0}
"""How much longer the steps of a synapse's numbers are to be than those of other parameters, for an
optimiser that moves all alike, as Adam does: sigma spans 3 to 8 and more, weights of layers tenths.
docs/rates.md has what that is worth."""


def paced(parameters: Iterable[tuple[str, Tensor]]) -> list[dict[str, Any]]:
    """Return groups for an optimiser, whose learning rates are to be multiplied by their `pace`.

    Args:
        parameters: as a module's `named_parameters()` gives them.
    """
    groups: dict[float, list[Tensor]] = {}
    for name, parameter in parameters:
        groups.setdefault(PACE.get(name.rpartition('.')[2], 1.0), []).append(parameter)
    return [{'params': own, 'pace': pace} for pace, own in groups.items()]
