"""The run-time engine: one policy, its cached state, and its held inputs; neither torch nor ROS."""

from __future__ import annotations

import functools
import importlib
import logging
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lnn_ros.core.view import NumpyResampler, Resampler, View
from lnn_ros.policy import Policy


class Engine(Protocol):
    """Runs one policy. Inputs are held from one call to the next, and so is the state.

    A message takes three calls: hold what it brought, `advance` over the interval that it ends (or
    `jump` when it ends none), and read the `command`.

    The state and the outputs are equal to the torch network's (`liquid.policy_network`) to 1e-5.
    An engine belongs to one thread at a time.
    """

    state: NDArray[np.float32]
    """(units,) the cached hidden state; a view that `advance` and `reset` change."""

    def reset(self) -> None:
        """Set the state to zero.

        Held inputs stay, but none come before them: over the interval that follows, they act as
        they are.
        """

    def hold_image(self, pixels: NDArray[np.float32]) -> None:
        """Encode and hold a frame (channels, height, width), normalised as in the contract.

        Raises:
            ValueError: for another shape or dtype, or values that are not finite; what was held
                before stays. So do the next two methods.
        """

    def hold_image_age(self, age: float) -> None:
        """Hold the age, in seconds, of the frame that is held."""

    def hold_imu(self, values: NDArray[np.float32]) -> None:
        """Hold the scaled numbers of an IMU sample (fields,)."""

    def advance(self, dt: float) -> None:
        """Integrate the state over the `dt` seconds that end with the inputs held now.

        What the inputs are before their end is said by the policy's `hold`.

        Raises:
            ValueError: when `dt` is not finite, not greater than 0, or has too many sub-steps.
        """

    def jump(self) -> None:
        """Take on the inputs held now without time passing: the next interval begins with them."""

    def command(self) -> NDArray[np.float32]:
        """Read the command (outputs,) in the outputs' units; the next call overwrites it.

        It is NaN when the state is not finite.
        """


def open_engine(policy: Policy) -> Engine:
    """Return the fastest engine that can run `policy` here.

    Raises:
        PolicyError: when the tensors do not fit the contract.
    """
    module = compiled_module()
    if module is not None:
        from lnn_ros.core.compiled import CEngine

        return CEngine(policy, module)
    from lnn_ros.core.numpy_engine import NumpyEngine

    return NumpyEngine(policy)


def open_resampler(view: View) -> Resampler:
    """Return the fastest resampler for `view` here."""
    module = compiled_module()
    if module is not None:
        from lnn_ros.core.compiled import CResampler

        return CResampler(view, module)
    return NumpyResampler(view)


@functools.cache
def compiled_module(name: str = '_core') -> Any:
    """Return the compiled core, or None; says so once when it is not there.

    Args:
        name: `_core`, or `_core_double` for the one in float64, which only training asks for.
    """
    try:
        return importlib.import_module(f'lnn_ros.core.{name}')
    except ImportError as error:
        logging.getLogger(__name__).warning(
            'the compiled core is not there (%s): numpy does its work, many times slower. %s',
            error,
            _remedy(),
        )
        return None


def _remedy() -> str:
    checkout = Path(__file__).parents[2]
    if (checkout / 'setup.py').exists():
        return f'It is not built in {checkout}: start Python in another folder.'
    return 'Install a compiler (apt-get install gcc python3-dev) and lnn_ros again.'
