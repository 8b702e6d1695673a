"""Which phases a case has: the listing of a data set, with gaps where a file is absent."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from maxquery_jax.data.datasets.pairs import parse_label_names, read_pairs
from maxquery_jax.data.findings import Issue
from maxquery_jax.data.raw import RawDataset, find_name_problems
from maxquery_jax.data.scan import CheckRow
from maxquery_jax.data.sources import PairOptions
from maxquery_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PhaseCase:
    """Files of one case, relative to the data set's folder.

    Attributes:
        case_id: of the case.
        images: one path per phase; None where there is no file.
        label: path, or None.
        expected: the path that each phase should have.
    """

    case_id: str
    images: tuple[str | None, ...]
    label: str | None
    expected: tuple[str, ...]


def find_reference(phases: Sequence[str], wanted: str) -> int:
    """Index of a phase given by name or number.

    Raises:
        UserError: there is no such phase, or only one in all.
    """
    listed = ', '.join(f'{i} {name}' for i, name in enumerate(phases))
    if len(phases) < 2:
        raise UserError(
            f'the data set has one channel ({listed}); there is nothing to register it to'
        )
    if not wanted:
        raise UserError(f'--reference: name the phase that was annotated; phases: {listed}')
    names = [name.casefold() for name in phases]
    if names.count(wanted.casefold()) == 1:
        return names.index(wanted.casefold())
    if wanted.isdecimal() and int(wanted) < len(phases):
        return int(wanted)
    raise UserError(f'--reference={wanted}: no such phase; phases: {listed}')


def list_cases(
    raw: RawDataset, pairs: PairOptions | None
) -> tuple[tuple[PhaseCase, ...], tuple[CheckRow, ...]]:
    """The cases of a data set, complete or not, and what else is wrong with the listing."""
    by_id = {
        case.case_id: PhaseCase(
            case.case_id,
            tuple(path if os.path.lexists(raw.source / path) else None for path in case.images),
            case.label,
            case.images,
        )
        for case in raw.cases
    }
    if pairs is not None and pairs.images:
        by_id.update(_incomplete_pairs(raw, pairs, by_id))
    problems = [*raw.problems, *find_name_problems(raw)]
    rows = [
        CheckRow.of(case_id, file, issue)
        for case_id, file, issue in problems
        if not (issue.check == 'missing_file' and _is_known_gap(by_id.get(case_id), file))
    ]
    for case in by_id.values():
        if case.label is not None and not os.path.lexists(raw.source / case.label):
            issue = Issue('missing_file', 'error', 'does not exist', 'add it or drop the case')
            rows.append(CheckRow.of(case.case_id, case.label, issue))
    return tuple(by_id[case_id] for case_id in sorted(by_id)), tuple(rows)


def _is_known_gap(case: PhaseCase | None, file: str) -> bool:
    return case is not None and file in case.expected


def _incomplete_pairs(
    raw: RawDataset, pairs: PairOptions, complete: Mapping[str, PhaseCase]
) -> dict[str, PhaseCase]:
    """Cases that `read_pairs` leaves out because one of the patterns does not find them."""
    names = parse_label_names(pairs.label_names)
    found = []
    labels: dict[str, str] = {}
    for pattern in pairs.images:
        cases = read_pairs(raw.source, (pattern,), pairs.labels or None, names).cases
        found.append({case.case_id: case.images[0] for case in cases})
        labels.update({case.case_id: case.label for case in cases if case.label is not None})
    ids = sorted(set().union(*found) - set(complete))
    return {
        case_id: PhaseCase(
            case_id,
            tuple(files.get(case_id) for files in found),
            labels.get(case_id),
            tuple(pattern.replace('*', case_id) for pattern in pairs.images),
        )
        for case_id in ids
    }


def apply_policy(
    cases: Sequence[PhaseCase], phases: Sequence[str], reference: int, policy: str
) -> tuple[tuple[PhaseCase, ...], tuple[CheckRow, ...]]:
    """Decides what becomes of cases with a missing phase.

    Returns:
        The cases to register, and one row per missing phase: an error unless the policy has an
        answer to it.

    Raises:
        UserError: no case is left.
    """
    kept, rows = [], []
    for case in cases:
        gaps = [i for i, path in enumerate(case.images) if path is None]
        lost = reference in gaps
        for channel in gaps:
            row = _missing(phases[channel], policy, channel == reference, lost)
            rows.append(CheckRow.of(case.case_id, case.expected[channel], row))
        if not gaps or (policy == 'copy' and not lost):
            kept.append(case)
    if not kept and not any(row.severity == 'error' for row in rows):
        raise UserError('every case lacks a phase; nothing is left to register')
    return tuple(kept), tuple(rows)


def _missing(phase: str, policy: str, is_reference: bool, lost: bool) -> Issue:
    value = f'phase {phase!r} does not exist' + (' (the reference)' if is_reference else '')
    if policy == 'drop':
        return Issue('phase_missing', 'warning', value, 'the case is left out (--missing=drop)')
    if policy == 'copy' and not lost:
        fix = 'the reference phase takes its place (--missing=copy)'
        return Issue('phase_missing', 'warning', value, fix)
    fix = 'add it, or --missing=drop'
    return Issue('phase_missing', 'error', value, fix if lost else fix + ' or --missing=copy')
