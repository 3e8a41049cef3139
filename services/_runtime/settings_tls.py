"""`nats.tls`, `clickhouse.tls` and `http.tls`: certificates and keys, all of them PEM files."""

from pathlib import Path

from pydantic import Field, model_validator

from services._runtime.settings_base import Section


def _absolute(base: Path, path: Path | None) -> Path | None:
    return base / path if path else None


class ClientTls(Section):
    """Of a connection that Cypria opens. Without ``ca_file`` the machine's own authorities are trusted.

    ``cert_file`` and ``key_file`` are shown to servers that ask who is there.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @model_validator(mode="after")
    def _certificate_and_key(self) -> "ClientTls":
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together: give both or neither")
        return self

    def resolve_paths(self, base: Path) -> None:
        """Make relative paths relative to ``base``."""
        self.ca_file = _absolute(base, self.ca_file)
        self.cert_file, self.key_file = _absolute(base, self.cert_file), _absolute(base, self.key_file)


class NatsTls(ClientTls):
    """`nats.tls`. ``hostname``: what the servers' certificates say, where that is not what nats.servers says."""

    hostname: str | None = Field(default=None, min_length=1, max_length=253)


class ServerTls(Section):
    """`http.tls`. With ``client_ca_file`` callers must show a certificate of that authority."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None

    def resolve_paths(self, base: Path) -> None:
        """Make relative paths relative to ``base``."""
        self.cert_file, self.key_file = base / self.cert_file, base / self.key_file
        self.client_ca_file = _absolute(base, self.client_ca_file)
