import ssl
import subprocess
from pathlib import Path

import pytest

from tests.support.certificates import Certificates
from wire.tls import TlsFiles, TlsFilesError, client_context


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "pki")


def test_a_context_verifies_name_and_certificate(certificates: Certificates) -> None:
    for files in (TlsFiles(), TlsFiles(ca_file=certificates.ca_file)):
        context = client_context(files)
        assert context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED


def test_an_authority_of_ones_own_replaces_the_systems(certificates: Certificates) -> None:
    trusted = client_context(TlsFiles(ca_file=certificates.ca_file)).get_ca_certs()
    assert ["trustme" in str(authority["subject"]) for authority in trusted] == [True]


def test_key_and_certificate_may_share_a_file(certificates: Certificates, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    files = [certificates.client_key_file, certificates.client_certificate_file]
    both.write_text("".join(Path(file).read_text() for file in files))
    client_context(TlsFiles(client_certificate_file=str(both)))


def test_files_that_cannot_be_used_are_named_with_their_key(certificates: Certificates, tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    certificate, key = certificates.client_certificate_file, certificates.client_key_file
    for files, at_fault, sentence in [
        (TlsFiles(ca_file="/nowhere/ca.pem"), "ca_file", "/nowhere/ca.pem cannot be read (No such file"),
        (TlsFiles(ca_file=str(tmp_path)), "ca_file", "cannot be read (Is a directory"),
        (TlsFiles(ca_file=str(nonsense)), "ca_file", "holds no certificates in PEM format"),
        (TlsFiles(ca_file=key), "ca_file", "holds no certificates in PEM format"),
        (TlsFiles(client_key_file=key), "client_key_file", "there is no client_certificate_file"),
        (TlsFiles(client_certificate_file="/nowhere"), "client_certificate_file", "/nowhere cannot be read"),
        (TlsFiles(client_certificate_file=certificate), "client_certificate_file", "hold no certificate with its key"),
        (
            TlsFiles(client_certificate_file=certificate, client_key_file=str(nonsense)),
            "client_certificate_file",
            "hold no certificate with its key",
        ),
    ]:
        with pytest.raises(TlsFilesError) as caught:
            client_context(files)
        assert caught.value.key == at_fault
        assert sentence in str(caught.value)


def test_an_encrypted_key_is_refused_instead_of_asking_for_its_password(
    certificates: Certificates, tmp_path: Path
) -> None:
    encrypted = tmp_path / "encrypted.pem"
    command = ["openssl", "pkey", "-in", certificates.client_key_file, "-aes256", "-passout", "pass:secret"]
    encrypted.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    files = TlsFiles(client_certificate_file=certificates.client_certificate_file, client_key_file=str(encrypted))
    with pytest.raises(TlsFilesError, match="the key is encrypted"):
        client_context(files)
