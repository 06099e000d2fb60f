"""The reporter that sends alerts over channels."""

import atexit
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import get_args

from weightwatch.channel import ChannelSettings, Severity
from weightwatch.reading.reading import Reading
from weightwatch.record.history import History
from weightwatch.record.journal import Journal
from weightwatch.record.notification import NOTIFICATIONS, Key, Notification, key, notifications
from weightwatch.report.base import Outcome, Reporter, Run
from weightwatch.report.channels.courier import Courier
from weightwatch.report.channels.delivery import Delivery
from weightwatch.report.channels.kinds import opened
from weightwatch.report.channels.message import Message
from weightwatch.report.channels.outbox import Outbox
from weightwatch.rules.alert import Alert

_PATIENCE = 10.0  # seconds that the end of a run waits for what is not sent yet
_SEVERITIES = get_args(Severity)

_logger = logging.getLogger("weightwatch")


class Notifier(Reporter):
    """Sends alerts over channels, on a thread of its own, and records what became of each.

    An alert is sent once over a channel, also if a resumed run raises it again. When a run is resumed, the alerts that
    fire are sent over the channels that they were not sent over.

    Args:
        channels: Settings of the channels.
        history: The record of the run.

    Raises:
        WeightWatchError: A channel can't be opened; see ``kinds.opened``.
    """

    def __init__(self, channels: Sequence[ChannelSettings], history: Journal) -> None:
        self._channels = [(settings, opened(settings)) for settings in channels]
        self._history = history
        self._courier = Courier(self._outboxes)
        self._taken: set[Key] = set()
        self._ended = False
        # These belong to the thread. Its journal writes one file, which the other journal does not.
        self._notes = Journal(history.folder)
        self._notes.opening.append(self._follow)
        self._told: set[str] = set()

    def begin(self, run: Run) -> None:
        """Start the thread, and send what fires now and was not sent."""
        self._courier.start()
        atexit.register(self._close)
        try:
            self._taken = {each.key for each in notifications(self._history.folder) if each.sent}
            newest = {alert.alert: alert for alert in self._recorded()} if run.step else {}
        except OSError:
            return  # what can't be read now is not known
        self.alerts([alert for alert in newest.values() if alert.state == "firing"])

    def check(self, reading: Reading, raised: Sequence[Alert], firing: Mapping[str, bool]) -> None:
        """Send the alerts of a check."""
        self.alerts(raised)

    def alerts(self, raised: Sequence[Alert]) -> None:
        """Send alerts, without waiting for any."""
        for alert in raised:
            self._send(alert)

    def end(self, outcome: Outcome) -> None:
        """Wait for what is not sent yet, but not long."""
        atexit.unregister(self._close)
        self._close()

    def _send(self, alert: Alert) -> None:
        names = {
            settings.name
            for settings, _ in self._channels
            if _SEVERITIES.index(alert.severity) >= _SEVERITIES.index(settings.severity)
            and key(settings.name, alert) not in self._taken
        }
        self._taken |= {key(name, alert) for name in names}
        message = Message.of(alert, _title(self._history))
        self._courier.call(lambda outbox: outbox.put(message) if outbox.name in names else None)

    def _recorded(self) -> list[Alert]:
        history = History(self._history.folder)
        history.end = self._history.end
        return history.alerts()

    def _close(self) -> None:
        if not self._ended:
            self._ended = True
            if not self._courier.close(_PATIENCE):
                _logger.error("weightwatch: alerts that were being sent when the run ended may not have arrived.")
            if self._notes.waiting:
                _logger.error(
                    "weightwatch: %d lines of %s could not be written, and are lost.",
                    self._notes.waiting,
                    NOTIFICATIONS,
                )

    # On the thread

    def _outboxes(self) -> list[Outbox]:
        return [Outbox(settings, channel, self._settle) for settings, channel in self._channels]

    def _settle(self, channel: ChannelSettings, message: Message, delivery: Delivery) -> None:
        """Record what became of a message, and log the first failure of its channel."""
        alert = message.alert
        if alert is not None:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            whose = (alert.step, alert.alert, alert.state, channel.name)
            note = Notification(*whose, now, delivery.sent, delivery.attempts, delivery.error)
            self._notes.append(NOTIFICATIONS, note.to_json())
        if not delivery.sent and channel.name not in self._told:
            self._told.add(channel.name)
            _logger.error(
                "weightwatch: an alert could not be sent (%s): %s. Training continues. This is not logged again for "
                "the channel; %s has all of it.",
                channel.name,
                delivery.error,
                NOTIFICATIONS,
            )

    def _follow(self) -> None:
        """Wait until the record of the run is open: its folder is not known before."""
        if self._history.opening:
            raise BlockingIOError("the record is not open yet")
        self._notes.folder = self._history.folder


def _title(history: History) -> str:
    return history.folder.parent.resolve().name
