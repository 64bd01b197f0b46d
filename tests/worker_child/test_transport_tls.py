"""A connection over real TLS, with certificates of the test's own, directly and through a real proxy."""

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.certificates import HOST, Certificates
from tests.support.child_process import mold_process
from tests.support.connect_proxy import ConnectProxy, connect_proxy
from tests.support.scripted_server import ScriptedServer, scripted_server
from tests.support.session_driver import claimed_job
from tests.worker_child.test_transport import Recorder
from wire import pipe
from wire.tls import TlsFiles
from worker_child import transport
from worker_child.endpoint import endpoint
from worker_child.transport import ApiKey, Connection, UpgradeRefused, open_connection

KEY = "mbx_secret_key"


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "pki")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def connected(url: str, files: TlsFiles = TlsFiles()) -> Connection:  # noqa: B008 - frozen
    return await open_connection(endpoint(url, "default", "", files), ApiKey(KEY, None), Recorder())


async def refused(url: str, files: TlsFiles = TlsFiles()) -> str:  # noqa: B008 - frozen
    with pytest.raises(ConnectionError) as caught:
        await connected(url, files)
    assert KEY not in str(caught.value)
    return str(caught.value)


async def talks(connection: Connection, server: ScriptedServer) -> None:
    await server.connected()
    connection.transmit([b'{"said":"by the worker"}', b"x" * 300_000])
    assert await server.connection.recv() == '{"said":"by the worker"}'
    assert len(await server.connection.recv()) == 300_000
    connection.abandon()


# --- trust ------------------------------------------------------------------------------------------------------------


async def test_an_authority_of_ones_own_is_trusted_when_it_is_named(certificates: Certificates) -> None:
    async with scripted_server(certificates.server()) as server:
        await talks(await connected(server.url, TlsFiles(ca_file=certificates.ca_file)), server)
        assert server.requests == [("/v1/projects/default/workers/socket", f"Bearer {KEY}")]


async def test_the_environment_names_authorities_too(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted_server(certificates.server()) as server:
        monkeypatch.setenv("SSL_CERT_FILE", certificates.ca_file)
        await talks(await connected(server.url), server)


async def test_nobody_else_is_trusted_and_the_key_is_not_sent(certificates: Certificates, tmp_path: Path) -> None:
    other = Certificates(tmp_path / "other")
    async with scripted_server(certificates.server()) as server:
        for files in (TlsFiles(), TlsFiles(ca_file=other.ca_file)):
            sentence = await refused(server.url, files)
            assert "is not trusted" in sentence
            assert "control_plane.ca_file or SSL_CERT_FILE" in sentence
        assert server.requests == []


async def test_a_certificate_for_another_name_is_not_trusted(certificates: Certificates) -> None:
    async with scripted_server(certificates.server_of_another_name()) as server:
        assert "127.0.0.1" in await refused(server.url, TlsFiles(ca_file=certificates.ca_file))
        assert server.requests == []


async def test_files_are_read_again_at_every_connect(certificates: Certificates, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    shutil.copy(Certificates(tmp_path / "other").ca_file, ca_file)
    async with scripted_server(certificates.server()) as server:
        where = endpoint(server.url, "default", "", TlsFiles(ca_file=str(ca_file)))
        with pytest.raises(ConnectionError, match="is not trusted"):
            await open_connection(where, ApiKey(KEY, None), Recorder())
        shutil.copy(certificates.ca_file, ca_file)
        await talks(await open_connection(where, ApiKey(KEY, None), Recorder()), server)
        ca_file.unlink()
        with pytest.raises(ConnectionError, match=r"control_plane.ca_file: .* cannot be read"):
            await open_connection(where, ApiKey(KEY, None), Recorder())


async def test_a_certificate_of_the_workers_own_is_shown_where_it_is_asked_for(certificates: Certificates) -> None:
    async with scripted_server(certificates.server(asks_for_a_certificate=True)) as server:
        anonymous = TlsFiles(ca_file=certificates.ca_file)
        assert "client certificate (control_plane.client_certificate_file)" in await refused(server.url, anonymous)
        files = TlsFiles(
            ca_file=certificates.ca_file,
            client_certificate_file=certificates.client_certificate_file,
            client_key_file=certificates.client_key_file,
        )
        await talks(await connected(server.url, files), server)


async def test_a_server_that_speaks_no_tls_is_a_connection_error(certificates: Certificates) -> None:
    async with scripted_server() as server:
        plain = server.url.replace("http:", "https:")
        assert await refused(plain, TlsFiles(ca_file=certificates.ca_file))


async def test_plain_http_to_a_server_that_speaks_tls_says_so(certificates: Certificates) -> None:
    async with scripted_server(certificates.server()) as server:
        assert "https://" in await refused(server.url.replace("https:", "http:"))


# --- a proxy on the way -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def behind_a_proxy(
    certificates: Certificates, credentials: str | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[ScriptedServer, ConnectProxy, str]]:
    async with (
        scripted_server(certificates.server()) as server,
        connect_proxy(server.port, credentials=credentials, tls=tls) as proxy,
    ):
        yield server, proxy, f"https://{HOST}:{server.port}"


async def test_the_proxy_is_asked_and_sees_neither_key_nor_frames(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with behind_a_proxy(certificates) as (server, proxy, url):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url())
        await talks(await connected(url, TlsFiles(ca_file=certificates.ca_file)), server)
        [head] = proxy.asked
        assert head.startswith(f"CONNECT {HOST}:{server.port} HTTP/1.1\r\n")
        assert KEY not in head


async def test_the_proxy_is_told_who_we_are(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    async with behind_a_proxy(certificates, "user:p@ss word") as (server, proxy, url):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url("user:p%40ss%20word"))
        await talks(await connected(url, TlsFiles(ca_file=certificates.ca_file)), server)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url("user:wr0ng"))
        sentence = await refused(url, TlsFiles(ca_file=certificates.ca_file))
        assert sentence == f"the proxy localhost:{proxy.port} answered 407"


