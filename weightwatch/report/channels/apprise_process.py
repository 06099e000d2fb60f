"""The process that sends one message with apprise: ``python -m weightwatch.report.channels.apprise_process``."""

import json
import os
import resource
import sys

_MEMORY = 1 << 30  # bytes: an answer is read as a whole


def main() -> int:
    """Send the message on the standard input. Return 0 if all addresses have it."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    from apprise import Apprise, AppriseAsset

    sender = Apprise(asset=AppriseAsset(http_redirects=False))
    message = json.load(sys.stdin)
    added = sender.add(os.environ.pop("WEIGHTWATCH_APPRISE"))
    return 0 if added and sender.notify(**message, body_format="text") else 1


if __name__ == "__main__":
    raise SystemExit(main())
