"""MaxQuery Tab. 4 on PhantomCT: category- and query-level scores of one network.

python -m launch.study --study=configs/studies/maxquery_table4.py --workdir=runs/maxquery
"""

from typing import Any

from configs import maxquery
from configs.studies import maxquery_all

get_config = maxquery.get_config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    return maxquery_all.make_study('maxquery_table4', (maxquery_all.table4(),))
