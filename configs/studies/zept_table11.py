"""ZePT Tab. 11 on PhantomCT: one stage against two.

python -m launch.study --study=configs/studies/zept_table11.py --workdir=runs/zept
"""

from typing import Any

from configs.studies import zept_all

get_config = zept_all.get_config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    return zept_all.make_study('zept_table11', (zept_all.table11(),))
