"""The CSV file that says which group a case is in: what is read, what is refused in one line."""

import pytest

from maxquery_jax.data.groups import read_groups, to_csv
from maxquery_jax.errors import UserError


def written(tmp_path, content):
    path = tmp_path / 'groups.csv'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    'content',
    [
        'case,subtype\na,x\nb,y z\n',
        '\ufeffcase , subtype\r\n\r\n a,x\r\n "b", "y z"\r\n,\r\n',  # as spreadsheets save it
    ],
)
def test_what_a_file_says(tmp_path, content):
    groups = read_groups(written(tmp_path, content))
    assert (groups.column, groups.group_of) == ('subtype', {'a': 'x', 'b': 'y z'})
    assert groups.names == ('x', 'y z')


def test_what_was_written_is_read_back(tmp_path):
    group_of = {'b, 1': 'x"y', 'a': 'ä+b'}
    groups = read_groups(written(tmp_path, to_csv('kind', group_of)))
    assert groups.column == 'kind' and groups.group_of == group_of


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', r"row 1: '' is no header .*case,subtype"),
        ('a,x\nb,y\n', r"row 1: 'a,x' is no header"),
        ('case;subtype\na;x\n', r"row 1: 'case;subtype' is no header of two columns"),
        ('case,subtype,age\na,x,3\n', r'row 1: .* is no header of two columns'),
        ('case,\na,x\n', r'row 1: .* is no header'),
        ('case,subtype\n', r'row 1: no case follows'),
        ('case,subtype\na,x\n\nb\n', r'row 4 has 1 columns, not two'),
        ('case,subtype\na,x,y\n', r'row 2 has 3 columns, not two; .* quote'),
        ('case,subtype\na,x\nb, \n', r'row 3: the subtype is empty; fill it in or drop'),
        ('case,subtype\n,x\n', r'row 2: the case is empty'),
        ('case,subtype\na,x\nb,y\na,x\n', r"row 4: case 'a' has a row already, 2; keep one"),
        ('case,subtype\na,x\x1b[2J\n', r'row 2: the subtype .* control characters'),
        ('case,subtype\na,"x"y\n', r'row 2: .*; mend the quotes'),
        ('case,subtype\na,"x\nb,y\n', r'row 3: .*; mend the quotes'),
        (b'case,subtype\na,x\nb,M\xfcller\n', r'row 3: not UTF-8; save the file as CSV in UTF-8'),
        ('case,subtype\na,x\n'.encode('utf-16'), r'row 1: not UTF-8'),
    ],
)  # fmt: skip
def test_faults_name_file_row_and_fix(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=message) as caught:
        read_groups(path)
    assert str(caught.value).startswith(str(path)) and '\n' not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match=r'none\.csv does not exist; name a CSV'):
        read_groups(tmp_path / 'none.csv')
    with pytest.raises(UserError, match='cannot be read'):
        read_groups(tmp_path)


def test_cases_that_are_not_evaluated(tmp_path):
    groups = read_groups(written(tmp_path, 'case,subtype\na,x\nb,y\nc,y\n'))
    assert groups.restrict(['c', 'd'], {'a', 'b'}).group_of == {'c': 'y'}
    with pytest.raises(UserError, match=r"row 3: case 'b' is unknown, as are 1 more; .*'a'"):
        groups.restrict(['a'])
    with pytest.raises(UserError, match=r"row 4: case 'c' is unknown; "):
        groups.restrict(['a'], {'b'})
    with pytest.raises(UserError, match=r"row 2: neither .* such as 'd'"):
        groups.restrict(['d'], {'a', 'b', 'c'})
