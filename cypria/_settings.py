"""Where the edge is, with which key, and how to check it: what a program gives, else the environment."""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from cypria.errors import SettingsError

DEFAULT_URL = "http://127.0.0.1:2242"


@dataclass(frozen=True, slots=True)
class Settings:
    """An edge and how to talk to it. The key is in no text that is made of this."""

    url: str
    key: str | None = field(default=None, repr=False)
    context: ssl.SSLContext | bool = True
    shows_certificate: bool = False


def settings(
    url: str | None,
    api_key: str | None,
    ca_file: str | os.PathLike[str] | None,
    cert_file: str | os.PathLike[str] | None,
    key_file: str | os.PathLike[str] | None,
    context: ssl.SSLContext | None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Raises SettingsError naming what cannot be used, and the remedy."""
    address = address_of(url or environ.get("CYPRIA_URL") or DEFAULT_URL, "url (CYPRIA_URL)")
    key = _key(api_key, environ)
    ca_file = ca_file or environ.get("CYPRIA_CA_FILE") or None
    cert_file = cert_file or environ.get("CYPRIA_CERT_FILE") or None
    key_file = key_file or environ.get("CYPRIA_KEY_FILE") or None
    if (cert_file is None) != (key_file is None):
        raise SettingsError(
            "cert_file (CYPRIA_CERT_FILE) and key_file (CYPRIA_KEY_FILE) go together: give both or neither"
        )
    if not address.startswith("https://"):
        return Settings(address, key)
    if context is None:
        context = _context(ca_file, cert_file, key_file)
    return Settings(address, key, context, shows_certificate=cert_file is not None)


def address_of(given: str, named: str) -> str:
    """An edge's address, without a slash at its end. Raises SettingsError, which says ``named`` of it."""
    address = given.rstrip("/")
    if "@" in address.partition("://")[2].partition("/")[0]:
        raise SettingsError(f"{named} holds a user or password: give the address alone, and the key apart from it")
    if not _is_address(address):
        raise SettingsError(f"{named} is '{address}': give an address such as {DEFAULT_URL}")
    return address


def _is_address(text: str) -> bool:
    """Whether it is an http or https address with a host that can be asked for and, if any, a port that exists."""
    try:
        parts = urlsplit(text)
        named = (parts.hostname or "").encode("idna")
        return parts.scheme in {"http", "https"} and bool(named) and (parts.port or 1) > 0
    except ValueError:  # of names that cannot be encoded, too
        return False


def _key(given: str | None, environ: Mapping[str, str]) -> str | None:
    source, key = "api_key", given
    if key is None and environ.get("CYPRIA_API_KEY_FILE"):
        if "CYPRIA_API_KEY" in environ:
            raise SettingsError("CYPRIA_API_KEY and CYPRIA_API_KEY_FILE are both set: unset one of them")
        path = Path(environ["CYPRIA_API_KEY_FILE"])
        source = f"CYPRIA_API_KEY_FILE: {path}"
        try:
            key = path.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as exc:
            why = getattr(exc, "strerror", None) or "it is not UTF-8"
            raise SettingsError(f"{source} cannot be read ({why}): name a file that holds the key") from None
    elif key is None:
        source, key = "CYPRIA_API_KEY", environ.get("CYPRIA_API_KEY")
    key = (key or "").strip()
    if key and not key.isprintable():
        raise SettingsError(f"{source} is no key: give one key, on one line")
    return key or None


def _context(
    ca_file: str | os.PathLike[str] | None,
    cert_file: str | os.PathLike[str] | None,
    key_file: str | os.PathLike[str] | None,
) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as exc:  # ssl.SSLError among them
        raise SettingsError(
            f"ca_file (CYPRIA_CA_FILE) {ca_file} cannot be used ({_why(exc)}): name a PEM file with certificates"
        ) from None
    if cert_file is not None:
        try:
            context.load_cert_chain(cert_file, key_file, password=_no_passphrase)
        except (OSError, SettingsError) as exc:
            raise SettingsError(
                f"cert_file (CYPRIA_CERT_FILE) {cert_file} and key_file (CYPRIA_KEY_FILE) {key_file} cannot be used "
                f"({_why(exc)}): name PEM files of one certificate and its key"
            ) from None
    return context


def _why(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLError):
        return (exc.reason or "no PEM").replace("_", " ").lower()
    return getattr(exc, "strerror", None) or str(exc)


def _no_passphrase() -> str:
    raise SettingsError("the key is under a passphrase")
