"""The network of a policy file: image encoder -> liquid cell -> readout, in torch."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from lnn_ros.liquid.cells import Cell, LiquidCell, NeuralLTC, SynapticLTC
from lnn_ros.liquid.sequence import integrate
from lnn_ros.liquid.solvers import Solver
from lnn_ros.liquid.wiring import FullyConnected, Wiring
from lnn_ros.policy import Contract, Policy
from lnn_ros.schema import PolicyError

SYNAPSES = ('synapses', 'sensory')


class PolicyNetwork(nn.Module):
    """Trains what `lnn_ros.core` runs; both give the same numbers to 1e-5.

    The inputs are u = [image features, image age, IMU numbers], each part present when the contract
    asks for it. The cell sees mapping(u), over an interval as the contract's `hold` says; the
    readout sees what the cell gives to read (the state, or motor neurons) and the newest inputs.

    Args:
        contract: sizes and mappings.
        tau_range: where the time constants of an LTC start out, in seconds.
        wiring: of the synaptic form; by default everything is connected.
    """

    def __init__(
        self,
        contract: Contract,
        tau_range: tuple[float, float] = (0.05, 5.0),
        wiring: Wiring | None = None,
    ) -> None:
        super().__init__()
        self.contract = contract
        self.encoder = _encoder(contract) if contract.encoder else None
        self.mapping = _layers((contract.inputs, *contract.mapping), nn.SiLU)
        self.cell = _cell(contract, tau_range, wiring)
        sizes = (contract.motor_neurons + contract.inputs, *contract.readout, len(contract.outputs))
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
        x, cell = self.mapping(inputs).transpose(0, 1), self.cell
        states = integrate(cell, cell.solver, x[:, 1:], x[:, 0], dt.T, h, self.contract.hold)
        raw = self.readout(torch.cat((cell.read(states.transpose(0, 1)), inputs[1:]), dim=-1))
        return raw, states[:, -1]

    def to_policy(self, contract: Contract | None = None) -> Policy:
        """Return the parameters with their contract (or another one of the same sizes)."""
        values = {
            name: parameter.detach().cpu().numpy() for name, parameter in self.named_parameters()
        }
        if isinstance(self.cell, SynapticLTC):
            for kind in SYNAPSES:
                values[f'cell.{kind}.adjacency'] = getattr(self.cell, kind).adjacency()
        tensors = {n: np.ascontiguousarray(v, dtype=np.float32) for n, v in values.items()}
        return Policy(contract or self.contract, tensors)

    @classmethod
    def from_policy(cls, policy: Policy) -> PolicyNetwork:
        """Return the network that a policy file holds."""
        contract, tensors, wiring = policy.contract, dict(policy.tensors), None
        if contract.cell == 'ltc_synaptic':
            try:
                synapses, sensory = (tensors.pop(f'cell.{kind}.adjacency') for kind in SYNAPSES)
            except KeyError as error:
                raise PolicyError(f'tensor {error} is missing') from None
            wiring = Wiring(synapses, sensory, contract.motor_neurons)
        network = cls(contract, wiring=wiring)
        state = dict(network.named_buffers())  # the wiring, once more
        state |= {name: torch.from_numpy(np.array(t)) for name, t in tensors.items()}
        network.load_state_dict(state)
        return network


def _cell(contract: Contract, tau_range: tuple[float, float], wiring: Wiring | None) -> Cell:
    seen, units = contract.cell_inputs, contract.units
    solver = Solver(contract.solver, contract.max_step, contract.unfolds, max_steps=1_000_000)
    if contract.cell == 'ltc_neural':
        return NeuralLTC(seen, units, tau_range, solver)
    if contract.cell == 'liquid':
        return LiquidCell(seen, units, solver)
    wiring = wiring or FullyConnected(seen, units, contract.motor_neurons)
    return SynapticLTC(wiring, tau_range, solver)


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
