"""MaxQuery, appendix Tab. 3 and 4 on PhantomCT: Dice against (nn)TransUNet.

python -m launch.study --study=configs/studies/maxquery_appendix.py --workdir=runs/maxquery
"""

from typing import Any

from configs import maxquery
from configs.studies import maxquery_all

get_config = maxquery.get_config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    return maxquery_all.make_study('maxquery_appendix', (maxquery_all.appendix(),))
