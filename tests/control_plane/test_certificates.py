"""TLS of the control plane over real sockets: who gets in, what is taken up, and what a slow or foreign peer costs."""

import asyncio
import contextlib
import errno
import json
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import CapturingLogger
from websockets.asyncio.client import connect

from control_plane import certificates as certificates_module
from control_plane import handshakes
from control_plane.certificate_dates import Validity, validity
from control_plane.certificates import CertificateFiles, Certificates, CertificateWatch, CertificateWatchConfig
from control_plane.config import ConfigurationError
from control_plane.domain.times import to_microseconds
from tests.support.certificates import Certificates as Authority
from tests.support.control_plane_server import DEADLINE, Serving, answer_to, next_of, serving

WORKERS = "/v1/projects/default/workers/socket"


def at(year: int, month: int = 1, day: int = 1, hour: int = 0) -> datetime:
    return datetime(year, month, day, hour, tzinfo=UTC)


def watching(certificates: Certificates) -> CertificateWatch:
    store: Any = None
    return CertificateWatch(store, certificates, CertificateWatchConfig())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def settings(authority: Authority, *, client_ca: bool = False) -> dict[str, Any]:
    certificate, key = authority.write_server()
    made: dict[str, Any] = {"tls_certificate_file": certificate, "tls_key_file": key}
    return made | ({"tls_client_ca_file": Path(authority.ca_file)} if client_ca else {})


@asynccontextmanager
async def https(plane: Serving, context: ssl.SSLContext) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {plane.key}"}
    url = f"https://127.0.0.1:{plane.port}"
    async with httpx.AsyncClient(base_url=url, headers=headers, verify=context, timeout=DEADLINE) as client:
        yield client


def wss(plane: Serving, context: ssl.SSLContext) -> connect:
    headers = {"authorization": f"Bearer {plane.key}"}
    return connect(f"wss://127.0.0.1:{plane.port}{WORKERS}", additional_headers=headers, ssl=context, max_size=None)


async def serial(plane: Serving, context: ssl.SSLContext) -> Any:
    """The serial number of the certificate that a handshake shows now."""
    _, writer = await asyncio.open_connection("127.0.0.1", plane.port, ssl=context)
    found = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    return found


async def test_requests_and_worker_sockets_over_tls(tmp_path: Path, authority: Authority) -> None:
    async with serving(tmp_path, **settings(authority)) as plane:
        context = authority.client_context()
        async with https(plane, context) as http, wss(plane, context) as worker:
            assert (await http.get("/v1/projects/default")).status_code == 200
            await worker.send(json.dumps({"type": "worker.register", "worker_instance_id": "w", "message_id": "m"}))
            assert (await answer_to(worker, "m"))["type"] == "worker.registered"
            # Frames of megabytes come through whole, and one that is too large is answered with its code.
            await worker.send(json.dumps({"type": "worker.ready", "x": "y" * 3_000_000}))
            await worker.send(json.dumps({"type": "job.heartbeat", "job_id": "j", "lease_token": "l"}))
            assert (await next_of(worker, "job.heartbeat.ack"))["job_id"] == "j"
            await worker.send("x" * (17 * 1024 * 1024))
            async with asyncio.timeout(DEADLINE):
                await worker.wait_closed()
            assert worker.close_code == 1009


async def test_whoever_trusts_another_authority_does_not_come_in(tmp_path: Path, authority: Authority) -> None:
    async with serving(tmp_path, **settings(authority)) as plane:
        async with https(plane, ssl.create_default_context()) as http:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await http.get("/healthz")
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        unverified.maximum_version = ssl.TLSVersion.TLSv1_2
        _, writer = await asyncio.open_connection("127.0.0.1", plane.port, ssl=unverified)
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.2"
        writer.close()
    certificate, key = authority.write_server()
    context = Certificates(CertificateFiles(certificate=certificate, key=key)).context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


async def test_a_client_certificate_that_is_asked_for(tmp_path: Path, authority: Authority) -> None:
    async with serving(tmp_path, **settings(authority, client_ca=True)) as plane:
        async with https(plane, authority.client_context(with_certificate=True)) as http:
            assert (await http.get("/healthz")).status_code == 200
        other = Authority(tmp_path / "other")
        stranger = authority.client_context()
        stranger.load_cert_chain(other.client_certificate_file, other.client_key_file)
        for context in (authority.client_context(), stranger):
            async with https(plane, context) as http:
                with pytest.raises(httpx.HTTPError):
                    await http.get("/healthz")


