from __future__ import annotations

import logging
import math
import sys
from types import ModuleType

import numpy as np
import pytest

from lnn_ros import core
from lnn_ros.core.compiled import CEngine
from lnn_ros.core.numpy_engine import NumpyEngine, sub_steps
from lnn_ros.policy import Policy
from lnn_ros.schema import PolicyError

SHAPES = {
    'car': {},
    'imu_only_linear': {'image': None, 'units': 5, 'imu': 3, 'mapping': (), 'readout': ()},
    'vision_only_mono': {'image': (1, 11, 13), 'layers': ((5, 5, 3, 4), (3, 2, 1, 0)), 'imu': 0},
    'no_convolution': {'image': (3, 4, 5), 'layers': (), 'units': 33, 'hold': 'previous'},
    'dense_128': {'image': None, 'units': 128, 'mapping': (3,), 'readout': (9,), 'hold': 'current'},
    'liquid': {'image': None, 'cell': 'liquid', 'units': 9},
    'liquid_held': {'image': None, 'cell': 'liquid', 'hold': 'previous', 'imu': 2},
    'ncp': {'cell': 'ltc_synaptic', 'units': 19, 'motors': 4, 'readout': ()},
    'ncp_fused': {
        **{'image': None, 'cell': 'ltc_synaptic', 'solver': 'fused', 'unfolds': 6},
        **{'units': 33, 'motors': 7, 'hold': 'current'},
    },
    'no_synapses': {
        **{'image': None, 'cell': 'ltc_synaptic', 'units': 9, 'motors': 2, 'wired': False},
    },
    'narrow_columns': {'image': (3, 20, 6), 'layers': ((17, 3, 2, 1), (9, 3, 1, 0)), 'units': 1},
}


@pytest.fixture(scope='module')
def double() -> ModuleType:
    """The same source, computing in double."""
    return pytest.importorskip('lnn_ros.core._core_double', reason='it is not installed')


def variants(module: ModuleType) -> range:
    return range(len(module.variants()))


def drive(policy: Policy, engines: list, steps: int, seed: int = 1):
    """Feed the same irregular messages to all engines; yield after each."""
    contract = policy.contract
    rng = np.random.default_rng(seed)
    for k in range(steps):
        dt = float(10 ** rng.uniform(-4, -0.4))
        frame = age = sample = None
        if contract.image and k % 5 == 0:
            shape = (contract.image.channels, contract.image.height, contract.image.width)
            frame = rng.normal(size=shape).astype(np.float32)
        if contract.image:
            age = float(rng.uniform(0.0, 0.3))
        if contract.imu:
            sample = rng.normal(size=len(contract.imu.fields)).astype(np.float32)
        for engine in engines:
            real = engine.state.dtype
            if frame is not None:
                engine.hold_image(frame.astype(real))
            if age is not None:
                engine.hold_image_age(age)
            if sample is not None:
                engine.hold_imu(sample.astype(real))
            if k % 7 == 3:  # as a late message
                engine.jump()
            else:
                engine.advance(dt)
            if k == 20:
                engine.reset()
        yield k, dt, frame, age, sample


def assert_close(actual, expected, tolerance: float) -> None:
    """Within `tolerance` of the size of what is expected, and of 1 for small numbers."""
    error = np.abs(np.asarray(actual) - expected).max() / max(1.0, np.abs(expected).max())
    assert error <= tolerance


@pytest.mark.parametrize('shape', SHAPES)
def test_c_equals_numpy_over_irregular_steps(shape, random_policy, module) -> None:
    policy = random_policy(**SHAPES[shape])
    reference = NumpyEngine(policy)
    engines = [CEngine(policy, module, variant) for variant in variants(module)]
    for _ in drive(policy, [reference, *engines], 10_000 if shape == 'car' else 500):
        for engine in engines:
            # both round; sums of more than a hundred products, as in wide layers, add that up
            wide = policy.contract.units > 100
            assert_close(engine.state, reference.state, 2e-6 if wide else 1e-6)
            assert_close(engine.command(), reference.command(), 3e-6)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x)


