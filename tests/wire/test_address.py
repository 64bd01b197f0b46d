import pytest

from wire.address import is_loopback


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1"])
def test_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "localhost.example.org", "10.0.0.5", "0.0.0.0", "::", "8.8.8.8", "box"])
def test_another_machine(host: str) -> None:
    assert not is_loopback(host)
