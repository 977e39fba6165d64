"""A policy as C99: one header, one source, for microcontrollers and anything else without Python.

The source needs no library, not even libm's: weights are `static const`, all memory is one struct
that the caller owns.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnn_ros.core.tensors import Arrays, Tensors, take_cell
from lnn_ros.policy import IMU_FIELDS, Contract, Policy, content_sha256
from lnn_ros.schema import PolicyError

F32 = NDArray[np.float32]
WEIGHTS = ('float32', 'int8')
_HERE = Path(__file__).parent
_WORDS = set(  # of C, of GNU C, of its string.h and of the runtime itself
    'auto break case char const continue default do double else enum extern float for goto if '
    'inline int long register restrict return short signed sizeof static struct switch typedef '
    'union unsigned void volatile while asm linux main typeof unix NULL memchr memcmp memcpy '
    'memmove memset strcat strchr strcmp strcoll strcpy strcspn strerror strlen strncat strncmp '
    'strncpy strpbrk strrchr strspn strstr strtok strxfrm index rindex ffs ffsl ffsll bcmp bcopy '
    'bzero strdup strndup strnlen stpcpy stpncpy strsep strsignal strcasecmp strncasecmp '
    'strcasestr strchrnul memccpy memmem mempcpy memrchr real'.split()
)
_HOLDS = {  # what it does to an interval's ends, and says
    'current': ('start = end;', 'that of their end'),
    'previous': ('end = start;', 'that of their start'),
    'linear': ('/* and evenly from one to the other */', 'an even change from start to end'),
}


def export_c(policy: Policy, folder: Path, name: str, weights: str = 'float32') -> list[Path]:
    """Write `name`.h and `name`.c into `folder`, which is made if needed.

    Args:
        policy: what to export.
        name: prefix of the files and of every C symbol.
        weights: `float32`, or `int8`: a quarter of the flash; each row of a matrix is then rounded
            to 255 steps of its own largest weight.

    Returns:
        the two paths.

    Raises:
        ValueError: when `name` is no C identifier, or taken, or `weights` is unknown.
        PolicyError: when the tensors do not fit the contract, or a number is none in float32.
    """
    is_taken = name in _WORDS or name.endswith('_t') or name.lower().startswith('lnn')
    if not re.fullmatch(r'[A-Za-z][A-Za-z0-9_]*', name) or is_taken:
        raise ValueError(
            f"'{name}' must be a C identifier (letters, digits, underscores) that neither C nor "
            'its headers use, and not begin with lnn'
        )
    if weights not in WEIGHTS:
        raise ValueError(f"weights are '{weights}', must be one of {', '.join(WEIGHTS)}")
    header, source = _Writer(policy, name, weights).write()
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f'{name}.h', folder / f'{name}.c']
    paths[0].write_text(header)
    paths[1].write_text(source)
    return paths


_SYNAPSES = """/* sorted by target: those into i end before end[i] */
struct NAME_synapses {
    const int *end;
    const unsigned short *source;
    const NAME_weight *sigma, *mu, *w, *erev;
    const float *w_scale; /* of each target: a weak one's do not round to 0 beside a strong one's */
    float scale[3];       /* of sigma, mu, erev */
};"""


def _elementary(runtime: str, has_encoder: bool) -> str:
    """Return the functions that a runtime calls: of one that none calls, some compilers warn."""
    if not has_encoder:
        runtime = re.sub(r'#if NAME_FEATURES.*?#endif', '', runtime, flags=re.DOTALL)
    text = (_HERE / 'elementary.h').read_text().replace('#include "core.h"\n\n', '')
    pattern = r'(?:/\*[^\n]*\*/\n)?static inline real (\w+)\(.*?^}\n\n'
    for found in reversed(list(re.finditer(pattern, text, re.DOTALL | re.MULTILINE))):
        if f'{found[1]}(' not in text[found.end() :] + runtime:
            text = text[: found.start()] + text[found.end() :]
    return text


class _Writer:
    def __init__(self, policy: Policy, name: str, weights: str) -> None:
        self._policy, self._contract, self._name = policy, policy.contract, name
        self._is_int8 = weights == 'int8'
        self._stored = 'NAME_weight' if self._is_int8 else 'float'
        self._tensors = Tensors(policy)
        self._tables: list[str] = []

    def write(self) -> tuple[str, str]:
        contract = self._contract
        cell = self._cell(contract)
        self._stacks(contract)
        if contract.encoder:
            self._encoder(contract)
        if contract.imu:
            columns = np.array([IMU_FIELDS.index(field) for field in contract.imu.fields])
            self._array('imu_column', columns, 'unsigned char')
            self._array('imu_offset', np.array(contract.imu.offset))
            self._array('imu_scale', np.array(contract.imu.scale))
        self._tensors.refuse_leftovers()
        digest = content_sha256(dataclasses.asdict(contract), self._policy.tensors)
        runtime = Template((_HERE / 'runtime.c.in').read_text()).substitute(
            cell=cell, hold=_HOLDS[contract.hold][0]
        )
        source = '\n'.join(
            [
                f'/* Made by lnn_ros from the policy with sha256\n * {digest};',
                ' * make it again rather than edit it. C99, no library. */',
                f'#include "{self._name}.h"',
                '',
                '#include <stdint.h>',
                '',
                'typedef float real;',
                '',
                _elementary(runtime, bool(contract.encoder)),
                f'typedef {"int8_t" if self._is_int8 else "float"} NAME_weight;',
                '',
                '/* out = scale * (weight x) + bias; weight (outputs, inputs) row by row */',
                'struct NAME_dense {',
                '    int inputs, outputs;',
                '    const NAME_weight *weight;',
                '    const float *scale, *bias;',
                '};',
                '',
                'struct NAME_convolution {',
                '    int before, channels, kernel, stride, padding, height, width, rows, columns;',
                '    const NAME_weight *weight;',
                '    const float *scale, *bias;',
                '};',
                '',
                *self._tables,
                '',
                runtime,
            ]
        )
        return self._named(self._header()), self._named(source)

    def _named(self, text: str) -> str:
        """Put the policy's name where the template says NAME."""
        return re.sub(r'\bNAME(?=_|\b)', self._name, text)

    def _array(self, name: str, values: NDArray[np.generic], kind: str = 'float') -> None:
        if kind == 'float':
            numbers = [_float(float(v)) for v in values.ravel()]
        else:
            numbers = [str(int(v)) for v in values.ravel().tolist()]
        numbers = numbers or ['0']  # C99 has no empty arrays; this one is never read
        lines, line = [], '   '
        for number in numbers:
            if len(line) + len(number) + 2 > 100:
                lines.append(line)
                line = '   '
            line += f' {number},'
        body = '\n'.join([*lines, line])
        self._tables.append(f'static const {kind} NAME_{name}[{len(numbers)}] = {{\n{body}\n}};')

    def _weights(self, name: str, weight: F32, bias: F32) -> str:
        """Write the tables of a matrix (its rows are outputs); return how a struct names them."""
        rows, scale = self._rounded(weight.reshape(weight.shape[0], -1))
        self._array(f'{name}_weight', rows, self._stored)
        self._array(f'{name}_scale', scale)
        self._array(f'{name}_bias', bias)
        return f'NAME_{name}_weight, NAME_{name}_scale, NAME_{name}_bias'

    def _dense(self, name: str, weight: F32, bias: F32) -> str:
        tables = self._weights(name, weight, bias)
        return f'{{{weight.shape[1]}, {weight.shape[0]}, {tables}}}'

    def _cell(self, contract: Contract) -> str:
        """Write the cell's tables; return its functions."""
        cell = take_cell(contract, self._tensors)
        self._number('max_step', contract.max_step)
        self._tables.append(f'enum {{ NAME_unfolds = {contract.unfolds} }};')
        if contract.cell == 'ltc_neural':
            no_bias = np.zeros(contract.units, dtype=np.float32)
            self._matrix('gate_input', cell['gate_input'], cell['gate_bias'])
            self._matrix('drive_input', cell['drive'], cell['leak'])
            self._matrix('gate_recurrent', cell['gate_recurrent'], no_bias)
            vectors = {name: cell[name] for name in ('gain', 'reversal', 'rate')}
        elif contract.cell == 'liquid':
            for name in ('tau', 'hidden', 'out'):
                self._matrix(name, cell[f'{name}.weight'], cell[f'{name}.bias'])
            vectors = {}
        else:
            names = ('gl', 'cm', 'input_w', 'input_b', 'output_w', 'output_b')
            vectors = {name: cell[name] for name in names} | {'leak': cell['gl'] * cell['vl']}
            self._tables.append(_SYNAPSES)
            self._synapses('sensory', 'sensory', cell)
            self._synapses('recurrent', 'synapses', cell)
        for name, values in vectors.items():
            self._array(name, values)
        if contract.cell == 'ltc_synaptic':
            self._tables.append(f'#define NAME_FUSED {int(contract.solver == "fused")}')
        return (_HERE / f'runtime_{contract.cell.removeprefix("ltc_")}.c.in').read_text()

    def _matrix(self, name: str, weight: F32, bias: F32) -> None:
        table = self._dense(name, weight, bias)
        self._tables.append(f'static const struct NAME_dense NAME_{name} = {table};')

    def _synapses(self, name: str, kind: str, cell: Arrays) -> None:
        """Write the tables of the synapses, which come sorted by target."""
        target = cell[f'{kind}.target']
        end = np.searchsorted(target, np.arange(self._contract.units), side='right')
        self._array(f'{name}_end', end, 'int')
        self._array(f'{name}_source', cell[f'{kind}.source'], 'unsigned short')
        scales = []
        for field in ('sigma', 'mu', 'erev'):
            values, scale = self._rounded(cell[f'{kind}.{field}'][None])
            self._array(f'{name}_{field}', values, self._stored)
            scales.append(_float(float(scale[0, 0])))
        # A state stays among the potentials that pull at it only if what w adds to the conductance
        # is what pulls: w and w erev rounded apart would let it go anywhere.
        strongest = np.zeros(self._contract.units, dtype=np.float32)
        np.maximum.at(strongest, target, cell[f'{kind}.w'])
        w_scale = self._scale(strongest)
        self._array(f'{name}_w', self._steps(cell[f'{kind}.w'], w_scale[target]), self._stored)
        self._array(f'{name}_w_scale', w_scale)
        fields = ('end', 'source', 'sigma', 'mu', 'w', 'erev', 'w_scale')
        tables = ', '.join(f'NAME_{name}_{field}' for field in fields)
        body = f'{{{tables}, {{{", ".join(scales)}}}}}'
        self._tables.append(f'static const struct NAME_synapses NAME_{name} = {body};')

    def _rounded(self, rows: F32) -> tuple[NDArray[Any], F32]:
        """Return the numbers to store, and what to multiply those of each row with."""
        scale = self._scale(np.abs(rows).max(axis=1, initial=0.0, keepdims=True))
        return self._steps(rows, scale), scale

    def _scale(self, largest: F32) -> F32:
        """Return the sizes of the steps in which numbers up to these are stored."""
        if not self._is_int8:
            return np.ones_like(largest)
        return np.where(largest > 0.0, largest / 127.0, 1.0).astype(np.float32)

    def _steps(self, values: F32, scale: F32) -> NDArray[Any]:
        # a scale that is no normal float32 may make 128 of the largest
        if not self._is_int8:
            return values
        return np.clip(np.rint(values / scale), -127, 127).astype(np.int8)

    def _number(self, name: str, value: float) -> None:
        self._tables.append(f'static const float NAME_{name} = {_float(value)};')

    def _stacks(self, contract: Contract) -> None:
        inputs, outputs = contract.inputs, len(contract.outputs)
        for name, sizes in (
            ('mapping', (inputs, *contract.mapping)),
            ('readout', (contract.motor_neurons + inputs, *contract.readout, outputs)),
        ):
            stack = self._tensors.take_stack(name, sizes)
            rows = [self._dense(f'{name}_{i}', *layer) for i, layer in enumerate(stack)]
            if rows:
                self._list('dense', name, rows)
        low, high = (np.array([getattr(o, e) for o in contract.outputs]) for e in ('min', 'max'))
        self._array('half', (high - low) / 2)
        self._array('middle', (high + low) / 2)

    def _list(self, kind: str, name: str, rows: list[str]) -> None:
        body = ',\n    '.join(rows)
        self._tables.append(f'static const struct NAME_{kind} NAME_{name}[] = {{\n    {body},\n}};')

    def _encoder(self, contract: Contract) -> None:
        assert contract.image is not None and contract.encoder is not None
        image, layers, shapes = contract.image, contract.encoder.layers, contract.encoder_shapes
        rows = []
        for i, layer in enumerate(layers):
            before, height, width = shapes[i]
            k = layer.kernel
            weight = self._tensors.take(f'encoder.{2 * i}.weight', layer.channels, before, k, k)
            bias = self._tensors.take(f'encoder.{2 * i}.bias', layer.channels)
            sizes = (before, layer.channels, k, layer.stride, layer.padding, height, width)
            tables = self._weights(f'convolution_{i}', weight, bias)
            rows.append(f'{{{", ".join(map(str, (*sizes, *shapes[i + 1][1:])))}, {tables}}}')
        # C99 has no empty arrays; without convolutions this one is never read
        self._list('convolution', 'convolution', rows or ['{0}'])
        last, features = f'encoder.{2 * len(layers) + 1}', contract.encoder.features
        weight = self._tensors.take(f'{last}.weight', features, int(np.prod(shapes[-1])))
        table = self._dense('features', weight, self._tensors.take(f'{last}.bias', features))
        self._tables.append(f'static const struct NAME_dense NAME_features = {table};')
        for name, value in (
            ('mean', image.mean),
            ('pixel_scale', image.scale),
            ('age_scale', image.age_scale),
        ):
            self._number(name, value)

    def _work(self) -> tuple[int, int]:
        """Return the sizes of the two buffers that layers write to in turn."""
        contract = self._contract
        layers = [[*contract.readout, len(contract.outputs)], contract.mapping]
        if contract.encoder:
            layers.append([int(np.prod(shape)) for shape in contract.encoder_shapes])
        first, second = (max(max(sizes[i::2], default=0) for sizes in layers) for i in (0, 1))
        return first, second

    def _header(self) -> str:
        contract, (first, second) = self._contract, self._work()
        image, imu, encoder = contract.image, contract.imu, contract.encoder
        units, seen = contract.units, contract.cell_inputs
        driven = 2 * units if contract.cell == 'ltc_neural' else seen
        cell = {
            'ltc_neural': units,
            'ltc_synaptic': 2 * units + max(seen, units),
            'liquid': seen + 4 * units,
        }[contract.cell]
        template = Template((_HERE / 'runtime.h.in').read_text())
        return template.substitute(
            units=contract.units,
            motors=contract.motor_neurons,
            driven=driven,
            cell=cell,
            read_mapped=int(contract.cell == 'ltc_synaptic'),
            inputs=contract.inputs,
            outputs=len(contract.outputs),
            mappings=len(contract.mapping),
            readouts=len(contract.readout) + 1,
            imu=len(imu.fields) if imu else 0,
            frame=_comment(imu.frame) if imu else '',
            features=encoder.features if encoder else 0,
            channels=image.channels if image else 0,
            height=image.height if image else 0,
            width=image.width if image else 0,
            colours='red, green, blue' if image and image.channels == 3 else 'luma',
            crop_top=image.crop_top if image else 0,
            crop_bottom=image.crop_bottom if image else 0,
            convolutions=len(encoder.layers) if encoder else 0,
            first=first,
            work=first + second,
            dt_low=contract.dt_range[0],
            dt_high=contract.dt_range[1],
            max_step=contract.max_step,
            hold=_HOLDS[contract.hold][1],
            commands=_comment(', '.join(f'{o.name} in {o.unit}' for o in contract.outputs)),
        )


def _comment(text: str) -> str:
    """Return a policy's words so that they can neither end a C comment nor do anything in it."""
    return re.sub(r'[^A-Za-z0-9 ,._/^-]', '?', text)


def _float(value: float) -> str:
    """Return a C float literal that reads back as the same float32.

    Raises:
        PolicyError: when the number is none in float32.
    """
    with np.errstate(over='ignore'):
        number = np.float32(value)
    if not np.isfinite(number):
        raise PolicyError(f'the policy holds {value}, which no C float can: retrain or scale it')
    text = np.format_float_scientific(number, unique=True, trim='0')
    return f'{text}f'
