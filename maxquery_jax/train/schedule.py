"""Is it time? The one place that decides at which steps something happens."""


def is_due(step: int, every: int, last: int) -> bool:
    """Whether an action with period `every` falls on `step` (1-based count of finished steps).

    Args:
        step: optimiser steps finished.
        every: period; 0 means only at the end.
        last: total steps; always due there.
    """
    return step == last or (every > 0 and step % every == 0)
