# SPDX-License-Identifier: MIT
"""Talking to a service manager that may be anywhere, deaf or gone."""

import os
import socket
import time
from pathlib import Path

import pytest

from barfs.daemon.sd_notify import ServiceManager
from tests.unit.sockets import fill


def manager_at(address: str, monkeypatch: pytest.MonkeyPatch) -> ServiceManager:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    manager = ServiceManager()
    assert "NOTIFY_SOCKET" not in os.environ
    return manager


@pytest.mark.parametrize("abstract", [False, True])
def test_what_it_hears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    path = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + path if abstract else path)
        listening.setblocking(False)
        manager = manager_at("@" + path if abstract else path, monkeypatch)
        manager.ready("devices on /a\nMAINPID=1 \udcc9")
        assert listening.recv(1000) == rb"READY=1" b"\n" rb"STATUS=devices on /a\x0aMAINPID=1 \xc9"
        manager.stopping()
        assert listening.recv(1000) == b"STOPPING=1"


def test_without_a_manager_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    ServiceManager().ready("devices")
    assert not caplog.records


@pytest.mark.parametrize("address", ["/nowhere/notify", "@barfs-nobody", "/" + "long" * 100, "x"])
def test_a_manager_that_cannot_be_reached_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    manager_at(address, monkeypatch).ready("devices")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert address in record.getMessage()


def test_a_manager_that_does_not_read_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = f"{tmp_path}/notify"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as crowd,
    ):
        listening.bind(path)
        fill(crowd, path)
        start = time.monotonic()
        manager_at(path, monkeypatch).stopping()
        assert time.monotonic() - start < 5
    assert "cannot notify the service manager" in caplog.text
