"""Atheris's target for what comes from outside: a policy file, then messages to what it loaded.

The shipped policy is damaged as its bytes, its contract or its tensors (the last two signed again),
and whatever loads is driven. Anything but the documented refusals, or a command out of its limits,
is a finding. `make fuzz` runs it.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import atheris
import numpy as np

with atheris.instrument_imports(include=['lnn_ros']):
    from lnn_ros import policy as policy_file
    from lnn_ros.controller import Controller, Settings
    from lnn_ros.observation import CHANNELS, ObservationError
    from lnn_ros.share import share_directory

import safetensors.numpy

SHIPPED = share_directory() / 'policies' / 'car.safetensors'
WHOLE = SHIPPED.read_bytes()
with safetensors.safe_open(SHIPPED, framework='numpy') as opened:
    DOCUMENT = json.loads(opened.metadata()['lnn_ros'])
    TENSORS = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
HOSTILE: list[Any] = [
    0, 1, -1, 2, 4096, 4097, 2**31, 2**63, 10**400, 1e308, -1e308, 1e-308, 1e-45, -0.0, True, None,
    float('nan'), float('inf'), '', 'x', [], {}, [[]],
]  # fmt: skip
FOLDER = Path(tempfile.mkdtemp(prefix='lnn_ros_fuzz_'))


def drawn(data: Any) -> Any:
    """Return any value that JSON can hold."""
    kind = data.ConsumeIntInRange(0, 4)
    if kind == 0:
        return data.ConsumeInt(8)
    if kind == 1:
        return data.ConsumeFloat()
    if kind == 2:
        return data.ConsumeUnicodeNoSurrogates(12)
    return copy.deepcopy(HOSTILE[data.ConsumeIntInRange(0, len(HOSTILE) - 1)])


def damage(document: Any, data: Any) -> None:
    """Change, drop, double or add one entry somewhere in a document."""
    where = document
    while True:
        keys = list(where) if isinstance(where, dict) else range(len(where))
        if not keys:
            return
        key = keys[data.ConsumeIntInRange(0, len(keys) - 1)]
        if isinstance(where[key], dict | list) and where[key] and data.ConsumeIntInRange(0, 7):
            where = where[key]
            continue
        what = data.ConsumeIntInRange(0, 9)
        if what == 0:
            del where[key]
        elif what == 1 and isinstance(where, list):
            where.insert(key, copy.deepcopy(where[key]))
        elif what == 1:
            where[data.ConsumeUnicodeNoSurrogates(6)] = drawn(data)
        else:
            where[key] = drawn(data)
        return


def damage_tensors(tensors: dict[str, np.ndarray], data: Any) -> None:
    """Change one tensor's name, type, shape or numbers."""
    name = sorted(tensors)[data.ConsumeIntInRange(0, len(tensors) - 1)]
    tensor, what = tensors.pop(name), data.ConsumeIntInRange(0, 5)
    if what == 1:
        tensors[data.ConsumeUnicodeNoSurrogates(8)] = tensor
    elif what == 2:
        tensors[name] = tensor.astype(np.float64 if data.ConsumeBool() else np.int16)
    elif what == 3:
        tensors[name] = tensor.reshape(-1) if data.ConsumeBool() else tensor[..., :0]
    elif what > 3:
        changed = tensor.astype(np.float32)
        flat = changed.reshape(-1)
        flat[data.ConsumeIntInRange(0, max(flat.size - 1, 0)) :: 7] = data.ConsumeFloat()
        tensors[name] = changed


def file_of(data: Any) -> bytes:
    kind = data.ConsumeIntInRange(0, 3)
    if kind == 0:  # the bytes of the file; most of all its header
        whole = bytearray(WHOLE)
        for _ in range(data.ConsumeIntInRange(1, 4)):
            at = data.ConsumeIntInRange(0, len(whole) if data.ConsumeBool() else 4096)
            new = data.ConsumeBytes(data.ConsumeIntInRange(0, 16))
            whole[at : at + data.ConsumeIntInRange(0, 16)] = new
        return bytes(whole[: data.ConsumeIntInRange(0, 2 * len(whole))])
    document, tensors = copy.deepcopy(DOCUMENT), dict(TENSORS)
    for _ in range(data.ConsumeIntInRange(0, 3) if kind > 1 else 0):
        damage(document, data)
    for _ in range(data.ConsumeIntInRange(0, 2)):
        if tensors:
            damage_tensors(tensors, data)
    contract = document.get('contract')
    if data.ConsumeIntInRange(0, 15):
        document['sha256'] = policy_file.content_sha256(contract, tensors)
    return safetensors.numpy.save(tensors, {'lnn_ros': json.dumps(document)})


def drive(controller: Controller, data: Any) -> None:
    """Send it messages as no driver would."""
    stamp_ns = 10**9
    for _ in range(data.ConsumeIntInRange(1, 12)):
        stamp_ns += data.ConsumeIntInRange(-(10**8), 10**8)
        stamp_ns = data.ConsumeInt(9) if not data.ConsumeIntInRange(0, 15) else stamp_ns
        try:
            if data.ConsumeBool():
                height, width = (data.ConsumeIntInRange(1, 70) for _ in range(2))
                encoding = [*CHANNELS, 'yuyv'][data.ConsumeIntInRange(0, len(CHANNELS))]
                step = width * CHANNELS.get(encoding, 1)
                if not data.ConsumeIntInRange(0, 7):
                    height, width, step = (data.ConsumeInt(8) for _ in range(3))
                size = data.ConsumeIntInRange(0, 70 * 70 * 4)
                image = data.ConsumeBytes(8).ljust(size, b'\x7f')
                command = controller.on_image(image, height, width, encoding, step, stamp_ns)
            else:
                numbers = [data.ConsumeFloat() for _ in range(6)]
                command = controller.on_imu(numbers[:3], numbers[3:], stamp_ns)
        except ObservationError:
            continue
        if command is not None:
            for value, output in zip(
                command.values, controller.policy.contract.outputs, strict=True
            ):
                assert output.min <= value <= output.max, (value, output)


def test_one_input(raw: bytes) -> None:
    """Load what the file became; drive it if it loads."""
    data = atheris.FuzzedDataProvider(raw)
    path = FOLDER / 'policy.safetensors'
    path.write_bytes(file_of(data))
    try:
        controller = Controller(policy_file.load(path), Settings(warmup_steps=0))
    except policy_file.PolicyError:
        return
    drive(controller, data)


if __name__ == '__main__':
    warnings.simplefilter('ignore', RuntimeWarning)  # numpy's, of overflows
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
