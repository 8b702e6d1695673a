"""Flags that show what data sets there are; shared by prepare and check."""

from absl import flags

from maxquery_jax.data.datasets.custom import template_text
from maxquery_jax.data.datasets.listing import format_list, format_spec
from maxquery_jax.data.sources import LAYOUTS

_LIST = flags.DEFINE_bool('list', False, 'Print the data sets that are known, and stop.')
_DESCRIBE = flags.DEFINE_string(
    'describe', '', 'Print files, labels, sources and citation of a data set, and stop.'
)
_TEMPLATE = flags.DEFINE_bool(
    'spec_template', False, 'Print an example of a --spec file for your own data, and stop.'
)


def show() -> bool:
    """Prints what was asked for; whether anything was.

    Raises:
        UserError: `--describe` names no data set.
    """
    if _TEMPLATE.value:
        print(template_text())
    elif _DESCRIBE.value:
        print(format_spec(_DESCRIBE.value))
    elif _LIST.value:
        print(format_list(LAYOUTS))
    else:
        return False
    return True