@pytest.mark.parametrize("with_strange_certificate", [False, True])
async def test_who_does_not_come_in_is_logged_with_the_reason(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, with_strange_certificate: bool
) -> None:
    said = CapturingLogger()
    monkeypatch.setattr(handshakes, "_log", said)
    async with serving(tmp_path, **settings(authority, client_ca=True)) as plane:
        context = authority.client_context()
        if with_strange_certificate:
            other = Authority(tmp_path / "other")
            context.load_cert_chain(other.client_certificate_file, other.client_key_file)
        reader, writer = await asyncio.open_connection("127.0.0.1", plane.port, ssl=context)
        host, port = writer.get_extra_info("sockname")
        async with asyncio.timeout(DEADLINE):
            with contextlib.suppress(OSError):
                assert await reader.read() == b""
        writer.close()
        (call,) = said.calls
        assert call.args == ("TLS handshake failed",)
        assert call.kwargs["peer"] == f"{host}:{port}"
        expected = "certificate verify failed: unable to get" if with_strange_certificate else "did not return a certif"
        assert expected in call.kwargs["reason"]


class NoFiles(socket.socket):
    """Has no file for the first connection."""

    refusals = 1

    def accept(self) -> tuple[socket.socket, Any]:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_a_connection_that_cannot_be_accepted_now_is_accepted_later(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = CapturingLogger()
    monkeypatch.setattr(handshakes, "_log", said)
    monkeypatch.setattr(handshakes, "ACCEPT_AGAIN", 0.01)
    certificate, key = authority.write_server()
    context = Certificates(CertificateFiles(certificate=certificate, key=key)).context
    with NoFiles() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        host, port = listening.getsockname()
        failures = handshakes.FailedHandshakes(lambda: 0.0)
        listener = handshakes.TlsListener(listening, context, asyncio.Protocol, failures)
        async with asyncio.timeout(DEADLINE):
            _, writer = await asyncio.open_connection(host, port, ssl=authority.client_context())
            assert [call.kwargs for call in said.calls] == [{"reason": "Too many open files"}]
            # Who is in the middle of it does not keep it from ending.
            reader, half = await asyncio.open_connection(host, port)
            listener._accept()
            assert listener._handshakes
            listener.close()
            await listener.wait_closed()
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        for each in (writer, half):
            each.close()


def test_failed_handshakes_have_a_line_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    said = CapturingLogger()
    monkeypatch.setattr(handshakes, "_log", said)
    moments = iter([10.0, 10.1, 10.9, 11.0, 12.5])
    failures = handshakes.FailedHandshakes(lambda: next(moments))
    for number in range(5):
        failures.failed(f"peer-{number}", ssl.SSLError(1, "[SSL] no"))
    assert [(call.kwargs["peer"], call.kwargs["left_out"]) for call in said.calls] == [
        ("peer-0", 0),
        ("peer-3", 2),
        ("peer-4", 0),
    ]


async def test_a_renewed_certificate_is_taken_up(tmp_path: Path, authority: Authority) -> None:
    async with serving(tmp_path, **settings(authority, client_ca=True)) as plane:
        context = authority.client_context(with_certificate=True)
        (watch,) = (each for each in plane.plane._services if isinstance(each, CertificateWatch))
        before = await serial(plane, context)
        async with https(plane, context) as http:
            assert (await http.get("/healthz")).status_code == 200
            certificate, key = authority.write_server("renewed")
            # Half renewed: nothing changes, and nobody is turned away.
            shutil.copy(certificate, authority.directory / "server.pem")
            await watch.run_once(0)
            assert await serial(plane, context) == before
            shutil.copy(key, authority.directory / "server-key.pem")
            await watch.run_once(0)
            after = await serial(plane, context)
            assert after != before
            # What was connected before still is.
            assert (await http.get("/healthz")).status_code == 200
        # Authorities of clients are exchanged too.
        other = Authority(tmp_path / "other")
        shutil.copy(other.ca_file, authority.ca_file)
        await watch.run_once(0)
        theirs = ssl.create_default_context(cadata=authority._authority.cert_pem.bytes().decode())
        theirs.load_cert_chain(other.client_certificate_file, other.client_key_file)
        async with https(plane, theirs) as http:
            assert (await http.get("/healthz")).status_code == 200
        async with https(plane, context) as http:
            with pytest.raises(httpx.HTTPError):
                await http.get("/healthz")


async def test_a_peer_that_says_nothing_is_dropped(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshakes, "HANDSHAKE_TIMEOUT", 0.2)
    async with serving(tmp_path, **settings(authority)) as plane:
        reader, writer = await asyncio.open_connection("127.0.0.1", plane.port)
        half, half_writer = await asyncio.open_connection("127.0.0.1", plane.port)
        half_writer.write(b"\x16\x03\x01\x02")
        plain, plain_writer = await asyncio.open_connection("127.0.0.1", plane.port)
        plain_writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(DEADLINE):
            for each in (reader, half, plain):
                try:
                    assert b"HTTP" not in await each.read()
                except ConnectionResetError:
                    continue
        for each in (writer, half_writer, plain_writer):
            each.close()
        async with https(plane, authority.client_context()) as http:
            assert (await http.get("/healthz")).status_code == 200


def test_files_that_cannot_be_used_are_named(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.write_server()
    foreign = authority.write_server("other")[1]
    empty = tmp_path / "empty.pem"
    empty.touch(mode=0o600)
    readable = tmp_path / "readable.pem"
    shutil.copy(key, readable)
    readable.chmod(0o644)
    for files, words in (
        (CertificateFiles(certificate=tmp_path / "none.pem", key=key), "none.pem cannot be read: No such file"),
        (CertificateFiles(certificate=certificate, key=tmp_path / "no-key"), "no-key cannot be read"),
        (CertificateFiles(certificate=certificate, key=readable), "readable.pem .* can be read by others: chmod 600"),
        (CertificateFiles(certificate=certificate, key=foreign), "hold no TLS certificate with its key.*mismatch"),
        (CertificateFiles(certificate=certificate), "server.pem has no key in it: .* --tls-key-file"),
        (CertificateFiles(certificate=key), "server-key.pem and itself hold no TLS certificate"),
        (CertificateFiles(certificate=readable), "readable.pem .* can be read by others: chmod 600"),
        (CertificateFiles(certificate=certificate, key=key, client_ca=empty), "empty.pem holds no certificates"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            Certificates(files)


async def test_what_is_wrong_with_renewed_files_is_said_once(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever has configured the log before has bound it to an output of his own.
    said = CapturingLogger()
    monkeypatch.setattr(certificates_module, "_log", said)
    certificate, key = authority.write_server(not_before=at(2026), not_after=at(2027))
    certificates = Certificates(CertificateFiles(certificate=certificate, key=key))
    watch = watching(certificates)
    now = to_microseconds(at(2026, 6).timestamp())
    await watch.run_once(now)
    key.unlink()
    for _ in range(3):
        await watch.run_once(now)
    assert [call.args for call in said.calls] == [("renewed certificate not taken up",)]


async def test_a_renewal_that_is_not_valid_now_does_not_replace_a_certificate_that_is(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = CapturingLogger()
    monkeypatch.setattr(certificates_module, "_log", said)
    certificate, key = authority.write_server(not_before=at(2026), not_after=at(2027))
    certificates = Certificates(CertificateFiles(certificate=certificate, key=key))
    watch = watching(certificates)
    for first, last, fault in (
        (at(2025), at(2026), "expired at 2026-01-01T00:00:00Z"),
        (at(2026, 9), at(2028), "is not valid before 2026-09-01T00:00:00Z"),
    ):
        authority.write_server(not_before=first, not_after=last)
        await watch.run_once(to_microseconds(at(2026, 6).timestamp()))
        assert certificates.validity.not_after == to_microseconds(at(2027).timestamp())
        reason = f"{certificate} {fault}, and the certificate in use is valid"
        assert [call.kwargs for call in said.calls] == [{"reason": reason}]
        said.calls.clear()
    # Its time comes.
    await watch.run_once(to_microseconds(at(2026, 9).timestamp()))
    assert certificates.validity.not_after == to_microseconds(at(2028).timestamp())
    assert [call.args for call in said.calls] == [("renewed certificate taken up",)]


async def test_the_end_of_the_certificate_in_use_is_warned_of_once_a_day(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = CapturingLogger()
    monkeypatch.setattr(certificates_module, "_log", said)
    certificate, key = authority.write_server(not_before=at(2026), not_after=at(2026, 3, 15))
    watch = watching(Certificates(CertificateFiles(certificate=certificate, key=key)))
    for day, words in (
        (at(2026, 3, 1), None),
        (at(2026, 3, 1, 1), f"{certificate} expires at 2026-03-15T00:00:00Z"),
        (at(2026, 3, 2), None),
        (at(2026, 3, 2, 1), f"{certificate} expires at 2026-03-15T00:00:00Z"),
        # Other news are said at once.
        (at(2026, 3, 15), f"{certificate} expires at 2026-03-15T00:00:00Z"),
        (at(2026, 3, 15, 1), f"{certificate} expired at 2026-03-15T00:00:00Z"),
        (at(2026, 3, 15, 2), None),
    ):
        await watch.run_once(to_microseconds(day.timestamp()))
        assert [call.kwargs for call in said.calls] == ([{"reason": words}] if words else [])
        said.calls.clear()
    # While nothing valid is served, anything new is an improvement.
    authority.write_server(not_before=at(2026), not_after=at(2026, 3, 16))
    await watch.run_once(to_microseconds(at(2026, 3, 20).timestamp()))
    assert [call.args[0] for call in said.calls] == ["renewed certificate taken up", "renew the TLS certificate"]
    assert said.calls[-1].kwargs == {"reason": f"{certificate} expired at 2026-03-16T00:00:00Z"}


@pytest.mark.parametrize("last", [datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2051, 6, 1, tzinfo=UTC)])
def test_dates_before_and_after_2050_are_written_differently(authority: Authority, last: datetime) -> None:
    certificate, _ = authority.write_server(not_before=at(1999), not_after=last)
    found = validity("subject=/CN=what openssl puts in front\n" + certificate.read_text())
    assert found == Validity(to_microseconds(at(1999).timestamp()), to_microseconds(last.timestamp()))


@pytest.mark.parametrize("pem", ["", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"])
def test_what_is_no_certificate_has_no_dates(pem: str) -> None:
    with pytest.raises(ValueError, match="no certificate"):
        validity(pem)
