"""MaxQuery Tab. 1 on PhantomCT: OOD localisation of five baselines and of MaxQuery.

python -m launch.study --study=configs/studies/maxquery_table1.py --workdir=runs/maxquery
"""

from typing import Any

from configs import maxquery
from configs.studies import maxquery_all

get_config = maxquery.get_config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    return maxquery_all.make_study('maxquery_table1', (maxquery_all.table1(),))
