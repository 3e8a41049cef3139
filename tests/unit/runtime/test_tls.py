"""Files of certificates are looked at before anything starts: what is wrong is told by setting, file and reason."""

import ssl
import time
from pathlib import Path

import pytest

from services._runtime import tls
from services._runtime.settings import ConfigError, load
from services._runtime.settings_tls import ClientTls, ServerTls
from tests.certificates import CLIENT, Authority, Pair


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def serving(pair: Pair, **more: Path) -> ssl.SSLContext:
    return tls.server_context(ServerTls(cert_file=pair.cert, key_file=pair.key, **more), "http.tls")


def test_good_files_are_taken_and_tell_when_they_end(authority: Authority) -> None:
    server, client = authority.issue("server"), authority.issue("client", purpose=CLIENT, days=(-1, 30))
    assert serving(server).verify_mode == ssl.CERT_NONE
    assert serving(server, client_ca_file=authority.ca).verify_mode == ssl.CERT_OPTIONAL
    connecting = tls.client_context(ClientTls(ca_file=authority.ca, cert_file=client.cert, key_file=client.key), "nats.tls")
    assert (connecting.verify_mode, connecting.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert tls.client_context(None, "nats.tls").verify_mode == ssl.CERT_REQUIRED
    days = (tls.certificate("nats.tls", client.cert, client.key, of_client=True).ends - time.time()) / 86_400
    assert 29.9 < days < 30.1


def test_files_that_cannot_be_used_are_refused_by_name_and_reason(authority: Authority, tmp_path: Path) -> None:
    good, other = authority.issue("good"), authority.issue("other")
    expired, early = authority.issue("expired", days=(-3, -1)), authority.issue("early", days=(1, 3))
    of_client, locked = authority.issue("of-client", purpose=CLIENT), authority.issue("locked", passphrase=b"x")
    past = authority.issue("past", purpose=CLIENT, days=(-3, -1))
    nothing, words = tmp_path / "nothing", tmp_path / "words"
    words.write_text("no certificate")
    for pair, said in (
        (expired, f"http.tls.cert_file: {expired.cert} cannot be used (certificate has expired): renew it"),
        (early, f"http.tls.cert_file: {early.cert} cannot be used (certificate is not yet valid): renew it"),
        (of_client, f"http.tls.cert_file: {of_client.cert} cannot be used (unsuitable certificate purpose): give another"),
        (locked, f"http.tls.key_file: {locked.key} is under a passphrase: give a key without one"),
        (Pair(good.cert, other.key), f"http.tls.key_file: {other.key} is not the key of {good.cert}"),
        (Pair(nothing, good.key), f"http.tls.cert_file: {nothing} cannot be read (No such file or directory)"),
        (Pair(good.cert, tmp_path), f"http.tls.key_file: {tmp_path} cannot be read (Is a directory)"),
        (Pair(words, good.key), f"http.tls.cert_file: {words} holds no certificate: give a PEM file"),
        (Pair(good.cert, words), f"http.tls.key_file: {words} holds no usable private key: give a PEM file"),
    ):
        with pytest.raises(ConfigError) as caught:
            serving(pair)
        assert said in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        serving(good, client_ca_file=words)
    assert f"http.tls.client_ca_file: {words} holds no certificate" in str(caught.value)
    for settings, said in (
        (ClientTls(ca_file=words), f"nats.tls.ca_file: {words} holds no certificate"),
        (ClientTls(ca_file=nothing), f"nats.tls.ca_file: {nothing} cannot be read"),
        (ClientTls(cert_file=past.cert, key_file=past.key), f"nats.tls.cert_file: {past.cert} cannot be used (certificate has"),
        (ClientTls(cert_file=good.cert, key_file=good.key), f"nats.tls.cert_file: {good.cert} cannot be used (unsuitable certificate"),
    ):
        with pytest.raises(ConfigError) as caught:
            tls.client_context(settings, "nats.tls")
        assert said in str(caught.value)
    with pytest.raises(ConfigError, match=r"^CYPRIA_CA_FILE: "):
        tls.client_context(ClientTls(ca_file=words), "CYPRIA")


def test_a_renewed_certificate_is_taken_up_and_a_broken_one_is_not(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("renewed")
    served = tls.Serving(ServerTls(cert_file=pair.cert, key_file=pair.key), "http.tls")
    first = _shown_by(served.context)
    assert not served.renew()
    authority.issue("renewed")
    assert served.renew()
    second = _shown_by(served.context)
    assert second != first
    pair.cert.write_text("half a certif")
    with pytest.raises(ConfigError, match=r"http\.tls\.cert_file"):
        served.renew()
    assert not served.renew()
    assert _shown_by(served.context) == second


def _shown_by(context: ssl.SSLContext) -> bytes | None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    one, two = client.wrap_bio(back, there), context.wrap_bio(there, back, server_side=True)
    for side in (one, two, one, two):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return one.getpeercert(binary_form=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nats: {tls: {ca_file: a}}", "nats: tls is for servers of your own: name them in nats.servers"),
        ("nats: {servers: ['tls://h'], tls: {cert_file: a}}", "nats.tls: cert_file and key_file go together"),
        ("clickhouse: {tls: {ca_file: a}}", "clickhouse: tls is for a server over TLS: give a dsn such as clickhouses://"),
        ("clickhouse: {dsn: 'clickhouse://h/d', tls: {ca_file: a}}", "clickhouse: tls is for a server over TLS"),
        ("http: {tls: {cert_file: a}}", "http.tls.key_file: Field required"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "cypria.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert said in str(caught.value)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cypria.yaml"
    path.write_text(
        "nats: {servers: ['nats://h'], tls: {ca_file: a, cert_file: b, key_file: c, hostname: h}}\n"
        "clickhouse: {dsn: 'clickhouses://h/d', tls: {ca_file: d}}\nhttp: {tls: {cert_file: e, key_file: /f, client_ca_file: g}}\n"
        "logging: {file: h.log}\n"
    )
    settings = load(path, {})
    assert settings.nats.tls and settings.clickhouse.tls and settings.http.tls
    assert (settings.nats.tls.ca_file, settings.nats.tls.key_file) == (tmp_path / "a", tmp_path / "c")
    assert settings.clickhouse.tls.ca_file == tmp_path / "d"
    assert (settings.http.tls.cert_file, settings.http.tls.key_file) == (tmp_path / "e", Path("/f"))
    assert settings.http.tls.client_ca_file == tmp_path / "g"
    assert settings.logging.file == tmp_path / "h.log"
    assert settings.nats.encrypted
    assert not load(None, {"CYPRIA_NATS__SERVERS": "['nats://h']"}).nats.encrypted
    assert load(None, {"CYPRIA_NATS__SERVERS": "['tls://h']"}).nats.encrypted
