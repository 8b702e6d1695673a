"""What a check found in a file: named, with a value and a way out.

Every problem has a short name (a key of `CHECKS`), so that a table, a JSON file and
`--allow=NAME` speak of the same thing.
"""

import dataclasses
from collections.abc import Collection

from maxquery_jax.errors import UserError

CHECKS = {
    'missing_file': 'a file of the data set is absent',
    'unreadable': 'a file cannot be opened: permissions, a folder, a loop of symbolic links',
    'path': 'a path of dataset.json leaves the source folder',
    'case_name': 'a case name cannot be a file name, or two names differ only in case',
    'format': 'not gzip, not NIfTI, or a kind of NIfTI that is not supported',
    'truncated': 'the file ends before its last voxel',
    'corrupt': 'the compressed data fail their checksum',
    'too_large': 'the voxels do not fit into the memory allowed',
    'dimensions': 'not a 3D volume',
    'squeezed': 'a fourth axis of length 1 was dropped',
    'dtype': 'complex, RGB, binary or 128-bit voxels',
    'scaling': 'scl_slope or scl_inter is not a finite number of usual size',
    'spacing': 'zero, negative or non-finite voxel size',
    'spacing_units': 'the voxel size looks wrong: units other than mm, or out of any CT range',
    'affine_singular': 'the affine maps the volume onto a plane',
    'affine_sheared': 'the axes are not at right angles (gantry tilt)',
    'qform_sform': 'the two affines of the header disagree',
    'orientation_unknown': 'the header holds no affine, so left and right are unknown',
    'trailing_bytes': 'the file holds more bytes than its header promises',
    'nonfinite': 'NaN or infinite voxels',
    'value_range': 'voxel values that do not fit into 16-bit HU (32-bit for labels)',
    'normalised': 'the image holds fractions of a narrow range: no longer HU',
    'hu_suspicious': 'the range is unusual for HU: offset missing, 8-bit, or metal',
    'label_not_integer': 'a label map holds fractions or NaN',
    'label_unknown': 'a label map holds ids that the data set does not name',
    'left_right': 'the right and left side of a paired organ cannot be told apart for certain',
    'mask_overlap': 'masks of a case cover the same voxels',
    'missing_label': 'a case has no label map',
    'shape_mismatch': 'the files of a case differ in shape',
    'affine_mismatch': 'the files of a case lie at different places',
    'foreground_absent': 'a label map holds background only',
    'anisotropy': 'the largest voxel edge is over 10 times the smallest',
    'single_slice': 'an axis has length 1',
    'archive': 'a .zip is damaged, encrypted or unsafe: paths outside, links, implausible sizes',
    'dicom_series': 'a folder or .zip holds no CT series, or several',
    'dicom_modality': 'a DICOM series is no CT',
    'dicom_geometry': 'slices of a series lack their position or differ in size or orientation',
    'dicom_gap': 'slices of a series are missing or unevenly spaced',
    'dicom_duplicate': 'two slices of a series lie at one place',
    'dicom_syntax': 'DICOM voxels are encoded in a way that cannot be read here',
    'duplicate': 'two cases hold the same voxels',
    'ood_in_train': 'a case with an unknown tumour is listed for training or validation',
    'phase_missing': 'a case lacks one of its phases',
    'registration_failed': 'a phase could not be registered',
    'registration_worse': 'a registered phase agrees less with the reference than before',
    'registration_folding': 'the transform of a phase folds space',
    'registration_overlap': 'the bodies of a phase and of the reference hardly overlap',
    'registration_coverage': 'a phase shows only a part of the body in the reference',
}


@dataclasses.dataclass(frozen=True)
class Issue:
    """One finding about one file.

    Attributes:
        check: a key of `CHECKS`.
        severity: 'error' or 'warning'.
        value: what was found, with numbers.
        fix: what to do about it.
    """

    check: str
    severity: str
    value: str
    fix: str

    def __str__(self) -> str:
        return f'{self.check}: {self.value}; {self.fix}'


class FileError(UserError):
    """An error finding about a file; the message is one line with file, problem and fix."""

    def __init__(self, path: object, issue: Issue):
        super().__init__(f'{path}: {issue}')
        self.path = str(path)
        self.issue = issue


class Findings:
    """Collects the findings about one file; errors named in `allow` count as warnings."""

    def __init__(self, path: object, allow: Collection[str] = ()):
        self.path = path
        self.allow = frozenset(allow)
        self.issues: list[Issue] = []

    def warn(self, check: str, value: str, fix: str) -> None:
        """Records a warning."""
        self.issues.append(Issue(check, 'warning', value, fix))

    def error(self, check: str, value: str, fix: str) -> None:
        """Records an error after which reading can go on."""
        if check in self.allow:
            self.warn(check, value, f'accepted by --allow={check}')
        else:
            self.issues.append(Issue(check, 'error', value, fix))

    def fatal(self, check: str, value: str, fix: str) -> FileError:
        """The exception for an error after which nothing can be read; the caller raises it."""
        return FileError(self.path, Issue(check, 'error', value, fix))

    def raise_first_error(self) -> None:
        """Raises `FileError` for the first error recorded, if any."""
        for issue in self.issues:
            if issue.severity == 'error':
                raise FileError(self.path, issue)


def validate_allow(allow: Collection[str]) -> frozenset[str]:
    """The names as a set.

    Raises:
        UserError: a name is not a key of `CHECKS`.
    """
    for name in allow:
        if name not in CHECKS:
            raise UserError(f'--allow: no check is called {name!r}; checks: {", ".join(CHECKS)}')
    return frozenset(allow)
