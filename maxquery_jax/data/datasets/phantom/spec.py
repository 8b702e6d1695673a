"""What a phantom cohort consists of: the specification and the list of its cases."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from maxquery_jax.data.datasets.phantom import case, tissues, tumours
from maxquery_jax.data.datasets.phantom.patient import stream
from maxquery_jax.errors import UserError

SECOND_TUMOUR_RATE = 0.15  # share of known-tumour patients with a second known kind
SEEN_PAN_TUMOURS = ('kidney_tumor', 'liver_tumor')  # ZePT Table 8


@dataclasses.dataclass(frozen=True)
class Task:
    """Labels of a task.

    Attributes:
        region: default field of view.
        organs: organ labels in id order.
        inliers: known tumour labels to their types.
        ood: unknown (held out) tumour labels to their types.
    """

    region: str
    organs: tuple[str, ...]
    inliers: Mapping[str, tuple[str, ...]]
    ood: Mapping[str, tuple[str, ...]]

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels by id, background first."""
        return ('background', *self.organs, *self.inliers, *self.ood)

    @property
    def roles(self) -> dict[str, str]:
        """Label to role."""
        groups = (
            ('background', ('background',)),
            ('organ', self.organs),
            ('tumour', tuple(self.inliers)),
            ('ood', tuple(self.ood)),
        )
        return {name: role for role, names in groups for name in names}

    @property
    def label_of(self) -> dict[str, str]:
        """Tumour type to label."""
        both = {**self.inliers, **self.ood}
        return {name: label for label, names in both.items() for name in names}


