"""The data set that most tests of the registration start from."""

import pytest
import register_helper as helper
from register_cases import moved, still


@pytest.fixture
def two(tmp_path):
    cases = {'a': [still(0), moved(1)], 'b': [still(2), moved(3)]}
    extra = {'maxquery_jax': {'roles': {'tumour': 'tumour', 'liver': 'organ'},
                              'splits': {'train': ['a'], 'val': ['b'], 'test': []}}}  # fmt: skip
    return helper.write_dataset(tmp_path / 'raw', cases, extra=extra)
