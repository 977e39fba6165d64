"""Liquid cells: pure functions (input, state, interval) -> state.

A cell is a field dh/dt = rate * (equilibrium - h) and nothing else: `driven_by` is the part of it
that depends on the input alone, so that a sequence computes it once for all its steps, and `field`
gives the rate (1 / the liquid time constant) and the equilibrium at a state. Any solver of
`lnn_ros.liquid.solvers` integrates any cell; docs/network.md derives the equations.

Hasani, Lechner, Amini, Rus, Grosu, "Liquid Time-constant Networks", AAAI 2021.
Lechner, Hasani, Amini, Henzinger, Rus, Grosu, "Neural circuit policies enabling auditable
autonomy", Nature Machine Intelligence 2020.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu, softplus

from lnn_ros.liquid.solvers import EXACT, Path, Solver, require
from lnn_ros.liquid.wiring import Signs, Wiring, wiring_from_ncps


class Cell(nn.Module):
    """What all cells share; a subclass gives the functions that make up its field."""

    state_dependent = True
    """Whether rate and equilibrium depend on the state."""

    def __init__(self, inputs: int, units: int, solver: Solver) -> None:
        super().__init__()
        if inputs < 1 or units < 1:
            raise ValueError(f'inputs {inputs} and units {units} must be at least 1')
        self.inputs, self.units, self.solver = inputs, units, solver

    @property
    def outputs(self) -> int:
        """Length of what `read` gives."""
        return self.units

    def driven_by(self, u: Tensor) -> Tensor:
        """Return the input's part of the field: (..., inputs) -> (..., n)."""
        raise NotImplementedError

    def field(self, driven: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1 / liquid time constant in 1/s, equilibrium), both (..., units)."""
        raise NotImplementedError

    def fastest(self, h: Tensor) -> Tensor:
        """Return what an explicit solver must not step over, in 1/s, (batch, 1).

        A bound on the rate and the slope of the gates, states being as large as h (batch, units).
        """
        raise NotImplementedError

    def read(self, h: Tensor) -> Tensor:
        """Return what others see of the state: (..., units) -> (..., outputs)."""
        return h

    def time_constant(self, u: Tensor, h: Tensor) -> Tensor:
        """Return the liquid time constants, in seconds, (..., units)."""
        return 1.0 / self.field(self.driven_by(u), h)[0]

    def ramp(self, start: Tensor, end: Tensor) -> Path:
        """Return the input's part of the field while the input goes from start to end evenly."""
        return lambda fraction: self.driven_by(torch.lerp(start, end, fraction))

    def forward(
        self, u: Tensor, h: Tensor, dt: float | Tensor, start: Tensor | None = None
    ) -> Tensor:
        """Return the state after `dt` seconds under the input `u`.

        Args:
            u: (batch, inputs).
            h: (batch, units).
            dt: seconds, one number or (batch,): each sample may have its own.
            start: (batch, inputs): the input starts there and changes evenly until it is `u`;
                without it, `u` acts all the time.

        Raises:
            ValueError: when a `dt` is not finite or not greater than 0, an input or a state is not
                finite, or a shape does not fit.
            IntegrationError: when the solver cannot keep its promise.
        """
        batch = h.shape[0]
        for name, value, size in (('u', u, self.inputs), ('h', h, self.units)):
            require_shape(name, value, (batch, size))
            require_floating(name, value)
        interval = torch.as_tensor(dt, dtype=h.dtype, device=h.device)
        if interval.dim() != 0 and interval.shape != (batch,):
            raise ValueError(
                f'dt has shape {tuple(interval.shape)}, must be one number or ({batch},)'
            )
        require_interval(interval)
        require_finite(u)
        require(torch.isfinite(h), h, 'the state has values that are not finite ({})')
        interval = interval.reshape(-1, 1).expand(batch, 1)
        if start is None:
            return self.solver.advance(self, self.driven_by(u), h, interval)
        require_shape('start', start, (batch, self.inputs))
        require_finite(start)
        return self.solver.advance(self, self.ramp(start, u), h, interval)


