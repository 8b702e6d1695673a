"""What a registration came to: findings against limits, and a table for people."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from maxquery_jax.data.findings import Issue
from maxquery_jax.data.registration.options import Limits
from maxquery_jax.data.scan import CheckRow


def judge(
    records: Sequence[Mapping[str, Any]],
    limits: Limits,
    *,
    is_strict: bool = False,
    allow: Collection[str] = (),
) -> list[CheckRow]:
    """Findings about finished cases.

    Args:
        records: of the cases.
        limits: what deserves a warning.
        is_strict: whether a warning about a registration is an error.
        allow: checks that stay warnings all the same.
    """
    rows = []
    for record in records:
        for found in record['findings']:
            issue = Issue(*(found[key] for key in ('check', 'severity', 'value', 'fix')))
            rows.append(CheckRow.of(record['case'], found['file'], issue))
        for entry in record['phases']:
            for check, value, fix in _complaints(entry, limits):
                severity = 'error' if is_strict and check not in allow else 'warning'
                issue = Issue(check, severity, value, fix)
                rows.append(CheckRow.of(record['case'], entry['file'], issue))
    return rows


def _complaints(entry: Mapping[str, Any], limits: Limits) -> list[tuple[str, str, str]]:
    if entry['role'] != 'registered':
        return []
    phase, after = f'phase {entry["phase"]!r}', entry['after']
    look = 'look at the phases side by side'
    broken = 'registration_failed' if entry['failed'] else 'registration_worse'
    found = [(broken, f'{phase}: {note}', look) for note in entry['notes']]
    folding = entry['folding']
    if folding is not None and folding > limits.folding:
        least = _number(entry['least_jacobian'])
        value = f'{phase}: {folding:.2%} of the voxels, least determinant {least}'
        found.append(('registration_folding', value, f'{look}; the limit is {limits.folding:.2%}'))
    overlap = after['body_dice']
    if overlap is None or overlap < limits.overlap:
        value = f'{phase}: Dice of the bodies {_number(overlap)}'
        found.append(('registration_overlap', value, f'{look}; the limit is {limits.overlap:g}'))
    coverage = after['coverage']
    if coverage is not None and coverage < limits.coverage:
        value = f'{phase}: shows {coverage:.0%} of the body in the reference'
        found.append(('registration_coverage', value, 'the rest is air, -1024 HU'))
    return found


def format_quality(records: Sequence[Mapping[str, Any]]) -> str:
    """One line per case and phase: overlap and similarity before and after, folding."""
    lines: list[tuple[str, ...]] = [
        ('case', 'phase', 'kept', 'body Dice', 'soft tissue', 'NCC', 'MI', 'folding', 'max mm')
    ]
    for record in records:
        for entry in record['phases']:
            head = (record['case'], entry['phase'])
            if entry['role'] != 'registered':
                lines.append((*head, entry['role'], '', '', '', '', '', ''))
                continue
            pairs = [
                f'{_number(entry["before"][key])} -> {_number(entry["after"][key])}'
                for key in ('body_dice', 'soft_tissue_dice', 'ncc', 'mutual_information')
            ]
            folding = entry['folding']
            share = 'unknown' if folding is None else f'{folding:.2%}'
            moved = entry['displacement_mm']
            largest = 'unknown' if moved is None else f'{moved:.1f}'
            lines.append((*head, entry['kept'], *pairs, share, largest))
    lines = [tuple(cell if cell.isprintable() else ascii(cell) for cell in line) for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _number(value: float | None) -> str:
    return 'none' if value is None else f'{value:.3f}'
