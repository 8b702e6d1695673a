"""Loose files: images and label maps found by two patterns and paired by their common part.

`--images='*_ct.nii.gz' --labels='*_seg.nii.gz'` makes the case `a` of `a_ct.nii.gz` and
`a_seg.nii.gz`: a case is what the `*` of the file name stands for. `--images='*/dicom'` makes
the case `a` of the folder `a/dicom` with a DICOM series, and `'*.zip'` that of `a.zip`.
"""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from maxquery_jax.data.findings import Issue
from maxquery_jax.data.raw import RawCase, RawDataset, leaves_folder
from maxquery_jax.errors import UserError


def parse_label_names(text: str) -> dict[int, str]:
    """`0:background,1:liver` to `{0: 'background', 1: 'liver'}`; background may be left out.

    Raises:
        UserError: an entry has no id or no name, or an id occurs twice.
    """
    labels: dict[int, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(','))):
        raw, colon, name = (part.strip() for part in entry.partition(':'))
        if not (colon and raw.isdecimal() and name):
            raise UserError(f'--label_names: {entry!r} is not ID:NAME, such as 1:liver')
        if int(raw) in labels:
            raise UserError(f'--label_names: id {raw} is named twice')
        labels[int(raw)] = name
    return {0: labels.pop(0, 'background'), **labels}


def read_pairs(
    source: str | os.PathLike,
    images: Sequence[str],
    labels: str | None,
    label_names: Mapping[int, str],
    channels: Sequence[str] = (),
) -> RawDataset:
    """Lists image and label files, or folders that stand for one, below a folder.

    Args:
        source: the folder.
        images: one pattern per channel, relative to it, with one `*` in the file name, or in one
            of the folders where the name has none.
        labels: pattern of the label maps; None for an unlabelled data set.
        label_names: id to name, with 0.
        channels: names of the channels; `CT`, or `channel0`, `channel1`, ... if empty.

    Raises:
        UserError: the folder is missing, a pattern is malformed or matches nothing.
    """
    source = pathlib.Path(source)
    if not source.is_dir():
        raise UserError(f'{source}: is not a folder')
    if not images:
        raise UserError("--images: give a pattern such as '*_ct.nii.gz'")
    found = [_match(source, pattern, '--images') for pattern in images]
    label_of = _match(source, labels, '--labels') if labels else {}
    ids = sorted(set().union(*found))
    cases, problems = [], []
    for case_id in ids:
        absent = [i for i, files in enumerate(found) if case_id not in files]
        for channel in absent:
            expected = images[channel].replace('*', case_id)
            issue = Issue('missing_file', 'error', 'does not exist', 'add it or drop the case')
            problems.append((case_id, expected, issue))
        if not absent:
            paths = tuple(files[case_id] for files in found)
            cases.append(RawCase(case_id, paths, label_of.get(case_id)))
    for case_id in sorted(set(label_of) - set(ids)):
        issue = Issue('missing_file', 'error', 'label without an image', 'add it or drop the label')
        problems.append((case_id, label_of[case_id], issue))
    default = ['CT'] if len(images) == 1 else [f'channel{i}' for i in range(len(images))]
    if channels and len(channels) != len(images):
        raise UserError(f'--channels: {len(channels)} names for {len(images)} patterns in --images')
    return RawDataset(
        name=source.resolve().name,
        source=source,
        channels=tuple(channels or default),
        cases=tuple(cases),
        raw_labels=label_names,
        problems=tuple(problems),
        notes=()
        if labels
        else ('no --labels: every case is unlabelled and goes to the test split',),
    )


def _match(source: pathlib.Path, pattern: str, flag: str) -> dict[str, str]:
    """Case id to relative path."""
    parts = pattern.rstrip('/').split('/')
    starred = [i for i, part in enumerate(parts) if '*' in part]
    level = len(parts) - 1 if starred[-1:] == [len(parts) - 1] else (starred or [0])[0]
    is_clear = level == len(parts) - 1 or len(starred) == 1
    name = parts[level]
    if (
        leaves_folder(pattern)
        or not is_clear
        or name.count('*') != 1
        or any(c in name for c in '?[]')
    ):
        raise UserError(
            f'{flag}={pattern}: give a path inside the source folder with one * in the file name, '
            "such as 'scans/*_ct.nii.gz', or in one folder, such as '*/dicom'"
        )
    before, after = name.split('*')
    wanted = re.compile(re.escape(before) + '(.+)' + re.escape(after))
    files: dict[str, str] = {}
    for path in sorted(source.glob(pattern)):
        relative = path.relative_to(source).as_posix()
        match = wanted.fullmatch(relative.split('/')[level - len(parts)])  # ** is any depth
        if not match or (path.is_dir() and path.name.startswith('.')):
            continue
        if match[1] in files:
            raise UserError(
                f'{flag}={pattern}: {files[match[1]]} and {relative} are both case {match[1]!r}; '
                'prepare the folders one by one'
            )
        files[match[1]] = relative
    if not files:
        where = source / '/'.join(parts[:-1])
        raise UserError(f'{flag}={pattern}: matches nothing below {source}; look into {where}')
    return files
