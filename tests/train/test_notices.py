"""Requests to end: signals, and a made-up metadata server of a Google Cloud machine."""

import contextlib
import http.server
import os
import signal
import threading
import time

import pytest

from maxquery_jax.train import notices
from maxquery_jax.train.notices import StopNotice, ask_metadata, metadata_host

PREFIX = '/computeMetadata/v1/instance/'


@contextlib.contextmanager
def metadata_server(answers):
    """Address of a server that answers as Google's does, from what `answers` holds at the time."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = answers.get(self.path.removeprefix(PREFIX))
            allowed = self.headers['Metadata-Flavor'] == 'Google'
            self.send_response(200 if allowed and known else 403)
            self.end_headers()
            self.wfile.write((known or '').encode())

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
def test_signals(number):
    before = [signal.getsignal(s) for s in notices.SIGNALS]
    with StopNotice() as notice:
        assert not notice.reason
        os.kill(os.getpid(), number)
        assert notice.reason == f'signal {int(number)}'
    assert [signal.getsignal(s) for s in notices.SIGNALS] == before


@pytest.mark.parametrize(
    ('name', 'answer', 'reason'),
    [
        ('preempted', 'TRUE', 'the notice that this machine is preempted'),
        (
            'maintenance-event',
            'TERMINATE_ON_HOST_MAINTENANCE\n',
            'the notice that this machine ends for maintenance',
        ),
        ('maintenance-event', 'MIGRATE_ON_HOST_MAINTENANCE', ''),
    ],
)
def test_what_the_metadata_server_says(name, answer, reason):
    calm = {'preempted': 'FALSE', 'maintenance-event': 'NONE'}
    with metadata_server(calm) as host:
        assert ask_metadata(host) == ''
        calm[name] = answer
        assert ask_metadata(host) == reason
    assert ask_metadata(host) == ''  # nobody answers any more


def test_a_notice_comes_while_it_is_waited_for(monkeypatch):
    answers = {'preempted': 'FALSE', 'maintenance-event': 'NONE'}
    with metadata_server(answers) as host:
        monkeypatch.setenv('GCE_METADATA_HOST', host)
        with StopNotice(look_s=0.01) as notice:
            time.sleep(0.1)
            assert notice.reason == ''
            answers['preempted'] = 'TRUE'
            end = time.monotonic() + 20
            while not notice.reason and time.monotonic() < end:
                time.sleep(0.01)
            assert 'preempted' in notice.reason


def test_only_machines_of_google_are_asked(monkeypatch, tmp_path):
    monkeypatch.delenv('GCE_METADATA_HOST', raising=False)
    monkeypatch.setattr(notices, '_PRODUCT', tmp_path / 'product_name')
    assert metadata_host() == ''
    (tmp_path / 'product_name').write_text('Other\n')
    assert metadata_host() == ''
    (tmp_path / 'product_name').write_text('Google Compute Engine\n')
    assert metadata_host() == 'metadata.google.internal'
    monkeypatch.setenv('GCE_METADATA_HOST', 'elsewhere:80')
    assert metadata_host() == 'elsewhere:80'
