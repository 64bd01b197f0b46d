"""Certificates made by the test: an authority, a server's and a client's, as contexts and as files."""

import ssl
from datetime import datetime
from pathlib import Path

import trustme

HOST = "control-plane.test"
"""A name that is not this machine's: what is behind it is reached through a proxy."""


class Certificates:
    """One authority, and what it has issued. Files are in `directory`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._authority = trustme.CA()
        self._server = self._authority.issue_cert(HOST, "localhost", "127.0.0.1")
        client = self._authority.issue_cert("worker@box")
        self.directory = directory
        self.ca_file = str(directory / "ca.pem")
        self.client_certificate_file = str(directory / "client.pem")
        self.client_key_file = str(directory / "client-key.pem")
        self._authority.cert_pem.write_to_path(self.ca_file)
        client.cert_chain_pems[0].write_to_path(self.client_certificate_file)
        client.private_key_pem.write_to_path(self.client_key_file)

    def server(self, *, asks_for_a_certificate: bool = False) -> ssl.SSLContext:
        """A server's context."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.configure_cert(context)
        if asks_for_a_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            self._authority.configure_trust(context)
        return context

    def server_of_another_name(self) -> ssl.SSLContext:
        """Trusted, but for another host."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert("elsewhere.test").configure_cert(context)
        return context

    def write_server(
        self, name: str = "server", *, not_before: datetime | None = None, not_after: datetime | None = None
    ) -> tuple[Path, Path]:
        """A new certificate of the server's and its key as files; whoever reads them meanwhile may see halves."""
        issued = self._authority.issue_cert(HOST, "localhost", "127.0.0.1", not_before=not_before, not_after=not_after)
        certificate, key = self.directory / f"{name}.pem", self.directory / f"{name}-key.pem"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.touch(mode=0o600)
        key.write_bytes(issued.private_key_pem.bytes())
        return certificate, key

    def client_context(self, *, with_certificate: bool = False) -> ssl.SSLContext:
        """Of a peer that trusts this authority alone."""
        context = ssl.create_default_context(cafile=self.ca_file)
        if with_certificate:
            context.load_cert_chain(self.client_certificate_file, self.client_key_file)
        return context
