"""``lifelong scorer``: a listening socket, and one process that serves it, or several.

A process alone listens first and says "not ready" while it loads its bundle. With siblings it loads
first and accepts connections only then: a restarted process costs no client a 503, since the others
take what comes meanwhile.
"""

from __future__ import annotations

from infra.settings import Settings
from infra.telemetry import get_logger
from scorer.access import open_access
from scorer.limits import too_small_body
from scorer.listener import listen, reserved
from scorer.supervisor import Supervisor, shared_metrics
from scorer.tls import tls_context

log = get_logger(__name__)


def run_scorer(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then take leave of clients, finish what is under way, return.

    Raises:
        SettingsError: the address cannot be listened on, or files for TLS, or of keys,
            cannot be used.
        BundleError: the bundle cannot be used.
        StoreError: the store cannot be opened for another reason than being away, which is
            waited for.
    """
    if (odd := too_small_body(settings.scorer)) is not None:
        log.warning(odd)
    open_access(settings.scorer, str)  # what is wrong with its files is told before there is a port
    scheme = "http" if tls_context(settings.scorer) is None else "https"
    with listen(settings.scorer) as listener, reserved(settings.scorer):
        host, port = listener.getsockname()[:2]
        log.info(
            "scorer listening",
            url=f"{scheme}://{host}:{port}",
            grpc_port=settings.scorer.grpc_port or None,
            processes=settings.scorer.processes,
        )
        if settings.scorer.processes == 1:
            # Not at the top: a supervisor does without what this imports, some 70 MB.
            from scorer.process import ScorerProcess

            ScorerProcess(settings).run(listener)
        else:
            with shared_metrics():
                Supervisor(settings, listener).run()
    log.info("scorer stopped")
