"""The kinds of channel."""

from weightwatch.channel import ChannelSettings
from weightwatch.report.channels.apprise import Apprise
from weightwatch.report.channels.base import Channel
from weightwatch.report.channels.command import Command
from weightwatch.report.channels.mail import Mail
from weightwatch.report.channels.webhook import Webhook


def opened(settings: ChannelSettings) -> Channel:
    """Return the channel that some settings describe. Nothing is sent yet.

    Raises:
        WeightWatchError: An environment variable is not set or has no address; there is no such program; apprise is not
            installed.
    """
    if settings.email is not None:
        return Mail(settings.email)
    if settings.command is not None:
        return Command(settings.command)
    if settings.apprise is not None:
        return Apprise(settings.apprise)
    return Webhook(settings.webhook or "", settings.body)
