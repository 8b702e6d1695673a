"""ZePT Tab. 13 on PhantomCT: tumours that stage II sees.

python -m launch.study --study=configs/studies/zept_table13.py --workdir=runs/zept
"""

from typing import Any

from configs.studies import zept_all

get_config = zept_all.get_config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    return zept_all.make_study('zept_table13', (zept_all.table13(),))
