"""The whole way over TLS with an authority of one's own: control plane, supervisor with a worker, and the command."""

from pathlib import Path

from tests.support.certificates import Certificates
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.mobius_command import MobiusCommand
from tests.support.supervisor_process import SupervisorProcess

AUTOMATION = """
handle = "hello"
name = "Hello"
[[spec.steps]]
key = "say"
kind = "action"
config = { action_name = "print", parameters = { message = "over tls" } }
"""


def test_a_run_from_end_to_end_with_client_certificates(tmp_path: Path) -> None:
    authority = Certificates(tmp_path / "pki")
    certificate, key = authority.write_server()
    arguments = ["--tls-certificate-file", str(certificate), "--tls-key-file", str(key)]
    arguments += ["--tls-client-ca-file", authority.ca_file]
    (tmp_path / "hello.toml").write_text(AUTOMATION)
    files = {
        "ca_file": authority.ca_file,
        "client_certificate_file": authority.client_certificate_file,
        "client_key_file": authority.client_key_file,
    }
    with (
        ControlPlaneProcess(tmp_path / "plane", *arguments) as plane,
        SupervisorProcess(tmp_path / "box", plane, control_plane=files) as supervisor,
    ):
        assert plane.url.startswith("https://")
        assert (
            f"url=https://127.0.0.1:{plane.port}" in plane.log() or f'"https://127.0.0.1:{plane.port}"' in plane.log()
        )
        supervisor.wait_for("ready", slot="default-1")
        command = MobiusCommand(plane.url, plane.key, tmp_path)
        distrusted = command.run("runs", "list")
        assert distrusted.returncode == 69
        assert "CERTIFICATE_VERIFY_FAILED" in distrusted.stderr
        nobody = command.run("runs", "list", "--ca-file", authority.ca_file)
        assert nobody.returncode == 69, nobody.stderr
        assert "may ask for a client certificate (MOBIUS_CLIENT_CERTIFICATE_FILE)" in nobody.stderr
        assert "peer did not return a certificate" in plane.log()
        command.environment |= {
            "MOBIUS_CA_FILE": authority.ca_file,
            "MOBIUS_CLIENT_CERTIFICATE_FILE": authority.client_certificate_file,
            "MOBIUS_CLIENT_KEY_FILE": authority.client_key_file,
        }
        created = command.run("automations", "create", str(tmp_path / "hello.toml"), "--publish")
        assert created.returncode == 0, created.stderr
        ran = command.run("automations", "start", "hello", "--wait")
        assert ran.returncode == 0, ran.stderr
        missing = command.run("runs", "list", env={"MOBIUS_CA_FILE": str(tmp_path / "none.pem")})
        assert missing.returncode == 78
        assert "MOBIUS_CA_FILE" in missing.stderr
