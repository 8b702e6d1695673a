"""The table of bad inputs: how each is made, what a command must say, and its exit code.

It follows ECOSYSTEM 5.2 and 5.3 row by row. A fixture is a folder `raw` in the Decathlon layout
with a sound case `b` and a case `a` of which one thing is wrong.
"""

import dataclasses
import gzip
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import nifti_helper as helper
import numpy as np

from maxquery_jax.data.labels import RoleFlags
from maxquery_jax.data.scan import ReadOptions
from maxquery_jax.data.splits import SplitOptions

SHAPE = (16, 14, 10)
AFFINE = helper.affine_of((1.5, 1.5, 3.0), 'LPS')
IMAGE, LABEL = helper.blob_case(0, SHAPE)
QFORM = {'qform_code': 1, 'quatern': (0, 0, 0), 'qoffset': (0, 0, 0)}
DATA, ALL = ('check', 'prepare'), ('check', 'prepare', 'predict')


@dataclasses.dataclass(frozen=True)
class Bad:
    """One bad input.

    Attributes:
        name: of the test.
        make: fills a folder, and returns options of the verbs beyond the defaults.
        check: name of the finding; '' where the data set cannot even be listed.
        words: regular expression found in the line.
        code: exit code.
        verbs: the commands that must notice.
        file: whose finding it is.
    """

    name: str
    make: Callable[[pathlib.Path], dict[str, Any] | None]
    check: str
    words: str
    code: int = 2
    verbs: tuple[str, ...] = ALL
    file: str = 'imagesTr/a.nii.gz'


def raw(folder: pathlib.Path, names='ab', **extra) -> pathlib.Path:
    """A sound data set."""
    cases = {name: helper.blob_case(i, SHAPE) for i, name in enumerate(names)}
    return helper.decathlon(folder, cases, extra=extra)


@dataclasses.dataclass(frozen=True)
class Damage:
    """What is wrong with the files of one case.

    Attributes:
        folders: of the files that are changed.
        change: a function of a file's path.
        options: see `Bad.make`.
    """

    folders: tuple[str, ...]
    change: Callable[[pathlib.Path], object]
    options: dict[str, Any] | None = None

    def apply(self, folder: pathlib.Path, case: str) -> None:
        """Damages a case of a sound data set."""
        for sub in self.folders:
            self.change(folder / sub / f'{case}.nii.gz')

    def __call__(self, folder):
        self.apply(raw(folder), 'a')
        return self.options


def image(change, options=None):
    """Damages the image of case `a` by a function of its path."""
    return Damage(('imagesTr',), change, options)


def label(change):
    """Damages the label map of case `a`."""
    return Damage(('labelsTr',), change)


def both(crop, affine=AFFINE):
    """Writes image and label of a case anew."""

    def change(path):
        array = IMAGE if path.parent.name == 'imagesTr' else LABEL
        helper.write(path, crop(array), affine)

    return Damage(('imagesTr', 'labelsTr'), change)


def bare(change):
    """Damages the bytes of an uncompressed image."""

    def make(folder):
        raw(folder)
        data = gzip.decompress((folder / 'imagesTr' / 'a.nii.gz').read_bytes())
        (folder / 'imagesTr' / 'a.nii.gz').unlink()
        (folder / 'imagesTr' / 'a.nii').write_bytes(change(data))
        listing = json.loads((folder / 'dataset.json').read_text())
        listing['training'][0]['image'] = './imagesTr/a.nii'
        (folder / 'dataset.json').write_text(json.dumps(listing))

    return make


def data(content):
    """Other bytes in place of the file."""
    return lambda path: path.write_bytes(content)


def voxels(array, affine=AFFINE, **changes):
    """Other voxels or header fields in place of the file."""
    return lambda path: helper.write(path, array, affine, **changes)


def put(value, dtype):
    """The image with one other voxel."""
    array = IMAGE.astype(dtype)
    array[3, 3, 3] = value
    return array


def label_of(value, dtype='int16'):
    """A label map with one block of an id."""
    array = np.zeros(SHAPE, dtype)
    array[2:6, 3:7, 4:6] = value
    return array


