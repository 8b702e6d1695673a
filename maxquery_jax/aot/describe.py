"""A compile report as text."""

from typing import Any

_LAYERS = 8


def describe(report: dict[str, Any]) -> str:
    """What `aot.compile.compile_for` found, a dozen lines for a terminal."""
    mesh = ' x '.join(f'{name} {size}' for name, size in report['mesh'].items())
    size = f'{report["parameters"] / 1e6:.2f} M parameters, {report["tflop_per_step"]:.2f} TFLOP'
    work = f'batch {report["batch_size"]}, patch {tuple(report["patch_size"])}, {report["dtype"]}'
    where = f'{report["topology"]}: {report["devices"]} devices ({mesh})'
    lines = [f'{report["config"]} {report["stage"]} on {where}', f'{work}, {size}']
    for name, program in report['programs'].items():
        lines += _describe_program(name, program, report['memory_limit_gib'])
    lines += _describe_time(report)
    lines.append('it fits' if report['fits'] else 'IT DOES NOT FIT')
    return '\n'.join([*lines, *(f'  {advice}' for advice in report['advice'])])


def _describe_program(name: str, program: dict[str, Any], limit: float) -> list[str]:
    memory = program['memory_gib']
    lines = [f'{name}: compiled in {program["compile_s"]:.0f} s']
    if memory:
        kinds = ', '.join(f'{kind} {size:.2f}' for kind, size in memory.items() if kind != 'total')
        lines.append(
            f'  memory per device {memory["total"]:.2f} of {limit:.2f} GiB'
            + (f' ({kinds})' if kinds else '')
        )
    if program.get('gb_moved'):
        lines.append(f'  bytes moved per device {program["gb_moved"]:.1f} GB')
    if 'collectives' in program:
        found = [
            f'{c["count"]} {kind} of {c["mb"]:.1f} MB' for kind, c in program['collectives'].items()
        ]
        lines.append(f'  collectives: {", ".join(found) or "none"}')
    cycles = program.get('cycles_by_layer')
    if cycles:
        total = sum(cycles.values())
        top = [
            f'{layer} {100 * count / total:.0f}%' for layer, count in list(cycles.items())[:_LAYERS]
        ]
        lines.append(f'  most cycles: {", ".join(top)}')
    return lines


def _describe_time(report: dict[str, Any]) -> list[str]:
    if report['step_s'] is None:
        return []
    names = {
        'compute_s': 'operations at peak',
        'memory_s': 'bytes at peak',
        'compiler_s': "compiler's cycles",
        'collective_s': 'collectives at peak',
        'augment_s': 'augmentation',
    }
    parts = [
        f'{text} {1e3 * report[name]:.1f} ms'
        for name, text in names.items()
        if report[name] is not None
    ]
    text = f'{1e3 * report["step_s"]:.1f} ms'
    if report['mfu'] is None:
        text = f'at least {text}'
    else:
        text = f'{text}, MFU {100 * report["mfu"]:.1f}%'
    return [f'estimated step {text} ({", ".join(parts)}); estimates, not measurements']
