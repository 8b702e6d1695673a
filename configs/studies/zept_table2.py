"""ZePT Tab. 2 on PhantomCT: parameters, operations and training time.

python -m launch.study --study=configs/studies/zept_table2.py --workdir=runs/zept
"""

from typing import Any

from configs.studies import zept_all

get_config = zept_all.get_config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    return zept_all.make_study('zept_table2', (zept_all.table2(),))