def cut(path):
    path.write_bytes(path.read_bytes()[:-300])


def break_crc(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 255
    path.write_bytes(content)


def loop(path):
    path.unlink()
    path.symlink_to(path)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def device(path):
    path.unlink()
    path.symlink_to('/dev/zero')


def folder_in_place(path):
    path.unlink()
    path.mkdir()


def shared(splits):
    """Case `b` with the voxels of case `a`."""

    def make(folder):
        raw(folder, 'abc')
        for sub in ('imagesTr', 'labelsTr'):
            content = (folder / sub / 'a.nii.gz').read_bytes()
            (folder / sub / 'b.nii.gz').write_bytes(content)
        return {'split': SplitOptions(given=splits)}

    return make


def listing(**extra):
    """Other keys in dataset.json; None removes one."""

    def make(folder):
        raw(folder)
        content = json.loads((folder / 'dataset.json').read_text()) | extra
        content = {key: value for key, value in content.items() if value is not None}
        (folder / 'dataset.json').write_text(json.dumps(content))

    return make


def listing_text(text):
    """A dataset.json that is no JSON object."""

    def make(folder):
        (raw(folder) / 'dataset.json').write_text(text)

    return make


def named(*names):
    """Cases of these names."""
    return lambda folder: raw(folder, names) and None


def listed_path(path):
    """A case whose image is listed at a path outside the folder."""

    def make(folder):
        helper.write(folder.parent / 'secret.nii.gz', IMAGE, AFFINE)
        entry = {'image': path, 'label': 'labelsTr/a.nii.gz'}
        listing(training=[entry, {'image': 'imagesTr/b.nii.gz', 'label': 'labelsTr/b.nii.gz'}])(
            folder
        )

    return make


def unseen_in_train(folder):
    raw(folder)
    helper.write(folder / 'labelsTr' / 'a.nii.gz', label_of(3), AFFINE)
    splits = {'train': ['a'], 'val': [], 'test': ['b']}
    return {'roles': RoleFlags(ood=('cyst',)), 'split': SplitOptions(given=splits)}


def unknown_in_splits(folder):
    raw(folder)
    return {'split': SplitOptions(given={'train': ['a', 'zzz'], 'val': [], 'test': ['b']})}


SHEARED, SINGULAR, MOVED = AFFINE.copy(), AFFINE.copy(), AFFINE.copy()
SHEARED[0, 1] = 0.2
SINGULAR[:3, 1] = SINGULAR[:3, 0]
MOVED[0, 3] += 1.5
TRAIN_TEST = {'train': ['a', 'c'], 'val': [], 'test': ['b']}
TOGETHER = {'train': ['a', 'b'], 'val': [], 'test': ['c']}
BUDGET = {'read': ReadOptions(max_bytes=100_000), 'predict': {'max_memory_gb': 0.001}}
EXTENSION = 'maxquery_jax'
LABELS = 'labelsTr/a.nii.gz'

FILES = [
    Bad('truncated_gz', image(cut), 'truncated', 'gzip stream of .* stops after'),
    Bad('truncated_nii', bare(lambda d: d[:-8]), 'truncated', r'4,480 bytes.*4,824 bytes',
        file='imagesTr/a.nii'),
    Bad('header_only', bare(lambda d: d[:100]), 'truncated', '100 of 348 header',
        file='imagesTr/a.nii'),
    Bad('wrong_crc', image(break_crc), 'corrupt', 'incorrect data check'),
    Bad('html', image(data(b'<html><body>404</body>')), 'format',
        "not a gzip file .starts with '<html>"),
    Bad('empty', image(data(b'')), 'format', 'not a gzip file .starts with nothing: 0 bytes'),
    Bad('empty_nii', bare(lambda d: b''), 'format', 'not a NIfTI file .* 0 bytes',
        file='imagesTr/a.nii'),
    Bad('html_inside_gz', image(data(gzip.compress(b'<html>' * 100))), 'format',
        "not a NIfTI file .starts with '<htm"),
    Bad('git_lfs', image(data(b'version https://git-lfs.github.com/spec/v1')), 'format', 'Git LFS'),
    Bad('gz_named_nii', bare(gzip.compress), 'format', 'is compressed', file='imagesTr/a.nii'),
    Bad('voxels_30000_cubed', image(voxels(IMAGE, dim=(3, 30000, 30000, 30000, 1, 1, 1, 1))),
        'truncated', r'needs 54,000,000,000,000 bytes, a file of'),
    Bad('more_than_the_header_says', image(voxels(IMAGE, dim=(3, 15, 14, 10, 1, 1, 1, 1))),
        'trailing_bytes', 'bytes follow the last voxel'),
    Bad('over_the_memory_budget', image(voxels(np.zeros((40, 40, 40), 'int16')), BUDGET),
        'too_large', 'GiB, the limit is', verbs=DATA),
    Bad('prediction_over_the_budget', image(lambda p: None, BUDGET), '',
        r'a\.nii\.gz: needs .* GB.*allowed are 0\.00 GB', verbs=('predict',)),
    Bad('image_missing', image(os.unlink), 'missing_file', 'does not exist', verbs=DATA),
    Bad('input_missing', image(os.unlink), '', r'a\.nii\.gz does not exist; check --input',
        verbs=('predict',)),
    Bad('label_missing', label(os.unlink), 'missing_file', 'does not exist', verbs=DATA,
        file=LABELS),
    Bad('symlink_loop', image(loop), 'unreadable', 'symbolic link|Symlink', verbs=DATA),
    Bad('pipe', image(pipe), 'unreadable', 'pipe or a device'),
    Bad('endless_device', image(device), 'unreadable', 'pipe or a device'),
    Bad('folder_in_place', label(folder_in_place), 'unreadable', 'folder', verbs=DATA, file=LABELS),
]  # fmt: skip
GEOMETRY = [
    Bad('four_d', image(voxels(np.zeros((16, 14, 20), np.int16),
                               dim=(4, 16, 14, 10, 2, 1, 1, 1))), 'dimensions', 'axis 3 has len'),
    Bad('two_d', image(voxels(IMAGE, dim=(2, 16, 14, 1, 1, 1, 1, 1))), 'dimensions', '2D'),
    Bad('trailing_singleton', image(voxels(IMAGE, dim=(4, 16, 14, 10, 1, 1, 1, 1))), 'squeezed',
        r'\[16, 14, 10, 1\]', code=0),
    Bad('zero_pixdim', image(voxels(IMAGE, pixdim=(1, 0, 1, 1, 0, 0, 0, 0))), 'spacing', '0 x 1'),
    Bad('nan_pixdim', image(voxels(IMAGE, pixdim=(1, 1, np.nan, 1, 0, 0, 0, 0))), 'spacing', 'nan'),
    Bad('singular_sform', image(voxels(IMAGE, SINGULAR)), 'affine_singular', 'sform'),
    Bad('impossible_qform', image(voxels(IMAGE, sform_code=0, qform_code=1, quatern=(1, 1, 0))),
        'affine_singular', 'quaternion'),
    Bad('sheared_sform', both(lambda a: a, SHEARED), 'affine_sheared', 'degrees', code=0),
    Bad('qform_and_sform', image(voxels(IMAGE, **QFORM)), 'qform_sform',
        r'sform \(LPS\) and qform \(RAS\) are up to [\d.]+ mm apart'),
    Bad('no_codes', image(voxels(IMAGE, sform_code=0)), 'orientation_unknown', 'are both 0'),
    Bad('metres', image(voxels(IMAGE, xyzt_units=1)), 'spacing_units', 'metres', code=0),
    Bad('anisotropy', both(lambda a: a, helper.affine_of((0.4, 0.4, 5), 'LPS')), 'anisotropy',
        'ratio 12.5', code=0, verbs=DATA),
    Bad('single_slice', both(lambda a: a[:, :, 4:5]), 'single_slice', r'\(1, 14, 16\)', code=0,
        verbs=DATA),
    Bad('below_a_patch', both(lambda a: a[2:5, 3:6, 2:5]), '', 'smaller than its patch', code=0,
        verbs=('predict',)),
    Bad('shape_mismatch', label(voxels(LABEL[:-1])), 'shape_mismatch', r'\(10, 14, 15\).*14, 16',
        verbs=DATA, file=LABELS),
    Bad('affine_mismatch', label(voxels(LABEL, MOVED)), 'affine_mismatch', 'up to 1.5 mm',
        verbs=DATA, file=LABELS),
]  # fmt: skip
VALUES = [
    Bad('nan', image(voxels(put(np.nan, 'float32'))), 'nonfinite', '1 NaN and 0 Inf of 2,240'),
    Bad('infinity', image(voxels(put(-np.inf, 'float64'))), 'nonfinite', '0 NaN and 1 Inf'),
    Bad('int64_in_range', image(voxels(IMAGE.astype('int64'))), '', '', code=0),
    Bad('int64_out_of_range', image(voxels(put(2**40, 'int64'))), 'value_range', 'outside 32-bit'),
    Bad('over_int16', image(voxels(put(70000, 'int32'))), 'value_range', 'to 70000, beyond 16'),
    Bad('scl_slope', image(voxels((IMAGE // 2).astype('int16'), scl_slope=2)), '', '', code=0),
    Bad('scl_slope_infinite', image(voxels(IMAGE, scl_slope=np.inf)), 'scaling', 'scl_slope inf'),
    Bad('complex', image(voxels(IMAGE, datatype=32, bitpix=64)), 'dtype', 'complex64'),
    Bad('colour', image(voxels(IMAGE, datatype=128, bitpix=24)), 'dtype', 'RGB'),
    Bad('normalised', image(voxels((IMAGE / 1200).astype('float32'))), 'normalised', 'fractions'),
    Bad('hu_offset', image(voxels((IMAGE + 1024).astype('int16'))), 'hu_suspicious',
        'no negative value', code=0),
    Bad('eight_bit', image(voxels((IMAGE % 256).astype('uint8'))), 'hu_suspicious', '8-bit',
        code=0),
    Bad('metal', image(voxels(put(9000, 'int16'))), 'hu_suspicious', 'above 4000', code=0),
]  # fmt: skip
LABEL_MAPS = [
    Bad('float_label', label(voxels(LABEL.astype('float32'))), '', '', code=0, verbs=DATA),
    Bad('interpolated_label', label(voxels(label_of(0.5, 'float32'))), 'label_not_integer',
        '32 fractions', verbs=DATA, file=LABELS),
    Bad('nan_label', label(voxels(label_of(np.nan, 'float32'))), 'label_not_integer', '32 NaN',
        verbs=DATA, file=LABELS),
    Bad('label_300', label(voxels(label_of(300))), 'label_unknown', r'300 \(32 voxels\)',
        verbs=DATA, file=LABELS),
    Bad('negative_label', label(voxels(label_of(-1))), 'label_unknown', r'-1 \(32 voxels\)',
        verbs=DATA, file=LABELS),
    Bad('unnamed_label', label(voxels(label_of(44))), 'label_unknown', r'44 \(32 voxels\)',
        verbs=DATA, file=LABELS),
    Bad('ids_with_gaps', listing(labels={'0': 'background', '2': 'tumour', '1': 'liver',
                                         '900': 'cyst'}), '', '', code=0, verbs=DATA),
    Bad('no_foreground', label(voxels(label_of(0))), 'foreground_absent', 'background only',
        code=0, verbs=DATA, file=LABELS),
    Bad('duplicate_across_splits', shared(TRAIN_TEST), 'duplicate', r'case a \(test and train\)',
        verbs=DATA, file='imagesTr/b.nii.gz'),
    Bad('duplicate_within_a_split', shared(TOGETHER), 'duplicate', 'same voxels as case a',
        code=0, verbs=DATA, file='imagesTr/b.nii.gz'),
    Bad('unknown_tumour_in_train', unseen_in_train, 'ood_in_train', 'listed for train', verbs=DATA,
        file=LABELS),
]  # fmt: skip
NAMES = [
    Bad('case_clash', named('Case_1', 'case_1'), 'case_name', 'one name where case', verbs=DATA,
        file='imagesTr/case_1.nii.gz'),
    Bad('unicode_clash', named('e\u0301tude', '\u00e9tude'), 'case_name', 'one name', verbs=DATA,
        file='imagesTr/\u00e9tude.nii.gz'),
    Bad('control_character', named('new\nline'), 'case_name', 'control character', verbs=DATA,
        file='imagesTr/new\nline.nii.gz'),
    Bad('spaces_and_unicode', named('a', "it's a F\u00e4lle \u65e5\u672c (1)"), '', '', code=0,
        verbs=DATA),
    Bad('climbing_path', listed_path('../secret.nii.gz'), 'path', 'leaves the source', verbs=DATA,
        file='../secret.nii.gz'),
    Bad('absolute_path', listed_path('/etc/secret.nii.gz'), 'path', 'leaves the source', verbs=DATA,
        file='/etc/secret.nii.gz'),
]  # fmt: skip
LISTINGS = [
    Bad(name, make, '', words, verbs=DATA, file='dataset.json')
    for name, make, words in [
        ('no_folder', lambda folder: None, 'is not a folder'),
        ('source_is_a_file', lambda folder: folder.touch(), 'is not a folder'),
        ('source_loop', lambda folder: folder.symlink_to(folder), 'is not a folder'),
        ('no_json', lambda f: (raw(f) / 'dataset.json').unlink(), 'json: does not exist'),
        ('broken_json', listing_text('{"labels": {'), 'json: is not JSON'),
        ('json_list', listing_text('[1, 2]'), 'holds a list, not an object'),
        ('deep_json', listing_text('[' * 100_000), 'json: (cannot be read|is not JSON)'),
        ('binary_json', lambda f: (raw(f) / 'dataset.json').write_bytes(b'\xff\xfe\0') and None,
         'json: is not JSON'),
        ('no_labels', listing(labels=None), "key 'labels' is missing"),
        ('labels_list', listing(labels=['background', 'liver']), "'labels' must be an object"),
        ('no_background', listing(labels={'1': 'liver'}), 'no id 0'),
        ('two_names_for_an_id', listing(labels={'0': 'background', 'liver': '0'}), 'two names'),
        ('label_without_id', listing(labels={'0': 'background', 'liver': 1.5}), 'no integer id'),
        ('region_labels', listing(labels={'0': 'background', 'all': [1, 2]}), 'is a region'),
        ('no_training', listing(training=None), "'training' is missing or no list"),
        ('nothing_to_train', listing(training=[]), 'lists no training case'),
        ('odd_entry', listing(training=['imagesTr/a.nii.gz']), "'training', entry 0"),
        ('listed_twice', listing(training=[{'image': 'imagesTr/a.nii.gz', 'label': LABELS}] * 2),
         "case 'a' is listed twice"),
        ('channels_not_counted', listing(modality={'1': 'CT'}), 'must number its channels'),
        ('file_ending', listing(channel_names={'0': 'CT'}, file_ending='.mha',
                                labels={'background': 0, 'liver': 1}), 'file_ending'),
        ('number_of_cases', listing(channel_names={'0': 'CT'}, numTraining=9,
                                    labels={'background': 0, 'liver': 1}), "'numTraining' is 9"),
        ('splits_not_lists', listing(**{EXTENSION: {'splits': {'train': 'a'}}}), 'not a list'),
        ('split_of_no_name', listing(**{EXTENSION: {'splits': {'training': ['a']}}}),
         'not a split'),
        ('case_in_two_splits', listing(**{EXTENSION: {'splits': {'train': ['a'], 'test': ['a']}}}),
         "'a' is in 'train' and in 'test'"),
        ('splits_name_no_case', unknown_in_splits, 'splits name zzz'),
        ('role_of_no_label', listing(**{EXTENSION: {'roles': {'spleen': 'organ'}}}),
         "'spleen', which is no label"),
        ('unknown_role', listing(**{EXTENSION: {'roles': {'liver': 'bone'}}}), "role 'bone'"),
        ('annotated_not_a_list', listing(**{EXTENSION: {'annotated': 'liver'}}), 'must be a list'),
    ]
]  # fmt: skip
TABLE = [*FILES, *GEOMETRY, *VALUES, *LABEL_MAPS, *NAMES, *LISTINGS]
