"""Mail to a real SMTP server, with and without encryption and login."""

from pathlib import Path

from services.alerts.adapters.email import EmailDestination, _host_and_port
from services.alerts.domain.outcome import Refused, Retry, Sent
from tests.harness import eventually
from tests.service.alerts.receivers import MailServer, an_alert, certificate, channel
from tests.service.alerts.side import Side

TEAM = "ml-team@company.com"


async def test_the_specs_entry_delivers_text_and_html_with_the_numbers(side: Side) -> None:
    async with MailServer().running() as server:
        entry = {"type": "email", "recipients": [TEAM], "smtp_server": server.address}
        async with side.service(entry):
            await side.raise_alert("Too <slow>", test_id="t9", rule="critical_latency", value=3100.5, threshold=3000)
            await eventually(lambda: side.delivered("Too <slow>", "email"))
    (mail,) = server.mails
    assert mail.recipients == [TEAM]
    assert mail.message["Subject"] == "[Cypria] CRITICAL: Too <slow>"
    assert mail.message["From"] == "cypria@company.com"
    text, html = (mail.message.get_body((kind,)) for kind in ("plain", "html"))
    assert text is not None
    assert html is not None
    for part in (text.get_content(), html.get_content()):
        assert all(word in part for word in ("t9", "critical_latency", "3100.5", "3000"))
    assert "Too &lt;slow&gt;" in html.get_content()
    assert "<slow>" not in html.get_content()


async def test_starttls_and_login_with_a_certificate_of_ones_own(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    async with MailServer().running((cert, key), ("cypria", "hunter2")) as server:
        options = {
            "type": "email", "recipients": [TEAM, "b@company.com"], "smtp_server": "127.0.0.1",
            "smtp_port": server.port, "username": "cypria", "from": "alerts@company.com",
        }  # fmt: skip
        good = channel({"MAIL": "hunter2"}, password_env="MAIL", ca_file=str(cert), **options)
        assert "hunter2" not in repr(good)
        assert await EmailDestination(good).deliver(an_alert(), "e1") == Sent()
        wrong = channel(password="guess", ca_file=str(cert), **options)
        refused = await EmailDestination(wrong).deliver(an_alert(), "e2")
        assert refused == Refused(
            f"SMTP 535 from 127.0.0.1:{server.port}: it refuses the login: check username and password"
        )
        stranger = channel(password="hunter2", **options)
        unknown = await EmailDestination(stranger).deliver(an_alert(), "e3")
        assert isinstance(unknown, Retry)
        assert "its certificate is refused (self-signed certificate): set ca_file to the authority" in unknown.reason
    (mail,) = server.mails
    assert (mail.encrypted, mail.user, mail.sender) == (True, "cypria", "alerts@company.com")
    assert mail.recipients == [TEAM, "b@company.com"]


async def test_tls_from_the_first_byte_with_a_login_through_the_whole_service(side: Side, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    async with MailServer().running((cert, key), ("cypria", "hunter2"), from_the_start=True) as server:
        entry = {
            "type": "email", "recipients": [TEAM], "smtp_server": server.address, "tls": True, "ca_file": str(cert),
            "username": "cypria", "password": "hunter2", "title": "$state of $test_id", "text": "$message see $report_url",
        }  # fmt: skip
        async with side.service(entry, public_url="https://cypria.company.com"):
            await side.raise_alert("Too slow", test_id="t9")
            await eventually(lambda: side.delivered("Too slow", "email"))
    (mail,) = server.mails
    assert mail.user == "cypria"
    assert mail.message["Subject"] == "[Cypria] CRITICAL of t9"
    for kind in ("plain", "html"):
        part = mail.message.get_body((kind,))
        assert part is not None
        assert "https://cypria.company.com/v1/ab-testing/tests/t9/report" in part.get_content()
    plain = EmailDestination(channel(type="email", recipients=[TEAM], smtp_server=server.address))
    outcome = await plain.deliver(an_alert(), "e2")
    assert isinstance(outcome, Retry), "it talks to nobody who does not"


async def test_a_password_is_never_sent_in_the_clear() -> None:
    async with MailServer().running() as server:
        one = channel(
            type="email", recipients=[TEAM], smtp_server=server.address, username="cypria", password="hunter2"
        )
        outcome = await EmailDestination(one).deliver(an_alert(), "e1")
        assert isinstance(outcome, Retry)
        assert "does not offer what is set" in outcome.reason
    assert server.mails == []


async def test_what_may_pass_is_tried_again_and_what_will_not_is_refused() -> None:
    async with MailServer(answers=["451 try later", "554 no"], unknown=("gone@company.com",)).running() as server:
        one = EmailDestination(channel(type="email", recipients=[TEAM], smtp_server=server.address))
        assert await one.deliver(an_alert(), "e1") == Retry(f"SMTP 451 from {server.address}: it does not take the message now")
        refused = await one.deliver(an_alert(), "e1")
        assert isinstance(refused, Refused)
        assert "SMTP 554" in refused.reason
        both = EmailDestination(
            channel(type="email", recipients=[TEAM, "gone@company.com"], smtp_server=server.address)
        )
        outcome = await both.deliver(an_alert(), "e1")
        assert isinstance(outcome, Sent)
        assert outcome.note == "1 of 2 recipients refused: SMTP [550]"
        none = EmailDestination(channel(type="email", recipients=["gone@company.com"], smtp_server=server.address))
        assert "SMTP 550" in str(await none.deliver(an_alert(), "e1"))
    gone = await both.deliver(an_alert(), "e1")
    assert gone == Retry(f"{server.address} refuses connections: nothing listens there; start it, or check smtp_server")


async def test_a_repetition_has_the_id_of_the_first_and_headers_take_no_line_breaks() -> None:
    async with MailServer().running() as server:
        one = EmailDestination(channel(type="email", recipients=[TEAM], smtp_server=server.address))
        for _ in range(2):
            assert await one.deliver(an_alert(title="a\r\nBcc: x@evil.com"), "e1") == Sent()
    first, second = (mail.message["Message-ID"] for mail in server.mails)
    assert first == second
    assert all(mail.message["Bcc"] is None and mail.recipients == [TEAM] for mail in server.mails)


def test_a_server_is_a_host_with_or_without_a_port() -> None:
    assert _host_and_port("smtp.company.com") == ("smtp.company.com", None)
    assert _host_and_port("smtp.company.com:2525") == ("smtp.company.com", 2525)
    assert _host_and_port("[::1]:25") == ("::1", 25)
