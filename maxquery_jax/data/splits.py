"""Which case trains, validates or tests; a pure function of case ids and seed."""

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence

from maxquery_jax.errors import UserError

SPLITS = ('train', 'val', 'test')


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """How to divide cases that the data set itself does not divide.

    Attributes:
        mode: 'random', or 'all_train'.
        val_fraction: of the cases.
        test_fraction: of the cases.
        seed: of the order in which cases are drawn.
        given: split name to case ids; wins over everything else.
    """

    mode: str = 'random'
    val_fraction: float = 0.16  # 64/16/20, MaxQuery Sec. 4.1
    test_fraction: float = 0.2
    seed: int = 0
    given: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self):
        fractions = (self.val_fraction, self.test_fraction)
        if self.mode not in ('random', 'all_train'):
            raise UserError(f'--split={self.mode}: use random or all_train')
        if min(fractions) < 0 or sum(fractions) >= 1:
            raise UserError(
                f'--val_fraction={fractions[0]:g} and --test_fraction={fractions[1]:g}: give '
                'fractions that leave cases for training'
            )


def make_splits(
    case_ids: Sequence[str], test_only: Collection[str], options: SplitOptions
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Divides cases into train, val and test.

    The order in which cases are drawn depends on each id and the seed alone, so adding a case
    leaves the relative order of the others as it was.

    Args:
        case_ids: of all cases.
        test_only: cases that must not train: with OOD classes, or without labels.
        options: fractions and seed; `given` is not looked at.

    Returns:
        Split name to sorted case ids, and notes for the user.
    """
    free = sorted(set(case_ids) - set(test_only))
    free.sort(key=lambda i: hashlib.sha256(f'{options.seed}/{i}'.encode()).digest())
    num_val, num_test = _sizes(len(free), options)
    notes = []
    if options.mode == 'random' and len(free) < 3:
        parts = {0: 'no case can train', 1: 'the only case trains; val and test are empty'}
        note = parts.get(len(free), 'two cases: val is empty')
        notes.append(f'{note} (cases that can train: {len(free)})')
    splits = {
        'test': (*free[:num_test], *sorted(set(test_only) & set(case_ids))),
        'val': free[num_test : num_test + num_val],
        'train': free[num_test + num_val :],
    }
    return {name: tuple(sorted(splits[name])) for name in SPLITS}, notes


def _sizes(count: int, options: SplitOptions) -> tuple[int, int]:
    """Numbers of val and test cases; at least one each where a fraction asks for any."""
    if options.mode == 'all_train' or count < 2:
        return 0, 0
    if count == 2:
        return 0, int(options.test_fraction > 0)
    num_val, num_test = (
        max(round(fraction * count), int(fraction > 0))
        for fraction in (options.val_fraction, options.test_fraction)
    )
    while num_val + num_test >= count:
        num_val, num_test = (
            (num_val - 1, num_test) if num_val > num_test else (num_val, num_test - 1)
        )
    return num_val, num_test
