"""The network of a policy file: image encoder -> liquid cell -> readout, in torch."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from lnn_ros.liquid.cells import NeuralLTC
from lnn_ros.liquid.solvers import Solver
from lnn_ros.policy import Contract, Policy


class PolicyNetwork(nn.Module):
    """Trains what `lnn_ros.core` runs; both give the same numbers to 1e-5.

    The inputs are u = [image features, image age, IMU numbers], each part present when the contract
    asks for it. The cell sees mapping(u), over an interval as the contract's `hold` says; the
    readout sees the state and the newest inputs.

    Args:
        contract: sizes and mappings.
        tau_range: where the cell's time constants start out, in seconds.
    """

    def __init__(self, contract: Contract, tau_range: tuple[float, float] = (0.05, 5.0)) -> None:
        super().__init__()
        self.contract = contract
        self.encoder = _encoder(contract) if contract.encoder else None
        solver = Solver(contract.solver, contract.max_step)
        self.mapping = _layers((contract.inputs, *contract.mapping), nn.SiLU)
        self.cell = NeuralLTC(contract.cell_inputs, contract.units, tau_range, solver)
        sizes = (contract.units + contract.inputs, *contract.readout, len(contract.outputs))
        self.readout = _layers(sizes, nn.ReLU)

    def encode(self, images: Tensor) -> Tensor:
        """Return features (n, features) of normalised images (n, channels, height, width)."""
        if self.encoder is None:
            raise ValueError('this policy takes no image')
        return self.encoder(images)

    def forward(self, inputs: Tensor, dt: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Run a sequence of held inputs.

        Args:
            inputs: (steps + 1, batch, inputs): inputs[k] at the start of interval k, inputs[k + 1]
                at its end, where the readout sees them.
            dt: (steps, batch) seconds, >= 0; 0 means that only the inputs changed.
            h: (batch, units), the state at the start.

        Returns:
            raw outputs (steps, batch, outputs), -1 ... 1 over each output's range, and the last
            state.

        Raises:
            ValueError: when a dt is negative or anything is not finite.
        """
        if not bool((torch.isfinite(dt) & (dt >= 0.0)).all()):
            raise ValueError('every dt must be finite and not negative')
        if not bool(torch.isfinite(inputs).all()):
            raise ValueError('the inputs have values that are not finite')
        driven, hold = self.cell.driven_by(self.mapping(inputs)).unbind(), self.contract.hold
        states = []
        for k in range(dt.shape[0]):
            start, end = driven[k], driven[k + 1]
            # what the input drives is affine in it, and so a ramp as the input is
            path = partial(torch.lerp, start, end) if hold == 'linear' else None
            held = end if hold == 'current' else start
            h = self.cell.solver.advance(self.cell, path or held, h, dt[k, :, None])
            states.append(h)
        return self.readout(torch.cat((torch.stack(states), inputs[1:]), dim=-1)), h

    def to_policy(self, contract: Contract | None = None) -> Policy:
        """Return the parameters with their contract (or another one of the same sizes)."""
        tensors = {
            name: np.ascontiguousarray(value.detach().cpu().numpy(), dtype=np.float32)
            for name, value in self.state_dict().items()
        }
        return Policy(contract or self.contract, tensors)

    @classmethod
    def from_policy(cls, policy: Policy) -> PolicyNetwork:
        """Return the network that a policy file holds."""
        network = cls(policy.contract)
        tensors = {name: torch.from_numpy(np.array(t)) for name, t in policy.tensors.items()}
        network.load_state_dict(tensors)
        return network


def _layers(sizes: tuple[int, ...], between: type[nn.Module]) -> nn.Sequential:
    """Return linear layers of these sizes with an activation between them."""
    layers: list[nn.Module] = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(before, after), between()]
    return nn.Sequential(*layers[:-1])


def _encoder(contract: Contract) -> nn.Sequential:
    assert contract.encoder is not None
    shapes = contract.encoder_shapes
    layers: list[nn.Module] = []
    for (before, _, _), layer in zip(shapes[:-1], contract.encoder.layers, strict=True):
        layers += [
            nn.Conv2d(before, layer.channels, layer.kernel, layer.stride, layer.padding),
            nn.ReLU(),
        ]
    features = nn.Linear(math.prod(shapes[-1]), contract.encoder.features)
    return nn.Sequential(*layers, nn.Flatten(), features, nn.Tanh())
