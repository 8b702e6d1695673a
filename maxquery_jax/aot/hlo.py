"""What a compiled program does, read from its text: collectives with sizes, cycles by layer."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'collective-permute', 'all-to-all')

_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+).*\{\s*$')
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(')
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]')
_CALLED = re.compile(
    r'(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)'
    r'|branch_computations=\{([^}]*)\}'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NAME = re.compile(r'op_name="([^"]*)"')
_BITS = re.compile(r'\d+')


@dataclasses.dataclass
class Collective:
    """Collectives of one kind in a step of one device.

    Attributes:
        count: how many run, those in loops as often as the loop does.
        num_bytes: of their results.
    """

    count: int = 0
    num_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction that runs.

    Attributes:
        opcode: such as 'fusion' or 'all-reduce-start'.
        shape: text of its result's shape.
        line: its whole text.
        times: how often it runs in a step.
    """

    opcode: str
    shape: str
    line: str
    times: int


def instructions(text: str) -> Iterator[Instruction]:
    """The instructions of a program that run, those of loops and calls included.

    The inside of a fusion is not listed: the fusion is one instruction. Of a conditional all
    branches are, and a loop of unknown length counts once.

    Args:
        text: `compiled.as_text()`.
    """
    computations, entry = _computations(text)

    def walk(name: str, times: int) -> Iterator[Instruction]:
        for line in computations.get(name, ()):
            found = _INSTRUCTION.match(line)
            if not found:
                continue
            shape, opcode = found.groups()
            yield Instruction(opcode, shape, line, times)
            if opcode in ('while', 'call', 'conditional'):
                trips = _TRIPS.search(line)
                inside = times * int(trips.group(1)) if trips and opcode == 'while' else times
                for one, several in _CALLED.findall(line):
                    for called in [one] if one else several.split(','):
                        yield from walk(called.strip().lstrip('%'), inside)

    yield from walk(entry, 1)


def count_collectives(text: str) -> dict[str, Collective]:
    """Collectives of a step by kind, in the order of `KINDS`; kinds that do not occur are absent.

    Args:
        text: `compiled.as_text()`; asynchronous pairs count once.
    """
    found: dict[str, Collective] = {}
    for instruction in instructions(text):
        is_start = instruction.opcode.endswith('-start')
        kind = instruction.opcode.removesuffix('-start')
        if kind not in KINDS:
            continue
        total = found.setdefault(kind, Collective())
        total.count += instruction.times
        size = shape_bytes(instruction.shape)
        # The start of a pair returns its operands and its results.
        total.num_bytes += instruction.times * (size // 2 if is_start else size)
    return {kind: found[kind] for kind in KINDS if kind in found}


def shape_bytes(shape: str) -> int:
    """Bytes of all arrays in a shape's text, `(f32[3,4]{1,0}, bf16[])` 50."""
    total = 0
    for dtype, sides in _ARRAY.findall(shape):
        bits = _BITS.search(dtype)
        width = 1 if bits is None else max(int(bits.group()) // 8, 1)
        total += width * math.prod(int(side) for side in sides.split(',') if side)
    return total


def cycles_by_layer(text: str) -> dict[str, int]:
    """Cycles that the TPU compiler expects of each layer, most first; empty for other compilers.

    A layer is the path of modules, with `backward` before it for its gradients; what no module
    owns (losses, optimiser) is named by its primitive.

    Args:
        text: `compiled.as_text()`.
    """
    cycles: collections.Counter[str] = collections.Counter()
    for instruction in instructions(text):
        estimate = _CYCLES.search(instruction.line)
        if estimate:
            cycles[_layer(instruction.line)] += int(estimate.group(1)) * instruction.times
    return dict(cycles.most_common())


def _layer(line: str) -> str:
    name = _NAME.search(line)
    if name is None:
        return 'other'
    parts = [part for part in name.group(1).split('/') if part]
    backward = 'backward ' if any(part.startswith('transpose(') for part in parts) else ''
    modules = [part for part in parts[:-1] if '(' not in part and '.' not in part]
    return backward + ('/'.join(modules[:3]) or parts[-1])


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by name, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry, current = '', None
    for line in text.splitlines():
        if not line.startswith(' '):
            header = _HEADER.match(line)
            current = header.group(2) if header else None
            if header and current is not None:
                computations[current] = []
                entry = current if header.group(1) else entry
        elif current is not None:
            computations[current].append(line)
    return computations, entry
