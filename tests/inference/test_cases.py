"""Which files make a case."""

import pathlib

import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.inference.cases import Case, find_cases

ONE, TWO = ('ct',), ('arterial', 'venous')


def _touch(folder, *names):
    for name in names:
        (folder / name).touch()
    return folder


def _names(cases):
    return [(case.name, [path.name for path in case.images]) for case in cases]


def test_one_channel_takes_every_file(tmp_path):
    _touch(tmp_path, 'b.nii', 'a.nii.gz', 'amos_0013.nii.gz', 'notes.txt', '._c.nii.gz')
    assert _names(find_cases(tmp_path, ONE)) == [
        ('a', ['a.nii.gz']),
        ('amos_0013', ['amos_0013.nii.gz']),
        ('b', ['b.nii']),
    ]
    assert _names(find_cases(tmp_path / 'b.nii', ONE)) == [('b', ['b.nii'])]


def test_nnunet_suffix_is_dropped_only_where_all_files_have_it(tmp_path):
    folder = _touch(tmp_path, 'p1_0000.nii.gz', 'p2_0000.nii.gz')
    assert [case.name for case in find_cases(folder, ONE)] == ['p1', 'p2']
    assert find_cases(folder / 'p1_0000.nii.gz', ONE)[0].name == 'p1'
    _touch(folder, 'p_0001.nii.gz')
    names = [case.name for case in find_cases(folder, ONE)]
    assert names == ['p1_0000', 'p2_0000', 'p_0001']
    assert find_cases(folder / 'p1_0000.nii.gz', ONE)[0].name == 'p1_0000'


def test_channels_are_grouped(tmp_path):
    _touch(tmp_path, 'q_1_0001.nii.gz', 'q_1_0000.nii.gz', 'p_0000.nii.gz', 'p_0001.nii.gz')
    expected = ('p', ['p_0000.nii.gz', 'p_0001.nii.gz'])
    assert _names(find_cases(tmp_path, TWO)) == [
        expected,
        ('q_1', ['q_1_0000.nii.gz', 'q_1_0001.nii.gz']),
    ]
    assert _names(find_cases(tmp_path / 'p_0001.nii.gz', TWO)) == [expected]


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (['p_0000.nii', 'p_0001.nii', 'p_0002.nii'], r'has 3 channels, the model expects 2 \(art'),
        (['p_0000.nii'], r'p_0000.nii: case p has 1 channels, the model expects 2'),
        (['p_0001.nii'], r'case p has no channel 0000 \(arterial\)'),
        (['p.nii'], r'p.nii: the model expects 2 channels .*X_0001.nii.gz = venous'),
    ],
)
def test_wrong_channels_say_what_is_expected(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        find_cases(_touch(tmp_path, *names), TWO)


def test_cases_from_python(tmp_path):
    cases = find_cases([('a_0000.nii', 'b.nii'), ['c.nii', pathlib.Path('d.nii')]], TWO)
    assert cases[0] == Case('a', (pathlib.Path('a_0000.nii'), pathlib.Path('b.nii')))
    assert cases[1].name == 'c'
    with pytest.raises(UserError, match='the model expects 1'):
        find_cases([('a.nii', 'b.nii')], ONE)
    with pytest.raises(UserError, match='without any file'):
        find_cases([()], ONE)


def test_same_output_twice_is_an_error(tmp_path):
    _touch(tmp_path, 'a.nii', 'a.nii.gz')
    with pytest.raises(UserError, match='same output'):
        find_cases(tmp_path, ONE)


def test_nothing_to_predict(tmp_path):
    for source, message in [
        (tmp_path, 'holds no .nii'),
        (tmp_path / 'no.nii', 'does not exist'),
        ([], 'no scans'),
    ]:
        with pytest.raises(UserError, match=message):
            find_cases(source, ONE)


def test_names_that_are_no_file_names_are_refused():
    with pytest.raises(UserError, match='cannot begin the name of a file'):
        find_cases(['..'], ONE)
