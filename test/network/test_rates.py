"""The benchmark of sampling rates: its system, its samplings, its nets, and that it runs."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss

from lnn_ros.cli import main
from lnn_ros.liquid.network import exact_param_count
from lnn_ros.liquid.sequence import unroll
from lnn_ros.training import known_system as system
from lnn_ros.training import rate_nets, rates, rates_report
from lnn_ros.training.side_by_side import SideBySide


def test_recording_is_the_stated_system_integrated_finely():
    fine = 10  # sub-steps of a grid interval
    u = system.inputs(3, 4.0, seed=7)
    points = np.arange(u.shape[1])
    between = np.arange(0, u.shape[1] - 1 + 1e-9, 1.0 / fine)
    u1, u2 = (np.stack([np.interp(between, points, row[:, c]) for row in u]) for c in (0, 1))
    step = system.GRID / fine

    def slope(k, y):
        a, b, c, d = y
        drive = u1[:, k], u1[:, k] * u2[:, k], a, np.tanh(2.0 * u2[:, k])
        taus = 1.0, 0.5, 2.0, 0.3
        return np.stack([(x - v) / t for x, v, t in zip(drive, (a, b, c, d), taus, strict=True)])

    y, seen = np.zeros((4, 3)), [np.zeros((4, 3))]
    for k in range(len(between) - 1):  # Heun's method
        first = slope(k, y)
        y = y + 0.5 * step * (first + slope(k + 1, y + step * first))
        if (k + 1) % fine == 0:
            seen.append(y)
    expected = np.stack(seen).transpose(2, 0, 1)
    recorded = system.respond(u)
    assert np.abs(recorded).max() > 0.3
    np.testing.assert_allclose(recorded, expected, atol=2e-5)


def test_inputs_begin_at_zero_have_unit_power_and_stay_in_the_band():
    u = system.inputs(200, 100.0, seed=1)
    assert (u[:, 0] == 0.0).all()
    assert u.std() == pytest.approx(1.0, abs=0.05)
    power = (np.abs(np.fft.rfft(u * np.hanning(u.shape[1])[:, None], axis=1)) ** 2).mean((0, 2))
    frequency = np.fft.rfftfreq(u.shape[1], system.GRID)
    assert power[frequency > system.BAND[1] + 0.05].sum() < 1e-4 * power.sum()


def test_all_samplings_see_the_same_signal_at_common_times():
    recording = system.record(4, 6.0, seed=1)
    finest = system.sample(recording, system.every(100, 5.0, 4))
    for rate in rates.RATES:
        samples = system.sample(recording, system.every(rate, 5.0, 4))
        stride = 100 // rate
        np.testing.assert_allclose(samples.dt, 1.0 / rate)
        np.testing.assert_array_equal(samples.u, finest.u[:, stride - 1 :: stride])
        np.testing.assert_array_equal(samples.y, finest.y[:, stride - 1 :: stride])


def test_jittered_intervals_span_10_ms_to_1_s_and_stay_in_the_recording():
    ticks = system.jittered(500, 20, 6.0, np.random.default_rng(0))
    dt = np.diff(ticks, axis=1, prepend=0) * system.GRID
    assert 0.0099 < dt.min() < 0.011
    assert 0.9 < dt.max() < 1.001
    assert ticks.max() * system.GRID <= 6.0
    assert system.sample(system.record(500, 6.0, seed=0), ticks).y.shape == (500, 20, 4)


def test_rate_off_the_grid_is_refused():
    with pytest.raises(ValueError, match='multiple of 0.005 s'):
        system.every(30, 5.0, 1)


def test_nmse_is_zero_for_a_perfect_model_and_one_for_the_mean():
    y = system.record(8, 6.0, seed=1).y
    assert system.nmse(y, y) == 0.0
    assert system.nmse(np.broadcast_to(y.mean(axis=(0, 1)), y.shape), y) == pytest.approx(1.0)


def test_holding_dense_samples_loses_nothing_and_coarse_ones_more_and_more():
    recording = system.record(8, 6.0, seed=1)
    lost = []
    for rate in (100, 10, 1):
        ticks = system.every(rate, 6.0, 8)
        y = system.held(recording, ticks, 'linear')
        lost.append(system.nmse(y, system.sample(recording, ticks).y))
    assert lost[0] < 1e-8 < lost[1] < 1e-4 < lost[2]


@pytest.mark.parametrize('name', ['neural', 'synaptic', 'liquid_cell'])
def test_liquid_net_sees_what_the_library_makes_of_a_sequence(name):
    torch.manual_seed(0)
    net = rates.CONTENDERS[name].make(6)
    u, dt = torch.randn(7, 3, 2), torch.rand(7, 3) + 0.01
    x, before = net.mapping(u).transpose(0, 1), net.mapping(torch.zeros(3, 2))
    states = unroll(net.cells[0], x, dt.T, hold=net.hold, before=before).transpose(0, 1)
    torch.testing.assert_close(net.states(u, net.plan(dt)), states)
    assert not torch.equal(net.states(u, net.plan(dt, 12)), states)  # finer sub-steps


@pytest.mark.parametrize('name', ['neural', 'synaptic', 'liquid_cell', 'ncps_ltc', 'gru'])
def test_net_learns_the_same_beside_others_as_alone(name):
    nets, steps = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        nets.append(rates.CONTENDERS[name].make(6))
    u, y, dt = torch.randn(3, 7, 4, 2), torch.randn(3, 7, 4, 4), torch.rand(7, 4) + 0.01
    together = SideBySide(list(nets), mse_loss)
    together.losses(u, y, nets[0].plan(dt)).sum().backward()
    for i, net in enumerate(nets):
        mse_loss(net(u[i], net.plan(dt)), y[i]).backward()
        for key, parameter in net.named_parameters():
            if parameter.requires_grad:
                steps.append(together._learnt[key].grad[i] - parameter.grad)
    assert max(step.abs().max() for step in steps) < 1e-6


def test_gru_equals_torchs():
    torch.manual_seed(0)
    net = rate_nets.GRU(5, with_dt=False)
    u = torch.randn(6, 3, 2)
    h = torch.zeros(3, 5)
    for k, state in enumerate(net.states(u, torch.ones(6, 3))):
        h = net.cell(u[k], h)
        torch.testing.assert_close(state, h)


def test_every_net_has_the_same_parameter_count_within_5_percent():
    for name in rates.contenders():
        contender = rates.CONTENDERS[name]
        count = exact_param_count(contender.make(contender.units()))
        assert abs(count - rates.PARAMETERS) <= 0.05 * rates.PARAMETERS, name


def test_training_brings_the_error_down():
    effort = rates.Effort(32, 8, 8, 8.0, 4.0, 16, 10.0, 40, (0, 1))
    data = rates.Data.make(effort)
    nets, iterations, _ = rates.train(rates.CONTENDERS['liquid_cell'], '10Hz', data, effort)
    samples = data.tests['nmse@10Hz']
    errors = [system.nmse(rates.predict(net, samples) * data.scale, samples.y) for net in nets]
    assert iterations == 40
    assert errors[0] != errors[1]  # each seed is a training of its own
    assert max(errors) < 0.7


def test_quick_run_prints_a_table_and_writes_json_and_a_plot(tmp_path, capsys):
    pytest.importorskip('matplotlib')
    file, plot = tmp_path / 'rates.json', tmp_path / 'rates.png'
    assert main(['bench', 'rates', '--quick', '--json', str(file), '--plot', str(plot)]) == 0
    document = json.loads(file.read_text())
    found = {(row['name'], row['metric']) for row in document['rows']}
    for metric in ('nmse@1Hz', 'nmse@10Hz', 'nmse@100Hz', 'nmse@jitter'):
        assert {('neural/10Hz', metric), ('gru_dt/jittered', metric)} <= found
    assert {('neural', 'divergence@1Hz'), ('neural:rk4', 'split@0.1s')} <= found
    assert all(np.isfinite(row['value']) for row in document['rows'])
    assert '| neural' in capsys.readouterr().out
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize(
    'value, text', [(0.00011, '.00011'), (0.125, '.12'), (40.0, '40.00'), (100.25, '100.25')]
)
def test_figure_is_written_without_a_leading_zero_and_whole_otherwise(value, text):
    row = rates.row('net', 'nmse@1Hz', [value])
    assert rates_report._figure(row) == text


def test_synapses_take_longer_steps_and_nothing_else_does():
    torch.manual_seed(0)
    nets = [rates.synaptic(4), rates.synaptic(4)]
    together = SideBySide(list(nets), mse_loss, is_paced=True)
    before = together.state(0)
    u, y = torch.randn(2, 5, 3, 2), torch.randn(2, 5, 3, 4)
    together.step(0.01, u, y, nets[0].plan(torch.full((5, 3), 0.1)))
    moved = {n: float((v - before[n]).abs().max()) for n, v in together.state(0).items()}
    # the first step of Adam is its learning rate, whatever the gradient
    assert moved['cells.0.synapses.sigma'] == pytest.approx(0.1, rel=1e-2)
    assert moved['cells.0.sensory.mu'] == pytest.approx(0.03, rel=1e-2)
    assert moved['cells.0.vl'] == pytest.approx(0.01, rel=1e-2)
    assert moved['readout.0.weight'] == pytest.approx(0.01, rel=1e-2)
