"""A policy's tensors, taken out one by one and checked against the contract's sizes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lnn_ros.policy import Policy, PolicyError

F32 = NDArray[np.float32]


class Tensors:
    """Hands out a policy's tensors by name, checking shapes, each once."""

    def __init__(self, policy: Policy) -> None:
        self._left = dict(policy.tensors)

    def take(self, name: str, *shape: int) -> F32:
        """Return tensor `name`.

        Raises:
            PolicyError: when it is missing or has another shape.
        """
        tensor = self._left.pop(name, None)
        if tensor is None:
            raise PolicyError(f"tensor '{name}' is missing")
        if tensor.shape != shape:
            raise PolicyError(f"tensor '{name}' has shape {tensor.shape}, must be {shape}")
        return tensor

    def take_exp(self, name: str, *shape: int, sign: int = 1) -> F32:
        """Return exp(sign * tensor) for a number that is stored as its logarithm.

        Raises:
            PolicyError: as `take`, and when the result is not finite.
        """
        with np.errstate(over='ignore'):
            value = np.exp(sign * self.take(name, *shape))
        if not np.isfinite(value).all():
            raise PolicyError(f"tensor '{name}' holds a logarithm whose exponential is infinite")
        return value

    def refuse_leftovers(self) -> None:
        """Raise PolicyError if a tensor was never taken."""
        if self._left:
            raise PolicyError(f'unknown tensors: {", ".join(sorted(self._left))}')