def require_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `value` has this shape."""
    if value.shape != shape:
        raise ValueError(f'{name} has shape {tuple(value.shape)}, must be {shape}')


def require_floating(name: str, value: Tensor) -> None:
    """Raise ValueError for integers: seconds of their type would be whole ones."""
    if not value.is_floating_point():
        raise ValueError(f'{name} is {value.dtype}, must be of a floating type')


def require_interval(dt: Tensor) -> None:
    """Raise ValueError unless every interval is a duration in seconds."""
    require(
        torch.isfinite(dt) & (dt > 0.0),
        dt,
        'dt is {} s, but every interval must be finite and greater than 0 s',
    )


def require_finite(u: Tensor) -> None:
    """Raise ValueError where an input would poison the state."""
    require(torch.isfinite(u), u, 'the input has values that are not finite ({})')


class NeuralLTC(Cell):
    """The neural form (AAAI 2021, eq. 1, with an input current).

        dh/dt = (-h + leak + drive u + f (reversal - h)) / tau
        f     = gain * sigmoid(gate_input u + gate_recurrent h + gate_bias)

    Hence the liquid time constant tau / (1 + f) and the equilibrium
    (leak + drive u + f reversal) / (1 + f). `tau` and `gain` are positive by construction.

    Args:
        inputs: size of u.
        units: size of h.
        tau_range: (shortest, longest) resting time constant in seconds; the units start out spread
            over it log-uniformly.
        solver: how an interval is integrated.
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        tau_range: tuple[float, float] = (0.05, 5.0),
        solver: Solver = EXACT,
    ) -> None:
        super().__init__(inputs, units, solver)
        spread = 1.0 / math.sqrt(inputs + units)
        self.gate_input = nn.Parameter(torch.randn(units, inputs) * spread)
        self.gate_recurrent = nn.Parameter(torch.randn(units, units) * spread)
        self.gate_bias = nn.Parameter(torch.zeros(units))
        self.log_gain = nn.Parameter(torch.zeros(units))
        self.drive = nn.Parameter(torch.randn(units, inputs) / math.sqrt(inputs))
        sign = torch.where(torch.arange(units) % 2 == 0, 1.0, -1.0)
        self.reversal = nn.Parameter(3.0 * sign)
        self.leak = nn.Parameter(-0.8 * 3.0 * sign)
        self.log_tau = nn.Parameter(_log_uniform(units, tau_range))

    def driven_by(self, u: Tensor) -> Tensor:
        weight = torch.cat((self.gate_input, self.drive))
        return linear(u, weight, torch.cat((self.gate_bias, self.leak)))

    def ramp(self, start: Tensor, end: Tensor) -> Path:
        # what the input drives is affine in it: two products instead of one per stage
        first, last = self.driven_by(start), self.driven_by(end)
        return lambda fraction: torch.lerp(first, last, fraction)

    def field(self, driven: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        into_gate, current = driven.chunk(2, dim=-1)
        gate = torch.sigmoid(into_gate + linear(h, self.gate_recurrent))
        f = self.log_gain.exp() * gate
        opening = 1.0 + f
        return opening * torch.exp(-self.log_tau), (current + f * self.reversal) / opening

    def fastest(self, h: Tensor) -> Tensor:
        gain = self.log_gain.exp()
        away = self.reversal.abs() + h.abs().amax(dim=-1, keepdim=True)
        slope = 0.25 * gain * self.gate_recurrent.abs().sum(dim=1) * away  # of a sigmoid: 1 / 4
        return ((1.0 + gain + slope) * torch.exp(-self.log_tau)).amax(dim=-1, keepdim=True)


def _log_uniform(count: int, tau_range: tuple[float, float]) -> Tensor:
    """Draw logarithms of time constants."""
    shortest, longest = tau_range
    if not 0.0 < shortest <= longest:
        raise ValueError(f'tau_range {tau_range} s must be positive and ascending')
    exponents = torch.rand(count) * (math.log(longest) - math.log(shortest))
    return exponents + math.log(shortest)


class Synapses(nn.Module):
    """The synapses of one kind of source, each with four parameters of its own.

    Buffers `source`, `target` and `polarity` (synapses,) are the wiring; they are saved with the
    parameters `raw_w` (conductance w through softplus), `sigma`, `mu` and `erev`, (synapses,) each.

    Args:
        adjacency: (sources, targets) of -1, 0, 1.
    """

    source: Tensor
    target: Tensor
    polarity: Tensor

    def __init__(self, adjacency: Signs) -> None:
        super().__init__()
        self.sources, self.targets = adjacency.shape
        source, target = adjacency.nonzero()
        self.register_buffer('source', torch.as_tensor(source))
        self.register_buffer('target', torch.as_tensor(target))
        self.register_buffer('polarity', torch.as_tensor(adjacency[source, target]))
        count = len(source)
        self.raw_w = nn.Parameter(torch.empty(count))
        self.sigma = nn.Parameter(torch.empty(count).uniform_(3.0, 8.0))
        self.mu = nn.Parameter(torch.empty(count).uniform_(0.3, 0.8))
        self.erev = nn.Parameter(self.polarity.to(self.raw_w.dtype))
        assign(self, w=torch.empty(count).uniform_(0.001, 1.0))

    def forward(self, x: Tensor, conductance: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        """Add these synapses, whose sources are at x (..., sources), to what is there already.

        Conductance and current are (..., targets).
        """
        before = x.index_select(-1, self.source)
        g = softplus(self.raw_w) * torch.sigmoid(self.sigma * (before - self.mu))
        return (
            conductance.index_add(-1, self.target, g),
            current.index_add(-1, self.target, g * self.erev),
        )

    def largest(self) -> Tensor:
        """Return the conductance into each target with all synapses open, (targets,)."""
        w = softplus(self.raw_w)
        return w.new_zeros(self.targets).index_add(0, self.target, w)

    def steepest(self, size: Tensor) -> Tensor:
        """Bound the slope of the current by voltages of at most size (..., 1): (..., targets)."""
        slope = 0.25 * softplus(self.raw_w) * self.sigma.abs() * (self.erev.abs() + size)
        zeros = slope.new_zeros(*slope.shape[:-1], self.targets)
        return zeros.index_add(-1, self.target, slope)

    def adjacency(self) -> Signs:
        """Return the (sources, targets) matrix of -1, 0, 1 that it was made from."""
        signs = torch.zeros(self.sources, self.targets, dtype=torch.int8)
        signs[self.source, self.target] = self.polarity.to('cpu', torch.int8)
        return signs.numpy()


def positive(raw: Tensor) -> Tensor:
    """Return what `raw_gl` and `raw_cm` stand for."""
    # both stand below a fraction line, and softplus underflows to 0; ncps adds as much there
    return softplus(raw).clamp(min=1e-8)


class SynapticLTC(Cell):
    """The synaptic form on a wiring: conductances that open with the voltage before them.

        cm dv/dt = gl (vl - v) + sum over synapses into v of  w s (erev - v)
        s        = sigmoid(sigma (x - mu)),  x the voltage or the mapped input before the synapse

    Hence the rate g / cm and the equilibrium (gl vl + sum w s erev) / g, where g = gl + sum w s is
    the whole conductance. Input k is seen as input_w u + input_b, and the first `outputs` neurons
    are read as output_w v + output_b. w, gl and cm are stored as `raw_w`, `raw_gl`, `raw_cm`, and
    positive by softplus whatever an optimiser does.

    Args:
        wiring: ours or, built, one of ncps; there are parameters for its synapses and no others.
        tau_range: (shortest, longest) time constant in seconds of a neuron whose synapses are all
            half open; the neurons start out spread over it log-uniformly, by their cm. The other
            initial ranges are those of ncps and suit inputs in about 0 ... 1.
        solver: how an interval is integrated.
    """

    def __init__(
        self,
        wiring: Wiring | Any,
        tau_range: tuple[float, float] = (0.05, 5.0),
        solver: Solver = EXACT,
    ) -> None:
        wiring = wiring if isinstance(wiring, Wiring) else wiring_from_ncps(wiring)
        super().__init__(wiring.inputs, wiring.units, solver)
        self.synapses = Synapses(wiring.synapses)
        self.sensory = Synapses(wiring.sensory)
        units = wiring.units
        self.raw_gl = nn.Parameter(torch.empty(units))
        self.vl = nn.Parameter(torch.empty(units).uniform_(-0.2, 0.2))
        self.raw_cm = nn.Parameter(torch.empty(units))
        self.input_w = nn.Parameter(torch.ones(wiring.inputs))
        self.input_b = nn.Parameter(torch.zeros(wiring.inputs))
        self.output_w = nn.Parameter(torch.ones(wiring.outputs))
        self.output_b = nn.Parameter(torch.zeros(wiring.outputs))
        gl = torch.empty(units).uniform_(0.001, 1.0)
        half_open = gl + 0.5 * (self.synapses.largest() + self.sensory.largest()).detach()
        assign(self, gl=gl, cm=_log_uniform(units, tau_range).exp() * half_open)

    @property
    def outputs(self) -> int:
        return self.output_w.numel()

    @property
    def wiring(self) -> Wiring:
        """The wiring with the polarities that it was made with; training moves `erev` from them."""
        return Wiring(self.synapses.adjacency(), self.sensory.adjacency(), self.outputs)

    def driven_by(self, u: Tensor) -> Tensor:
        shape, gl = (*u.shape[:-1], self.units), positive(self.raw_gl)
        leak = gl.expand(shape), (gl * self.vl).expand(shape)
        return torch.cat(self.sensory(self.input_w * u + self.input_b, *leak), dim=-1)

    def field(self, driven: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        g, current = self.synapses(h, *driven.chunk(2, dim=-1))
        return g / positive(self.raw_cm), current / g

    def fastest(self, h: Tensor) -> Tensor:
        g = positive(self.raw_gl) + self.synapses.largest() + self.sensory.largest()
        slope = self.synapses.steepest(h.abs().amax(dim=-1, keepdim=True))
        return ((g + slope) / positive(self.raw_cm)).amax(dim=-1, keepdim=True)

    def read(self, h: Tensor) -> Tensor:
        return h[..., : self.outputs] * self.output_w + self.output_b

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return (low, high), both (units,): a state once within them never leaves.

        The extremes of a neuron's own vl and of the erev of its synapses (AAAI 2021, theorem 2):
        the equilibrium is a weighted mean of them. `exact`, `fused` and `euler` keep to it.
        """
        low = high = self.vl.detach()
        for synapses in (self.synapses, self.sensory):
            erev = synapses.erev.detach()
            low = low.scatter_reduce(0, synapses.target, erev, 'amin')
            high = high.scatter_reduce(0, synapses.target, erev, 'amax')
        return low, high


@torch.no_grad()
def assign(module: nn.Module, **values: Tensor) -> None:
    """Set parameters to physical values, those stored as `raw_...` through the inverse of softplus.

    Args:
        module: a SynapticLTC or its `synapses` or `sensory`.
        values: by the names of the equation, each in the shape of its parameter.

    Raises:
        ValueError: when a value that must be positive is not.
    """
    for name, value in values.items():
        raw = getattr(module, f'raw_{name}', None)
        if raw is None:
            getattr(module, name).copy_(value)
            continue
        require(value > 0.0, value, f'{name} is {{}}, must be greater than 0')
        raw.copy_(value + torch.log(-torch.expm1(-value)))


class LiquidCell(Cell):
    """The cell of Edifice.Liquid (its layer is `lnn_ros.liquid.network.LiquidLayer`).

        dh/dt = (f - h) / tau
        tau   = softplus(W_tau u + b_tau) + 0.1 s
        f     = W_out silu(W_hidden u + b_hidden) + b_out,  2 units wide inside

    Neither f nor tau depends on h: the solver `exact` gives the true solution for any interval,
    but the cell can neither oscillate nor be bistable, and nothing is faster than 0.1 s.

    Args:
        inputs: size of u.
        units: size of h.
        solver: how an interval is integrated.
    """

    state_dependent = False

    def __init__(self, inputs: int, units: int, solver: Solver = EXACT) -> None:
        super().__init__(inputs, units, solver)
        self.tau = nn.Linear(inputs, units)
        self.hidden = nn.Linear(inputs, 2 * units)
        self.out = nn.Linear(2 * units, units)

    def driven_by(self, u: Tensor) -> Tensor:
        rate = 1.0 / (softplus(self.tau(u)) + 0.1)
        return torch.cat((rate, self.out(silu(self.hidden(u)))), dim=-1)

    def field(self, driven: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        rate, f = driven.chunk(2, dim=-1)
        return rate, f

    def fastest(self, h: Tensor) -> Tensor:
        return self.tau.bias.new_tensor(10.0)
