"""The other side of a delivery, and in words what it answers. Of an address host and port are named, never the rest."""

from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Peer:
    """``where`` is host and port; ``address`` the setting that says so, ``login`` the one that says who we are.

    ``trust`` is what names the authorities whose certificates are taken.
    """

    where: str
    address: str
    login: str = ""
    trust: str = "the variable SSL_CERT_FILE"

    @property
    def host(self) -> str:
        """Without the port."""
        return self.where.rpartition(":")[0]


def peer_of(url: str, address: str, login: str = "") -> Peer:
    """Who is at a URL."""
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        port = 0
    host = parts.hostname or ""
    return Peer(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", address, login)


def http_words(status: int, peer: Peer, why: str = "") -> str:
    """What a status that is no success means, and what to do; ``why`` is the channel's own word."""
    said = f"HTTP {status} from {peer.where}" + (f" ({why})" if why else "")
    return f"{said}: {_meaning(status, peer)}"


def _meaning(status: int, peer: Peer) -> str:
    if status >= 500:
        return "it failed by itself: look at that server"
    if status < 400:
        return f"it points elsewhere, where no secret is carried: set {peer.address} to where that is"
    who = peer.login or peer.address
    known = {
        401: f"it does not let us in: check {who}",
        403: f"it does not let us in: check {who}",
        404: f"nothing takes messages at this address: check {peer.address}",
        405: f"nothing takes messages at this address: check {peer.address}",
        410: f"this address was withdrawn: make another one and set {peer.address} to it",
        429: "too many messages: fewer come with messages_per_minute or group_seconds",
    }
    return known.get(status) or f"it does not take what it got: check {' and '.join({peer.address: 0, who: 0})}"


def smtp_words(code: int, peer: Peer, *, login: bool = False) -> str:
    """What an SMTP answer means, and what to do; ``login``: it is about who we are."""
    said = f"SMTP {code} from {peer.where}"
    if login:
        return f"{said}: it refuses the login: check {peer.login or 'username and password'}"
    if 400 <= code < 500:
        return f"{said}: it does not take the message now"
    if 500 <= code < 600:
        return f"{said}: it does not take the message: check recipients and from, and that server's log"
    return f"{said}: this is not what an SMTP server says: check {peer.address}"