async def test_a_proxy_may_be_spoken_to_over_tls(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    async with behind_a_proxy(certificates, tls=certificates.server()) as (server, proxy, url):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url(scheme="https"))
        await talks(await connected(url, TlsFiles(ca_file=certificates.ca_file)), server)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "answered 502"),
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", "answered 401"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "gave no answer that makes sense"),
        (b"", "gave no answer that makes sense"),
    ],
)
async def test_a_proxy_that_does_not_let_us_through_is_named_and_refuses_no_credential_of_ours(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, answer: bytes, sentence: str
) -> None:
    async with behind_a_proxy(certificates) as (_, proxy, url):
        proxy.answer = answer
        monkeypatch.setenv("HTTPS_PROXY", proxy.url("user:secret"))
        told = await refused(url, TlsFiles(ca_file=certificates.ca_file))
        assert told == f"the proxy localhost:{proxy.port} {sentence}"


async def test_a_proxy_that_says_nothing_is_waited_for_no_longer_than_anybody(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "OPEN_TIMEOUT", 0.1)
    silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with silent:
        port = silent.sockets[0].getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@localhost:{port}")
        told = await refused(f"https://{HOST}", TlsFiles(ca_file=certificates.ca_file))
        assert "timed out" in told
        assert told.endswith(f"through the proxy localhost:{port}")


async def test_a_refusal_of_the_control_plane_is_one_through_a_proxy_too(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with behind_a_proxy(certificates) as (server, proxy, url):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url())
        server.refuse = [401]
        with pytest.raises(UpgradeRefused, match="401"):
            await connected(url, TlsFiles(ca_file=certificates.ca_file))


async def test_bytes_that_the_peer_never_takes_are_a_stall_over_tls_too(certificates: Certificates) -> None:
    async with scripted_server(certificates.server()) as server:
        connection = await connected(server.url, TlsFiles(ca_file=certificates.ca_file))
        await server.connected()
        server.connection.transport.pause_reading()
        while connection.unsent < 32 * 1024 * 1024:
            connection.transmit([b"x" * 1_000_000] * 8)
            await asyncio.sleep(0)
        now = 1000.0
        assert not connection.is_stalled(now)
        while not connection.is_stalled(now):
            now += transport.WRITE_DEADLINE
            await asyncio.sleep(0)
        connection.abandon()


# --- a whole worker ---------------------------------------------------------------------------------------------------


async def test_a_worker_reconnects_through_a_proxy_with_a_certificate_of_its_own(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with (
        scripted_server(certificates.server(asks_for_a_certificate=True)) as server,
        connect_proxy(server.port, credentials="user:secret") as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url("user:secret"))
        with mold_process(tmp_path) as mold:
            assert isinstance(await asyncio.to_thread(mold.settle), pipe.MoldReady)
            files = TlsFiles(
                ca_file=certificates.ca_file,
                client_certificate_file=certificates.client_certificate_file,
                client_key_file=certificates.client_key_file,
            )
            url = f"https://{HOST}:{server.port}"
            child = await asyncio.to_thread(lambda: mold.spawn(api_url=url, api_key=KEY, tls=files))
            await server.register()
            parameters = {"operation": "stringify", "data": ["x" * 300_000]}
            await server.answer_claim(claimed_job(1, action="json", spec={"parameters": parameters}))
            report = await server.acknowledge_report()
            assert "x" * 300_000 in str(report.result)
            proxy.cut()
            assert (await server.register()).worker_session_token == "session"
            assert len(proxy.asked) == 2
            child.drain(0.1)
            assert await asyncio.to_thread(mold.exit_code, child.pid) == 0
            assert "secret" not in child.output()