class Reference:
    """The equations written out in float64, one number at a time where it matters."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.tensors = {name: t.astype(np.float64) for name, t in policy.tensors.items()}
        self.h = np.zeros(policy.contract.units)
        self.features = self.age = self.start = None
        self.imu = np.zeros(0)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        encoder = self.policy.contract.encoder
        x = pixels.astype(np.float64)
        for i, layer in enumerate(encoder.layers):
            x = np.pad(x, ((0, 0), (layer.padding,) * 2, (layer.padding,) * 2))
            weight = self.tensors[f'encoder.{2 * i}.weight']
            k, s = layer.kernel, layer.stride
            rows, columns = (x.shape[1] - k) // s + 1, (x.shape[2] - k) // s + 1
            out = np.empty((layer.channels, rows, columns))
            for y in range(rows):
                for z in range(columns):
                    patch = x[:, y * s : y * s + k, z * s : z * s + k]
                    out[:, y, z] = np.tensordot(weight, patch, 3)
            x = np.maximum(out + self.tensors[f'encoder.{2 * i}.bias'][:, None, None], 0.0)
        name = f'encoder.{2 * len(encoder.layers) + 1}'
        return np.tanh(self.tensors[f'{name}.weight'] @ x.ravel() + self.tensors[f'{name}.bias'])

    @property
    def u(self) -> np.ndarray:
        if self.features is None:
            return self.imu
        return np.concatenate((self.features, [self.age], self.imu))

    def mapped(self) -> np.ndarray:
        x, layers = self.u, len(self.policy.contract.mapping)
        for i in range(layers):
            x = self.tensors[f'mapping.{2 * i}.weight'] @ x + self.tensors[f'mapping.{2 * i}.bias']
            x = x / (1.0 + np.exp(-x)) if i < layers - 1 else x
        return x

    def jump(self) -> None:
        self.start = self.mapped()

    def reset(self) -> None:
        self.h, self.start = np.zeros_like(self.h), None

    def advance(self, dt: float) -> None:
        contract, end = self.policy.contract, self.mapped()
        start = end if self.start is None else self.start
        self.start = end
        steps = max(math.ceil(dt / contract.max_step * (1 - 1e-6)), contract.unfolds)
        for k in range(steps):
            fraction = {'previous': 0.0, 'current': 1.0, 'linear': (k + 0.5) / steps}
            u = start + fraction[contract.hold] * (end - start)
            rate, equilibrium = getattr(self, contract.cell)(u)
            if contract.solver == 'fused':
                elapsed = dt / steps * rate
                self.h = (self.h + elapsed * equilibrium) / (1.0 + elapsed)
            else:
                self.h = equilibrium + (self.h - equilibrium) * np.exp(-dt / steps * rate)

    def ltc_neural(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        t = self.tensors
        pre = t['cell.gate_input'] @ u + t['cell.gate_recurrent'] @ self.h + t['cell.gate_bias']
        f = np.exp(t['cell.log_gain']) / (1.0 + np.exp(-pre))
        current = t['cell.leak'] + t['cell.drive'] @ u
        return (1.0 + f) / np.exp(t['cell.log_tau']), (current + f * t['cell.reversal']) / (1.0 + f)

    def ltc_synaptic(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cell = {n[5:]: v for n, v in self.tensors.items() if n.startswith('cell.')}
        g = softplus(cell['raw_gl'])
        current = g * cell['vl']
        for kind, x in (
            ('synapses', self.h),
            ('sensory', cell['input_w'] * u + cell['input_b']),
        ):
            w, sigma, mu, erev = (cell[f'{kind}.{n}'] for n in ('raw_w', 'sigma', 'mu', 'erev'))
            for k, (source, target) in enumerate(np.argwhere(cell[f'{kind}.adjacency'])):
                s = softplus(w[k]) / (1.0 + np.exp(-sigma[k] * (x[source] - mu[k])))
                g[target] += s
                current[target] += s * erev[k]
        return g / softplus(cell['raw_cm']), current / g

    def liquid(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def of(name: str, x: np.ndarray) -> np.ndarray:
            return self.tensors[f'cell.{name}.weight'] @ x + self.tensors[f'cell.{name}.bias']

        hidden = of('hidden', u)
        f = of('out', hidden / (1.0 + np.exp(-hidden)))
        return 1.0 / (softplus(of('tau', u)) + 0.1), f

    def command(self) -> np.ndarray:
        read = self.h[: self.policy.contract.motor_neurons]
        if self.policy.contract.cell == 'ltc_synaptic':
            read = read * self.tensors['cell.output_w'] + self.tensors['cell.output_b']
        x = np.concatenate((read, self.u))
        layers = len(self.policy.contract.readout) + 1
        for i in range(layers):
            x = self.tensors[f'readout.{2 * i}.weight'] @ x + self.tensors[f'readout.{2 * i}.bias']
            x = np.maximum(x, 0.0) if i < layers - 1 else x
        outputs = self.policy.contract.outputs
        low, high = (np.array([getattr(o, end) for o in outputs]) for end in ('min', 'max'))
        return x * (high - low) / 2 + (high + low) / 2


@pytest.mark.parametrize('shape', SHAPES)
def test_double_build_equals_the_equations_in_float64(shape, random_policy, double) -> None:
    policy = random_policy(**SHAPES[shape])
    engines = [CEngine(policy, double, variant) for variant in variants(double)]
    reference = Reference(policy)
    # what stands behind a logarithm or a softplus is made in float32 from the file's numbers
    for name, values in policy.tensors.items():
        if name.startswith('cell.log_'):
            exact = np.exp(values if name.endswith('gain') else -values).astype(np.float64)
            reference.tensors[name] = np.log(exact) * (1.0 if name.endswith('gain') else -1.0)
        elif 'raw_' in name:
            exact = np.logaddexp(np.float32(0.0), values).astype(np.float64)
            reference.tensors[name] = np.log(np.expm1(exact))
    image = policy.contract.image
    for k, dt, frame, age, sample in drive(policy, engines, 200):
        if frame is not None:
            reference.features = reference.encode(frame)
        if age is not None:
            reference.age = age / image.age_scale
        if sample is not None:
            reference.imu = sample.astype(np.float64)
        reference.jump() if k % 7 == 3 else reference.advance(dt)
        if k == 20:
            reference.reset()
        for engine in engines:
            assert_close(engine.state, reference.h, 1e-12)
            assert_close(engine.command(), reference.command(), 1e-12)


@pytest.mark.parametrize('precision', ['module', 'double'])
def test_elementary_functions_are_accurate_and_let_nan_through(precision, request) -> None:
    compiled = request.getfixturevalue(precision)
    real, bound = (np.float32, 1.5e-7) if precision == 'module' else (np.float64, 1e-15)

    def computed(variant: int, function: int, x: np.ndarray) -> np.ndarray:
        out = x.copy()
        compiled.elementwise(variant, function, out)
        return out

    near_zero = np.random.default_rng(0).normal(size=20_000) * 1e-3
    x = np.concatenate((np.linspace(-86.0, 87.0, 200_001), near_zero)).astype(real)
    wide = x.astype(np.longdouble)
    gate = 1.0 / (1.0 + np.exp(-wide))
    exact = {0: np.exp(wide), 1: gate, 2: np.tanh(wide), 4: wide * gate}
    exact[5] = np.where(wide < 0.0, 0.0, wide) + np.log1p(np.exp(-np.abs(wide)))
    bounds = {4: 1.5, 5: 2.0}  # of the others' bound: two functions, or a sum, in turn
    odd = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30], dtype=real)
    for variant in variants(compiled):
        for function, expected in exact.items():
            inside = expected != 0.0
            value = computed(variant, function, x)[inside] / expected[inside]
            assert np.abs(value - 1.0).max() < bound * bounds.get(function, 1.0)
            of_odd = computed(variant, function, odd)
            assert np.isnan(of_odd[0]) and np.isfinite(of_odd[3 if function > 3 else 1 :]).all()
        assert computed(variant, 2, odd)[1:].tolist() == [1.0, -1.0, 1.0, -1.0]


@pytest.mark.parametrize('dt', [0.0, -0.1, math.nan, math.inf, -math.inf, 1e6])
def test_interval_that_makes_no_sense_is_refused_and_state_kept(
    dt, random_policy, new_engine
) -> None:
    engine = new_engine(random_policy())
    engine.advance(0.02)
    before = engine.state.copy()
    with pytest.raises(ValueError, match='dt is'):
        engine.advance(dt)
    assert (engine.state == before).all()


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_input_that_is_not_finite_is_refused_and_held_inputs_kept(
    bad, random_policy, new_engine
) -> None:
    policy = random_policy()
    engine, twin = (new_engine(policy) for _ in range(2))
    rng = np.random.default_rng(0)
    pixels, values = rng.normal(size=(3, 18, 32)), rng.normal(size=6)
    for each in (engine, twin):
        each.hold_image(pixels.astype(np.float32))
        each.hold_imu(values.astype(np.float32))
        each.hold_image_age(0.1)
    spoiled, sample = pixels.astype(np.float32), values.astype(np.float32)
    spoiled[2, 17, 31] = sample[5] = bad
    for hold, value in (
        (engine.hold_image, spoiled),
        (engine.hold_imu, sample),
        (engine.hold_image_age, bad),
    ):
        with pytest.raises(ValueError, match='finite'):
            hold(value)
    engine.advance(0.02)
    twin.advance(0.02)
    assert (engine.state == twin.state).all() and (engine.command() == twin.command()).all()


def test_input_of_another_type_or_size_is_refused(random_policy, new_engine) -> None:
    engine = new_engine(random_policy())
    image, imu = np.zeros((3, 18, 32), np.float32), np.zeros(6, np.float32)
    for wrong in (image.astype(np.float64), image[:, 1:], image.ravel(), image.tolist(), None):
        with pytest.raises(ValueError, match='image (is|has shape) .* the policy takes'):
            engine.hold_image(wrong)
    for wrong in (imu.astype('>f4'), imu[:5], np.zeros(7, np.float32), np.zeros((1, 6), '<f4'), 0):
        with pytest.raises(ValueError, match='imu (is|has shape) .* the policy takes'):
            engine.hold_imu(wrong)


def test_input_that_the_policy_does_not_take_is_refused(random_policy, new_engine) -> None:
    blind = new_engine(random_policy(image=None))
    with pytest.raises(ValueError, match='takes no image'):
        blind.hold_image(np.zeros((3, 18, 32), np.float32))
    with pytest.raises(ValueError, match='takes no image'):
        blind.hold_image_age(0.1)
    with pytest.raises(ValueError, match='takes no imu'):
        new_engine(random_policy(imu=0)).hold_imu(np.zeros(6, np.float32))


def test_arrays_may_be_reused_exchanged_or_strided(random_policy, new_engine) -> None:
    policy = random_policy(image=None)
    engine, twin = new_engine(policy), NumpyEngine(policy)
    first, second = np.ones(6, np.float32), np.arange(12, dtype=np.float32)[::2]
    for values in (first, second, first, second):
        values *= np.float32(0.5)
        for each in (engine, twin):
            each.hold_imu(values)
            each.advance(0.02)
        assert_close(engine.state, twin.state, 1e-6)


def test_tensors_that_do_not_fit_the_contract_are_refused(random_policy, new_engine) -> None:
    for name, tensor, message in (
        ('cell.leak', None, 'missing'),
        ('cell.leak', np.zeros(31, np.float32), 'shape'),
        ('cell.other', np.zeros(1, np.float32), 'unknown'),
        ('cell.log_gain', np.full(32, 100.0, np.float32), 'infinite'),
        ('cell.log_tau', np.full(32, -100.0, np.float32), 'infinite'),
    ):
        policy = random_policy()
        policy.tensors.pop(name, None)
        if tensor is not None:
            policy.tensors[name] = tensor
        with pytest.raises(PolicyError, match=f'{name}.*{message}|{message}.*{name}'):
            new_engine(policy)


def test_wiring_that_is_none_is_refused(random_policy, new_engine) -> None:
    for value, message in ((0.5, 'nothing but -1, 0 and 1'), (1.0, 'raw_w.*shape')):
        policy = random_policy(cell='ltc_synaptic', motors=4)
        adjacency = policy.tensors['cell.synapses.adjacency'].copy()
        adjacency.flat[np.flatnonzero(adjacency == 0.0)[0]] = value
        policy.tensors['cell.synapses.adjacency'] = adjacency
        with pytest.raises(PolicyError, match=message):
            new_engine(policy)


@pytest.mark.parametrize('solver', ['exact', 'fused'])
def test_leak_and_capacity_that_vanish_in_float32_leave_the_state_finite(
    solver, random_policy, new_engine
) -> None:
    policy = random_policy(cell='ltc_synaptic', solver=solver, image=None, wired=False)
    for name in ('raw_gl', 'raw_cm'):  # softplus(-200) is 0 in float32
        policy.tensors[f'cell.{name}'] = np.full(32, -200.0, np.float32)
    engine = new_engine(policy)
    engine.hold_imu(np.ones(6, np.float32))
    for _ in range(3):
        engine.advance(1e3)
    # without synapses there is nothing but the leak, as weak as it is
    assert_close(engine.state, policy.tensors['cell.vl'], 1e-5)


def test_sub_steps_are_whole_at_multiples_of_the_longest_step() -> None:
    assert [sub_steps(k * 0.05, 0.05) for k in range(1, 7)] == [1, 2, 3, 4, 5, 6]
    assert sub_steps(0.0501, 0.05) == 2 and sub_steps(1e-9, 0.05) == 1


def test_numpy_serves_and_says_so_once_without_the_compiled_core(
    random_policy, monkeypatch, caplog
) -> None:
    monkeypatch.setitem(sys.modules, 'lnn_ros.core._core', None)
    core.compiled_module.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            engines = [core.open_engine(random_policy()) for _ in range(2)]
        assert all(isinstance(engine, NumpyEngine) for engine in engines)
        assert len(caplog.records) == 1 and 'apt-get install gcc' in caplog.text
    finally:
        core.compiled_module.cache_clear()


def test_the_compiled_core_serves_where_it_is_there(random_policy, module) -> None:
    assert isinstance(core.open_engine(random_policy()), CEngine)
