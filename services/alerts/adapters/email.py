"""The destination `email`: one SMTP session for each message, encrypted wherever the server offers it."""

import contextlib
import hashlib
import ssl
from email.message import EmailMessage
from email.utils import formatdate

import aiosmtplib

from schemas.v1.alerts import Alert
from services.alerts.adapters.base import BaseDestination
from services.alerts.adapters.explaining import explained
from services.alerts.domain.letter import letter
from services.alerts.domain.outcome import Outcome, Refused, Retry, Sent
from services.alerts.domain.peer import Peer, smtp_words
from services.alerts.settings import SEND_TIMEOUT_S, Channel, setting

_TLS_PORT = 465
_PORT = 587
_PLAIN_PORT = 25


class EmailDestination(BaseDestination):
    """Retries are the consumer's. A message's id follows from the alert's: a second copy is recognisable as one."""

    def __init__(self, channel: Channel, timeout_s: float = SEND_TIMEOUT_S) -> None:
        super().__init__(channel)
        options = channel.options
        assert options.smtp_server is not None
        assert options.recipients is not None
        self._recipients = options.recipients
        self._host, given = _host_and_port(options.smtp_server)
        self._tls = bool(options.tls)
        default = _TLS_PORT if self._tls else _PORT if options.username or options.starttls else _PLAIN_PORT
        self._port = options.smtp_port or given or default
        # With credentials the connection has to be encrypted before they are sent; else it is where the server can.
        self._starttls = False if self._tls else True if options.username else options.starttls
        self._username = options.username
        self._password = channel.secrets.get("password")
        self._sender = options.sender or f"cypria@{_domain(options.recipients[0])}"
        self._context = ssl.create_default_context(cafile=options.ca_file) if options.ca_file else None
        self._timeout_s = timeout_s
        self._peer = Peer(
            f"{self._host}:{self._port}", "smtp_server", f"username and {setting(options, 'password')}", "ca_file"
        )

    async def deliver(self, alert: Alert, event_id: str, *, repeat: bool = False) -> Outcome:
        """One message to all recipients. Reasons are SMTP codes and our own words: servers quote addresses."""
        message = self._message(alert, event_id, repeat=repeat)
        client = aiosmtplib.SMTP(
            hostname=self._host, port=self._port, use_tls=self._tls, start_tls=self._starttls,
            username=self._username, password=self._password, timeout=self._timeout_s, tls_context=self._context,
        )  # fmt: skip
        try:
            await client.connect()
            refused, _ = await client.send_message(message, sender=self._sender, recipients=self._recipients)
        except aiosmtplib.SMTPRecipientsRefused as exc:
            return self._answer(max(one.code for one in exc.recipients))
        except aiosmtplib.SMTPResponseException as exc:
            return self._answer(exc.code, login=isinstance(exc, aiosmtplib.SMTPAuthenticationError))
        except (aiosmtplib.SMTPException, OSError, ssl.SSLError, ValueError) as exc:
            return Retry(explained(exc, self._peer, self._timeout_s))
        finally:
            with contextlib.suppress(aiosmtplib.SMTPException, OSError):
                await client.quit()
            client.close()
        if refused:
            # The others have it: sending it again to all would repeat it there.
            codes = sorted({answer.code for answer in refused.values()})
            return Sent(f"{len(refused)} of {len(self._recipients)} recipients refused: SMTP {codes}")
        return Sent()

    def _answer(self, code: int, *, login: bool = False) -> Outcome:
        """A 4xx may pass, a 5xx will not."""
        reason = smtp_words(code, self._peer, login=login)
        return Refused(reason) if 500 <= code < 600 else Retry(reason)

    def _message(self, alert: Alert, event_id: str, *, repeat: bool) -> EmailMessage:
        content = letter(alert, event_id, self.words(alert, repeat=repeat))
        message = EmailMessage()
        message["Subject"] = content.subject
        message["From"] = self._sender
        message["To"] = ", ".join(self._recipients)
        message["Date"] = formatdate(alert.at_ms / 1000, usegmt=True)
        digest = hashlib.sha256(f"{self.name}\n{event_id}".encode()).hexdigest()[:40]
        message["Message-ID"] = f"<{digest}@{_domain(self._sender)}>"
        message["Auto-Submitted"] = "auto-generated"
        message["X-Cypria-Level"] = alert.level.value
        message.set_content(content.text)
        message.add_alternative(content.html, subtype="html")
        return message


def _host_and_port(server: str) -> tuple[str, int | None]:
    """``host``, ``host:port``, ``[v6]`` or ``[v6]:port``."""
    if server.startswith("["):
        host, _, rest = server[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = server.partition(":")
    return host, int(port) if port.isdigit() else None


def _domain(address: str) -> str:
    return address.rpartition("@")[2].rstrip(">").strip() or "localhost"
