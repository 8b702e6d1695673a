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
        folds: of a cross-validation over the cases that do not test; None for none. The default
            test fraction with five folds gives the 64/16/20 of MaxQuery Sec. 4.1 five times, with
            one test set; nnU-Net's five folds over all cases are `folds=5, test_fraction=0`.
        fold: which of the folds validates, from 0.
    """

    mode: str = 'random'
    val_fraction: float = 0.16  # 64/16/20, MaxQuery Sec. 4.1
    test_fraction: float = 0.2
    seed: int = 0
    given: Mapping[str, Sequence[str]] | None = None
    folds: int | None = None
    fold: int | None = None

    def __post_init__(self):
        fractions = (self.val_fraction, self.test_fraction)
        if self.mode not in ('random', 'all_train'):
            raise UserError(f'--split={self.mode}: use random or all_train')
        if min(fractions) < 0 or sum(fractions) >= 1:
            raise UserError(
                f'--val_fraction={fractions[0]:g} and --test_fraction={fractions[1]:g}: give '
                'fractions that leave cases for training'
            )
        self._check_folds()

    def _check_folds(self) -> None:
        if self.folds is None and self.fold is None:
            return
        if self.folds is None or self.fold is None:
            raise UserError('--folds and --fold: give both, such as --folds=5 --fold=0')
        if self.folds < 2 or not 0 <= self.fold < self.folds:
            raise UserError(
                f'--folds={self.folds} --fold={self.fold}: folds are two or more, counted from 0'
            )
        if self.given is not None or self.mode == 'all_train':
            raise UserError('--folds divides the cases; drop --splits and --split=all_train')


def make_splits(
    case_ids: Sequence[str],
    test_only: Collection[str],
    options: SplitOptions,
    *,
    test: Collection[str] = (),
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Divides cases into train, val and test.

    The order in which cases are drawn depends on each id and the seed alone, so adding a case
    leaves the relative order of the others as it was.

    Args:
        case_ids: of all cases.
        test_only: cases that must not train: with OOD classes, or without labels.
        options: fractions, folds and seed; `given` is not looked at.
        test: the data set's own test cases; then no others are drawn for testing.

    Returns:
        Split name to sorted case ids, and notes for the user.

    Raises:
        UserError: fewer cases than folds.
    """
    held_out = (set(test_only) | set(test)) & set(case_ids)
    free = sorted(set(case_ids) - held_out)
    free.sort(key=lambda i: hashlib.sha256(f'{options.seed}/{i}'.encode()).digest())
    if test:
        kept = 1 - options.test_fraction
        options = dataclasses.replace(
            options, test_fraction=0.0, val_fraction=options.val_fraction / kept
        )
    num_val, num_test = _sizes(len(free), options)
    notes = []
    if options.mode == 'random' and len(free) < 3:
        parts = {0: 'no case can train', 1: 'the only case trains; val and test are empty'}
        note = parts.get(len(free), 'two cases: val is empty')
        notes.append(f'{note} (cases that can train: {len(free)})')
    val = free[num_test : num_test + num_val]
    if options.folds is not None and options.fold is not None:
        val = _fold(free[num_test:], options.folds, options.fold)
    splits = {
        'test': (*free[:num_test], *held_out),
        'val': val,
        'train': [i for i in free[num_test:] if i not in set(val)],
    }
    return {name: tuple(sorted(splits[name])) for name in SPLITS}, notes


def _fold(case_ids: Sequence[str], folds: int, fold: int) -> Sequence[str]:
    """Part number `fold` of `folds` parts whose sizes differ by at most one."""
    if len(case_ids) < folds:
        raise UserError(
            f'--folds={folds}: only {len(case_ids)} cases can train or validate; use fewer folds'
        )
    return case_ids[len(case_ids) * fold // folds : len(case_ids) * (fold + 1) // folds]


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
