"""The listening socket: an address that cannot be had is an error of one line."""

from __future__ import annotations

import socket

import pytest

from infra.errors import SettingsError
from infra.settings import ScorerSettings, Settings
from scorer.listener import listen, reserved
from scorer.server import run_scorer
from tests.scorer.running import free_port


def test_a_port_in_use_is_one_line(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", settings.scorer.port)):
        with pytest.raises(SettingsError, match=r"scorer\.port = \d+: cannot listen") as error:
            run_scorer(settings)
        assert "\n" not in str(error.value)


def test_an_address_of_another_machine_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"scorer\.host = '192\.0\.2\.1'"):
        listen(ScorerSettings(host="192.0.2.1", port=0))


def test_a_host_without_an_address_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"scorer\.host = 'no\.such\.host\.invalid'"):
        listen(ScorerSettings(host="no.such.host.invalid", port=0))


@pytest.mark.parametrize("name", ["grpc_port", "admin_port"])
def test_a_port_of_all_processes_is_kept_for_this_scorer_alone(name: str) -> None:
    settings = ScorerSettings.model_validate({name: free_port()})
    with reserved(settings):
        with pytest.raises(SettingsError, match=rf"scorer\.{name} = \d+: cannot listen"):
            reserved(settings).__enter__()
        with socket.socket() as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            ours.bind((settings.host, getattr(settings, name)))
    with reserved(settings):
        pass
