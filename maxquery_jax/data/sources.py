"""Opens a raw data set by the name of its layout."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from maxquery_jax.data.datasets.decathlon import read_decathlon
from maxquery_jax.data.datasets.pairs import parse_label_names, read_pairs
from maxquery_jax.data.datasets.phantom import CohortSpec, write_cohort
from maxquery_jax.data.labels import LabelTable, RoleFlags, build_label_table
from maxquery_jax.data.raw import RawDataset
from maxquery_jax.data.workers import Progress
from maxquery_jax.errors import UserError

LAYOUTS = {
    'decathlon': 'a folder with dataset.json: Medical Segmentation Decathlon, nnU-Net v1 or v2 raw',
    'pairs': 'loose files found by --images and --labels, named by --label_names',
    'phantom': 'the built-in synthetic cohort; written into --source if nothing is there',
}


@dataclasses.dataclass(frozen=True)
class PairOptions:
    """How loose files become cases; the layout 'pairs' only.

    Attributes:
        images: one pattern per channel, such as `*_ct.nii.gz`.
        labels: pattern of the label maps, '' for none.
        label_names: names of the ids, such as `1:liver,2:tumour`.
        channels: names of the channels.
    """

    images: tuple[str, ...] = ()
    labels: str = ''
    label_names: str = ''
    channels: tuple[str, ...] = ()


def open_source(
    dataset: str,
    source: str | os.PathLike,
    *,
    pairs: PairOptions | None = None,
    roles: RoleFlags | None = None,
) -> tuple[RawDataset, LabelTable]:
    """Lists the cases of a raw data set and decides the ids of its labels.

    Args:
        dataset: a key of `LAYOUTS`.
        source: the folder.
        pairs: patterns of the layout 'pairs'.
        roles: which labels are organ, tumour, ood or ignored.

    Raises:
        UserError: unknown layout, an option of another layout, or a malformed data set.
    """
    if dataset not in LAYOUTS:
        known = '; '.join(f'{name}: {text}' for name, text in LAYOUTS.items())
        raise UserError(f'--dataset={dataset}: unknown layout. {known}')
    if not str(source):
        raise UserError('--source: give the folder of the raw data')
    pairs = pairs or PairOptions()
    if dataset != 'pairs':
        for field in dataclasses.fields(PairOptions):
            if getattr(pairs, field.name):
                raise UserError(f'--{field.name} belongs to --dataset=pairs, not {dataset}')
        raw = read_decathlon(pathlib.Path(source))
    else:
        if pairs.labels and not pairs.label_names:
            raise UserError(
                '--label_names: name the ids of the label files, as in 1:liver,2:tumour'
            )
        names = parse_label_names(pairs.label_names)
        raw = read_pairs(source, pairs.images, pairs.labels or None, names, pairs.channels)
    return raw, build_label_table(raw.raw_labels, roles, raw.roles)


def write_phantom(
    source: str | os.PathLike,
    spec: Mapping[str, Any],
    *,
    workers: int | None = None,
    progress: bool = False,
) -> None:
    """Writes the phantom cohort into a folder that does not hold it yet.

    Args:
        source: the folder.
        spec: fields of `phantom.CohortSpec`; what is left out keeps its default. Empty means
            whatever cohort is there, or the default one.
        workers: processes; None for two.
        progress: whether to print a progress line.

    Raises:
        UserError: unknown field, a value of the wrong kind, or another data set in the folder.
    """
    if not spec and (pathlib.Path(source) / 'dataset.json').exists():
        return
    known = [field.name for field in dataclasses.fields(CohortSpec)]
    for name in spec:
        if name not in known:
            raise UserError(f'phantom: no field {name!r}; fields: {", ".join(known)}')
    spec = {
        name: (value,) if name in ('phases', 'ood_labels') and isinstance(value, str) else value
        for name, value in spec.items()
    }
    try:
        cohort = CohortSpec(**spec)
    except (TypeError, ValueError) as error:
        raise UserError(f'phantom: {error}') from error
    if cohort.annotated_groups:
        names = ', '.join(group.name for group in cohort.annotated_groups)
        raise UserError(
            f'phantom: annotated_groups make several data sets ({names}); write them with '
            'phantom.write_cohort and prepare each as decathlon'
        )
    line: Progress | None = None

    def on_case(case_id: str, _: int, total: int) -> None:
        nonlocal line
        line = line or Progress('phantom', total)
        line.step(case_id)

    if workers is None:
        workers = min(2, os.cpu_count() or 1)
    write_cohort(source, cohort, workers=workers, on_case=on_case if progress else None)
