"""What the compiled module itself promises, below its Python face."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest

from lnn_ros.core.compiled import FASTEST, CEngine, _described


def aligned(size: int) -> np.ndarray:
    memory = np.zeros(size + 64, dtype=np.uint8)
    return memory[-memory.ctypes.data % 64 :][:size]


def test_step_keeps_the_gil_so_that_a_busy_thread_cannot_delay_it(random_policy, module) -> None:
    engine, values = CEngine(random_policy(image=None), module), np.zeros(6, np.float32)
    is_over = threading.Event()

    def compute() -> None:
        while not is_over.is_set():
            sum(range(100))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        taken = 0.0
        for _ in range(2000):
            begun = time.perf_counter()
            engine.hold_imu(values)
            engine.advance(0.01)
            engine.command()
            taken += time.perf_counter() - begun
    finally:
        is_over.set()
        thread.join()
    # calls that let go of it would wait 5 ms each to get it back: 30 s
    assert taken < 2.0


def test_state_and_command_outlive_the_engine(random_policy, module) -> None:
    engine = CEngine(random_policy(), module)
    engine.advance(0.1)
    state, command = engine.state, engine.command()
    expected = state.copy(), command.copy()
    del engine
    gc.collect()
    np.ones(1_000_000)  # would reuse the memory, had it been freed
    assert (state == expected[0]).all() and (command == expected[1]).all()


def test_engine_refuses_what_does_not_describe_a_policy(random_policy, module) -> None:
    sizes, arrays = _described(random_policy(), np.float32)
    size = module.engine_size(sizes, 0.05, 0.25)
    module.Engine(aligned(size), FASTEST, sizes, 0.05, 0.25, arrays, None)
    wrong = arrays[0][:-1]
    for memory, variant, said, given in (
        (aligned(size - 1), FASTEST, sizes, arrays),  # too small
        (aligned(size + 1)[1:], FASTEST, sizes, arrays),  # not aligned
        (bytes(size), FASTEST, sizes, arrays),  # not writable
        (aligned(size), 99, sizes, arrays),
        (aligned(size), FASTEST, sizes[:-1], arrays),
        (aligned(size), FASTEST, sizes.astype(np.int32), arrays),
        (aligned(size), FASTEST, np.zeros_like(sizes), arrays),
        (aligned(size), FASTEST, np.full_like(sizes, 2**62), arrays),
        (aligned(size), FASTEST, sizes, (wrong, *arrays[1:])),
        (aligned(size), FASTEST, sizes, (arrays[0].astype(np.float64), *arrays[1:])),
        (aligned(size), FASTEST, sizes, (None, *arrays[1:])),
        (aligned(size), FASTEST, sizes, arrays[:-1]),
    ):
        with pytest.raises((ValueError, IndexError)):
            module.Engine(memory, variant, said, 0.05, 0.25, given, None)
    with pytest.raises(TypeError):
        module.Engine(aligned(size), FASTEST, sizes, 0.05, 0.25, list(arrays), None)
    for max_step, age_scale in ((0.0, 1.0), (float('nan'), 1.0), (0.05, float('inf'))):
        assert module.engine_size(sizes, max_step, age_scale) == 0


def test_engine_refuses_synapses_of_neurons_that_it_does_not_have(random_policy, module) -> None:
    policy = random_policy(image=None, cell='ltc_synaptic', mapping=())
    sizes, arrays = _described(policy, np.float32)
    size = module.engine_size(sizes, 0.05, 1.0)
    module.Engine(aligned(size), FASTEST, sizes, 0.05, 1.0, arrays, None)
    for index, bad in ((0, 6), (0, -1), (1, 32), (6, 32), (7, 2**40), (7, -(2**40))):
        spoiled = [array.copy() for array in arrays]
        spoiled[index][-1] = bad
        with pytest.raises(ValueError, match='out of range'):
            module.Engine(aligned(size), FASTEST, sizes, 0.05, 1.0, tuple(spoiled), None)


def test_resampler_refuses_spans_past_the_source(module) -> None:
    ones = [np.ones(2, np.float32) for _ in range(3)]
    first, count = np.array([0, 3]), np.array([3, 3])
    rows = (first, count, *ones)
    mix = (np.zeros((4, 4), np.float32), np.zeros(4, np.float32))
    module.Resampler(FASTEST, 3, 3, 6, rows, rows, mix)
    for channels, source, width, down, across, mixed in (
        (3, 3, 5, rows, rows, mix),  # columns reach to 6
        (5, 3, 6, rows, rows, mix),
        (3, 0, 6, rows, rows, mix),
        (3, 3, -1, rows, rows, mix),
        (3, 3, 6, (first - 1, *rows[1:]), rows, mix),
        (3, 3, 6, (first, count * 0, *ones), rows, mix),
        (3, 3, 6, (first + 2**40, *rows[1:]), rows, mix),
        (3, 3, 6, (first, count[:1], *ones), rows, mix),
        (3, 3, 6, rows[:4], rows, mix),
        (2, 3, 6, rows, rows, mix),
        (3, 3, 6, rows, rows, (mix[0][:3], mix[1])),
        (3, 3, 6, rows, rows, mix[:1]),
    ):
        with pytest.raises((ValueError, IndexError)):
            module.Resampler(FASTEST, channels, source, width, down, across, mixed)


def test_resampler_refuses_buffers_that_are_too_short(module) -> None:
    ones = [np.ones(2, np.float32) for _ in range(3)]
    spans = (np.array([0, 3]), np.array([3, 3]), *ones)
    mix = (np.zeros((4, 4), np.float32), np.zeros(4, np.float32))
    resampler = module.Resampler(FASTEST, 3, 3, 6, spans, spans, mix)
    pixels = np.zeros((3, 2, 2), np.float32)
    assert resampler.see(bytes(6 * 20 - 2), 20, pixels)  # the last row without its padding
    for data, step, to in (
        (bytes(6 * 20 - 3), 20, pixels),
        (bytes(6 * 20), 17, pixels),
        (bytes(6 * 20), -20, pixels),
        (bytes(6 * 20), 2**62, pixels),
        (b'', 20, pixels),
        (bytes(6 * 20), 20, pixels[:2]),
        (bytes(6 * 20), 20, pixels.transpose(0, 2, 1)),
        (bytes(6 * 20), 20, pixels.tobytes()),
        (np.zeros(120, np.int8), 20, pixels),
    ):
        assert not resampler.see(data, step, to)


def test_long_step_lets_other_threads_run(random_policy, module) -> None:
    engine = CEngine(random_policy(image=None, units=256), module)
    engine.hold_imu(np.zeros(6, np.float32))
    ticks, is_over = [], threading.Event()

    def tick() -> None:
        while not is_over.wait(0.005):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    begun = time.monotonic()
    engine.advance(1500.0)  # 30,000 sub-steps
    ended = time.monotonic()
    is_over.set()
    thread.join()
    assert ended - begun > 0.05, 'that was not long'
    assert sum(begun < t < ended for t in ticks) > 3


def test_input_that_overflows_does_not_reach_neurons_without_a_synapse(
    random_policy, module
) -> None:
    policy = random_policy(image=None, cell='ltc_synaptic', motors=2, mapping=())
    policy.tensors['cell.input_w'][:] = 10.0
    for variant in range(len(module.variants())):
        engine = CEngine(policy, module, variant)
        engine.hold_imu(np.full(6, 3e38, np.float32))
        engine.advance(0.1)
        assert np.isfinite(engine.state).all()
