"""`clickhouse`: the embedded engine, a server, or several."""

import re
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from services._runtime.settings_base import Port, Section, is_url
from services._runtime.settings_tls import ClientTls


def each_server(dsn: str) -> list[str]:
    """The DSN of each server of one that names several hosts, `clickhouse://user:password@a:8123,b:8123/cypria`."""
    parts = urlsplit(dsn)
    user, at, hosts = parts.netloc.rpartition("@")
    return [parts._replace(netloc=f"{user}{at}{host}").geturl() for host in hosts.split(",")]


def is_secure(dsn: str) -> bool:
    """Whether a ClickHouse server is to be asked over TLS."""
    parts = urlsplit(dsn)
    return parts.scheme == "clickhouses" or parse_qs(parts.query).get("secure") in (["true"], ["1"])


class ClickHouse(Section):
    """`clickhouse`. Without dsn, chDB in the data dir. http_port 0: a free one.

    ``dsn`` may name several servers, host:port,host:port: the next one is asked where one does not answer. Of a
    ``cluster`` (a name from their `remote_servers`) all servers have the same tables, replicated.
    """

    dsn: SecretStr | None = None
    cluster: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,128}$")
    http_enabled: bool = True
    http_port: Port = 0
    http_password: SecretStr | None = None
    tls: ClientTls | None = None

    @model_validator(mode="after")
    def _is_encrypted_where_it_says_so(self) -> "ClickHouse":
        if self.tls is not None and not is_secure(self.dsn.get_secret_value() if self.dsn else ""):
            raise ValueError("tls is for a server over TLS: give a dsn such as clickhouses://user:password@host:8443/cypria")
        return self

    @model_validator(mode="after")
    def _is_of_servers(self) -> "ClickHouse":
        if self.cluster and not (self.dsn and self.dsn.get_secret_value().startswith("clickhouse")):
            raise ValueError("cluster is of servers: name them, clickhouse://user:password@host:8123,host:8123/cypria")
        return self

    @field_validator("dsn")
    @classmethod
    def _is_of_a_kind(cls, dsn: SecretStr | None) -> SecretStr | None:
        text = dsn.get_secret_value() if dsn else ""
        if dsn and not re.match(r"chdb:///.", text):
            addresses = each_server(text)
            if not addresses or not all(is_url(one, {"clickhouse", "clickhouses"}) for one in addresses):
                raise ValueError("give chdb:///DIRECTORY, or clickhouse://user:password@host:8123/cypria")
        return dsn
