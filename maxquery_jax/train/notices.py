"""What asks a run to end soon: signals, and the cloud's word that it takes the machine away."""

import contextlib
import os
import pathlib
import signal
import threading
import urllib.request
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Engines, shutdowns and Slurm send the first; the second is what many Slurm scripts ask for."""

_HOST = 'metadata.google.internal'
_PRODUCT = pathlib.Path('/sys/class/dmi/id/product_name')
_MAINTENANCE = 'TERMINATE_ON_HOST_MAINTENANCE'


class StopNotice:
    """Waits for a request to end, while it is entered; in the main thread, as signals demand.

    On Google Cloud it also asks the machine's metadata server, which knows of the preemption of a
    Spot machine and of a TPU's maintenance before any signal comes. `GCE_METADATA_HOST` names
    another server, as for Google's own libraries.

    Attributes:
        reason: in words, e.g. 'signal 15'; '' as long as nobody asked.
    """

    def __init__(self, look_s: float = 5.0) -> None:
        """Does nothing yet.

        Args:
            look_s: seconds between two questions to the metadata server.
        """
        self.reason = ''
        self._look_s = look_s
        self._before: dict[signal.Signals, Any] = {}
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        host = metadata_host()
        if host:
            threading.Thread(target=self._watch, args=(host,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: Any) -> None:
        self.reason = f'signal {number}'

    def _watch(self, host: str) -> None:
        while not self._closed.is_set() and not self.reason:
            self.reason = self.reason or ask_metadata(host)
            self._closed.wait(self._look_s)


def metadata_host() -> str:
    """The metadata server of a Google Cloud machine; '' elsewhere."""
    named = os.environ.get('GCE_METADATA_HOST', '')
    with contextlib.suppress(OSError):
        return named or (_HOST if _PRODUCT.read_text().startswith('Google') else '')
    return named


def ask_metadata(host: str, timeout_s: float = 2.0) -> str:
    """Why a Google Cloud machine is about to end, in words.

    Args:
        host: of the metadata server, with its port if it has one.
        timeout_s: for each of two questions.

    Returns:
        '' if it is not, or there is no answer.
    """
    if _ask(host, 'preempted', timeout_s) == 'TRUE':
        return 'the notice that this machine is preempted'
    if _ask(host, 'maintenance-event', timeout_s) == _MAINTENANCE:
        return 'the notice that this machine ends for maintenance'
    return ''


def _ask(host: str, name: str, timeout_s: float) -> str:
    request = urllib.request.Request(
        f'http://{host}/computeMetadata/v1/instance/{name}', headers={'Metadata-Flavor': 'Google'}
    )
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return answer.read(100).decode(errors='replace').strip()
    return ''
