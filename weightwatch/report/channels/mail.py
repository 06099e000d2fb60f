"""The channel that sends e-mails, as plain text."""

import base64
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

from pydantic import SecretStr

from weightwatch.channel import EmailSettings
from weightwatch.report.channels.base import Channel, Undelivered
from weightwatch.report.channels.message import Message
from weightwatch.report.channels.secret import hidden, secret

_PERMANENT = 500  # the least status of SMTP with which another attempt would be refused, too


class Mail(Channel):
    """Sends messages over an SMTP server.

    Args:
        settings: The server, the sender and the recipients.

    Raises:
        WeightWatchError: The environment variable of the password is not set.
    """

    def __init__(self, settings: EmailSettings) -> None:
        self._settings = settings
        self._password = SecretStr(secret(settings.password)) if settings.password is not None else None

    async def send(self, message: Message) -> None:
        """Send a message in one e-mail to all recipients."""
        from aiosmtplib import SMTP, SMTPException, SMTPRecipientsRefused, SMTPResponseException

        settings, password = self._settings, self._password
        client = SMTP(
            hostname=settings.host,
            port=settings.port,
            username=settings.user,
            password=password.get_secret_value() if password is not None else None,
            use_tls=settings.security == "tls",
            start_tls=settings.security == "starttls",
            timeout=None,
        )
        try:
            await client.connect()
            refused, _ = await client.send_message(self._letter(message))
        except SMTPRecipientsRefused as error:
            again = any(each.code < _PERMANENT for each in error.recipients)
            raise Undelivered("the server refuses the recipients", again=again) from None
        except SMTPResponseException as error:
            again = error.code < _PERMANENT
            raise Undelivered(self._shown(f"SMTP {error.code}: {error.message}"), again=again) from None
        except (SMTPException, OSError) as error:
            raise Undelivered(self._shown(str(error)) or type(error).__name__) from None
        finally:
            client.close()
        if refused:
            raise Undelivered(f"the server refuses {', '.join(refused)}; the others have it", again=False)

    def _letter(self, message: Message) -> EmailMessage:
        letter = EmailMessage()
        letter["From"], letter["To"] = self._settings.sender, ", ".join(self._settings.to)
        letter["Subject"], letter["Date"] = message.subject, formatdate()
        letter["Message-ID"] = make_msgid(domain=self._settings.sender.partition("@")[2])
        letter.set_content(f"{message.text}\n\nRun: {message.run}\n")
        return letter

    def _shown(self, text: str) -> str:
        """Return what a server says, which may repeat how it was logged in to."""
        password = self._password.get_secret_value() if self._password is not None else ""
        pair = f"\0{self._settings.user}\0{password}"
        packed = [base64.b64encode(each.encode()).decode() for each in (password, pair)]
        return hidden(text, [password, *packed])
