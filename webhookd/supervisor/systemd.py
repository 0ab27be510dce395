"""The service manager's notification protocol: datagrams of KEY=value lines on the socket in
NOTIFY_SOCKET.

Source: sd_notify(3) and sd_watchdog_enabled(3). Without NOTIFY_SOCKET everything here does nothing.
"""

import os
import socket
import time
from collections.abc import Mapping

from webhookd import logs

log = logs.Logger("webhookd.sdnotify")

# These are for the process that systemd started. Its workers must not inherit them.
ENVIRONMENT = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_SEND_TIMEOUT_S = 1.0


class Notifier:
    """Sends notifications to the service manager.

    *keep_alive_at* (monotonic) is when `keep_alive` is due next, or None without a watchdog.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._status = ""
        self._interval_s = _watchdog_interval_s(environ) if self._address else None
        self.keep_alive_at = None if self._interval_s is None else 0.0

    def ready(self) -> None:
        """Report that the start, or a reload, is complete."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Report that a reload has begun; `ready` ends it."""
        self._send(
            f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
        )

    def stopping(self) -> None:
        """Report that the shutdown has begun."""
        self._send("STOPPING=1")

    def keep_alive(self, now: float) -> None:
        """Report that the supervisor's loop still turns, if that is due."""
        if (
            self._interval_s is not None
            and self.keep_alive_at is not None
            and self.keep_alive_at <= now
        ):
            self._send("WATCHDOG=1")
            self.keep_alive_at = now + self._interval_s

    def status(self, text: str) -> None:
        """Show *text* (one line) in `systemctl status`; the same text again is not sent."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # "@" stands for the zero byte of the abstract namespace.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            # A new socket for each message: messages are rare, and a forked worker has none to
            # close.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_SEND_TIMEOUT_S)
                sock.sendto(message.encode(), address)
        except OSError as error:
            # Deliveries go on if the service manager does not listen.
            log.warning(
                "service manager not reached",
                socket=self._address,
                error=str(error),
            )


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for another process
    text = environ.get("WATCHDOG_USEC", "")
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        return None
    # Half the limit, as sd_watchdog_enabled(3) recommends.
    return int(text) / 1_000_000 / 2
