"""MaxQuery Tab. 3 on PhantomCT: distributions of the queries.

python -m launch.study --study=configs/studies/maxquery_table3.py --workdir=runs/maxquery
"""

from typing import Any

from configs import maxquery
from configs.studies import maxquery_all

get_config = maxquery.get_config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    return maxquery_all.make_study('maxquery_table3', (maxquery_all.table3(),))
