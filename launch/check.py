"""Reads every file of a raw data set and names each bad one, with the reason and a fix.

    python -m launch.check --dataset=decathlon --source=Task07_Pancreas
    python -m launch.check --dataset=decathlon --source=DIR --json=findings.json
    python -m launch.check --dataset=pairs --source=DIR --images='*_ct.nii.gz' \\
        --labels='*_seg.nii.gz' --label_names=1:liver,2:tumour
    python -m launch.check --list

Exit code 0 if nothing forbids preparation, 2 otherwise. --json writes a list of objects with the
keys case, file, check, severity, value and fix.
"""

import sys

from absl import flags

from launch import _catalogue, _cli, _source
from maxquery_jax.data.check import check_dataset, count_errors, format_table, write_rows
from maxquery_jax.errors import UserError

_JSON = flags.DEFINE_string('json', '', 'File for the findings.')
flags.adopt_module_key_flags(_source)
flags.adopt_module_key_flags(_catalogue)


def main() -> None:
    """Checks `--source`."""
    if _catalogue.show():
        return
    rows = check_dataset(*_source.dataset(), **_source.options(), progress=True)
    if _JSON.value:
        write_rows(_JSON.value, rows)
    if rows:
        print(format_table(rows))
        sys.stdout.flush()
    errors = count_errors(rows)
    if errors:
        bad = len({row.case for row in rows if row.severity == 'error'})
        raise UserError(f'{errors} errors in {bad} cases, listed above; mend or --allow them')
    print(f'no errors, {len(rows)} warnings' if rows else 'no errors, no warnings')


if __name__ == '__main__':
    _cli.run(main)
