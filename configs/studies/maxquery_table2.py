"""MaxQuery Tab. 2 on PhantomCT: Dice of inlier tumours by type.

python -m launch.study --study=configs/studies/maxquery_table2.py --workdir=runs/maxquery
"""

from typing import Any

from configs import maxquery
from configs.studies import maxquery_all

get_config = maxquery.get_config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    return maxquery_all.make_study('maxquery_table2', (maxquery_all.table2(),))