TASKS = {
    'liver': Task('liver', ('liver',), tumours.LIVER_INLIERS, tumours.LIVER_OOD),
    'pancreas': Task('pancreas', ('pancreas',), tumours.PANCREAS_INLIERS, tumours.PANCREAS_OOD),
    'abdomen': Task(
        'torso',
        tissues.ORGANS,
        {name: tumours.PAN_TUMOURS[name] for name in SEEN_PAN_TUMOURS},
        {
            name: types
            for name, types in tumours.PAN_TUMOURS.items()
            if name not in SEEN_PAN_TUMOURS
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class AnnotatedGroup:
    """One data set of a cohort of partially labelled data sets (as ZePT's Table 7).

    Attributes:
        name: its folder.
        annotated: labels it annotates; everything else is written as what contains it
            (an unannotated tumour as its organ, liver vessels as liver) or as background.
        tumours: tumour labels that its patients have; none for healthy patients.
        num_train, num_val, num_test: cases.
    """

    name: str
    annotated: tuple[str, ...]
    tumours: tuple[str, ...] = ()
    num_train: int = 0
    num_val: int = 0
    num_test: int = 0


@dataclasses.dataclass(frozen=True)
class CohortSpec:
    """A phantom cohort; everything about it follows from these values.

    Attributes:
        task: 'liver' or 'pancreas' (MaxQuery Sec. 6.1) or 'abdomen' (ZePT Table 8).
        num_train, num_val, num_test_inlier, num_test_ood: cases; held-out tumours occur only in
            the last kind. Ignored if there are `annotated_groups`.
        shape_zyx: voxels.
        spacing_mm: (z, y, x).
        phases: contrast phases, one channel each.
        seed: of the cohort.
        region: field of view, by default the task's.
        reference_phase: the phase of the labels; by default late arterial for pancreas (as the
            paper registers) and venous otherwise, if they are there, else the first.
        ood_labels: tumour labels to hold out instead of the task's.
        annotated_groups: several partially labelled data sets instead of one.
        organs: organ labels to annotate instead of all of the task's; the others count to what
            contains them, or to background.
        tumours: tumour labels that occur instead of all of the task's, known or held out.

    Raises:
        UserError: if a value is unusable.
    """

    task: str = 'liver'
    num_train: int = 32
    num_val: int = 4
    num_test_inlier: int = 8
    num_test_ood: int = 8
    shape_zyx: tuple[int, int, int] = (40, 80, 80)
    spacing_mm: tuple[float, float, float] = (5.0, 4.0, 4.0)
    phases: tuple[str, ...] = ('venous',)
    seed: int = 0
    region: str | None = None
    reference_phase: str | None = None
    ood_labels: tuple[str, ...] | None = None
    annotated_groups: tuple[AnnotatedGroup, ...] = ()
    organs: tuple[str, ...] | None = None
    tumours: tuple[str, ...] | None = None

    def __post_init__(self):
        """Normalises sequences (configs hold lists) and checks every value."""
        if self.task not in TASKS:
            raise UserError(f'phantom task {self.task!r} is unknown; use one of {", ".join(TASKS)}')
        put = object.__setattr__
        put(self, 'shape_zyx', tuple(self.shape_zyx))
        put(self, 'spacing_mm', tuple(float(mm) for mm in self.spacing_mm))
        put(self, 'phases', tuple(self.phases))
        for name in ('ood_labels', 'organs', 'tumours'):
            if getattr(self, name) is not None:
                put(self, name, tuple(getattr(self, name)))
        put(self, 'annotated_groups', tuple(_as_group(group) for group in self.annotated_groups))
        if self.region is None:
            put(self, 'region', TASKS[self.task].region)
        put(self, 'reference_phase', self.reference_phase or self._default_reference())
        case.check_arguments(
            self.shape_zyx, self.spacing_mm, self.phases, self.region, self.reference_phase
        )
        for name in ('num_train', 'num_val', 'num_test_inlier', 'num_test_ood', 'seed'):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UserError(f'phantom {name} {value!r} must be an integer of at least 0')
        self._check_labels()

    def _default_reference(self) -> str:
        wanted = 'arterial_late' if self.task == 'pancreas' else 'venous'
        for phase in (wanted, 'venous'):
            if phase in self.phases:
                return phase
        return self.phases[0] if self.phases else ''

    def _check_labels(self) -> None:
        base = TASKS[self.task]
        lesions = (*base.inliers, *base.ood)
        for field, known, kind in (
            ('ood_labels', lesions, 'a tumour'),
            ('tumours', lesions, 'a tumour'),
            ('organs', base.organs, 'an organ'),
        ):
            for name in getattr(self, field) or ():
                if name not in known:
                    raise UserError(
                        f'phantom {field}: {name!r} is not {kind} of {self.task}: {known}'
                    )
        if self.num_train and not self.annotated_groups and not self.resolved_task.inliers:
            raise UserError('phantom ood_labels hold out every tumour; leave one for training')
        names = [group.name for group in self.annotated_groups]
        if len(set(names)) < len(names):
            raise UserError(f'phantom annotated_groups repeat a name: {names}')
        for group in self.annotated_groups:
            for name in group.annotated:
                if name not in base.labels[1:]:
                    raise UserError(
                        f'phantom group {group.name!r} annotates {name!r}, which is not a label of '
                        f'{self.task}: {base.labels[1:]}'
                    )
            for name in group.tumours:
                if name not in lesions:
                    raise UserError(
                        f'phantom group {group.name!r}: {name!r} is not a tumour of {self.task}: '
                        f'{lesions}'
                    )

    @property
    def resolved_task(self) -> Task:
        """The task with `ood_labels`, `organs` and `tumours` applied."""
        base = TASKS[self.task]
        every = {**base.inliers, **base.ood}
        kinds = every if self.tumours is None else {name: every[name] for name in self.tumours}
        unknown = tuple(base.ood) if self.ood_labels is None else self.ood_labels
        return dataclasses.replace(
            base,
            organs=base.organs if self.organs is None else self.organs,
            inliers={name: types for name, types in kinds.items() if name not in unknown},
            ood={name: types for name, types in kinds.items() if name in unknown},
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for dataset.json; `CohortSpec(**value)` restores it."""
        return dataclasses.asdict(self)


def _as_group(value: AnnotatedGroup | Mapping[str, Any]) -> AnnotatedGroup:
    if isinstance(value, AnnotatedGroup):
        group = value
    else:
        known = [field.name for field in dataclasses.fields(AnnotatedGroup)]
        unknown = [name for name in value if name not in known]
        if unknown or 'name' not in value:
            raise UserError(f'phantom annotated_groups: fields are {known}, not {sorted(value)}')
        group = AnnotatedGroup(**{'annotated': (), **value})
    if not group.name or not all(c.isalnum() or c in '_-' for c in group.name):
        raise UserError(
            f'phantom group name {group.name!r} becomes a folder; use letters, digits, _ and -'
        )
    return dataclasses.replace(
        group, annotated=tuple(group.annotated), tumours=tuple(group.tumours)
    )


@dataclasses.dataclass(frozen=True)
class CasePlan:
    """What one case shows.

    Attributes:
        case_id: file name without extension.
        index: of the patient.
        split: 'train', 'val' or 'test'.
        choices: tumour types to try in turn until one's organ is in the field of view; empty for
            a healthy patient.
        second: a further tumour type or None.
    """

    case_id: str
    index: int
    split: str
    choices: tuple[str, ...]
    second: str | None = None


def plan_cases(spec: CohortSpec, group: AnnotatedGroup | None = None) -> list[CasePlan]:
    """Lists the cases of a cohort, or of one of its groups.

    Labels take turns in shuffled order, types within a label likewise, so that small cohorts
    have every label.
    """
    task = spec.resolved_task
    everything = {**task.inliers, **task.ood}
    first = 0
    if group is None:
        parts = (
            ('train', spec.num_train, task.inliers),
            ('val', spec.num_val, task.inliers),
            ('test', spec.num_test_inlier, task.inliers),
            ('test', spec.num_test_ood, task.ood),
        )
    else:
        own = {name: everything[name] for name in group.tumours}
        parts = tuple(
            (split, getattr(group, f'num_{split}'), own) for split in ('train', 'val', 'test')
        )
        for other in spec.annotated_groups:
            if other.name == group.name:
                break
            first += other.num_train + other.num_val + other.num_test
    plans: list[CasePlan] = []
    for number, (split, count, labels) in enumerate(parts):
        start = first + len(plans)
        rng = stream(spec.seed, start, f'plan/{number}')
        known = group is None and labels is task.inliers
        plans += _plan_part(rng, split, start, count, labels, known)
    return plans


def _plan_part(rng, split, start, count, labels, allow_second) -> list[CasePlan]:
    order = [list(labels)[n] for n in rng.permutation(len(labels))]
    offsets = {label: int(rng.integers(len(types))) for label, types in labels.items()}
    plans = []
    for n in range(count):
        turns = order[n % len(order) :] + order[: n % len(order)] if order else []
        lap = n // max(len(order), 1)
        choices = tuple(
            labels[label][(offsets[label] + lap) % len(labels[label])] for label in turns
        )
        second = None
        if rng.random() < SECOND_TUMOUR_RATE and allow_second and len(choices) > 1:
            second = choices[int(rng.integers(1, len(choices)))]
        index = start + n
        plans.append(CasePlan(f'phantom_{index:04d}', index, split, choices, second))
    return plans
