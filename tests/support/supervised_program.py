"""A small program under a real `Supervisor`: its workers do what a test says and report to a file.

    python supervised_program.py FOLDER '{"workers": 3, ...}'

The second argument holds fields of `Config`; `FOLDER/reload.json`, if it exists, holds those that
SIGHUP changes. A worker reads at its start from `FOLDER/<number>.mode` what to do (see `Mode`);
SIGUSR1 makes it hang later. Reports are lines of JSON in `FOLDER/report`, logs are lines of JSON on
stderr.
"""

import json
import logging
import os
import select
import signal
import sys
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from webhookd.config.options import Config
from webhookd.errors import UnusableError
from webhookd.lifeline import ExitCode, Lifeline, parse_death_line
from webhookd.supervisor.supervisor import Supervisor


class Mode(StrEnum):
    """What a worker does from its start on."""

    WORK = "work"  # beat, drain when told
    MUTE = "mute"  # never beat
    CRASH = "crash"  # raise at once
    EXIT_TWO = "exit-two"  # exit with 2 and no reason
    REFUSE = "refuse"  # raise UnusableError
    STUBBORN = "stubborn"  # beat, ignore every signal to stop
    FAIL_DRAIN = "fail-drain"  # beat, exit with 1 when told to drain
    ONE_BEAT = "one-beat"  # beat once, then wait for signals
    SLOW_BOOT = "slow-boot"  # hang before the signal handlers are installed
    RECYCLE = "recycle"  # beat, and ask to be replaced with every beat; drain when told
    REFUSE_99 = "refuse-99"  # raise UnusableError where the configuration says timeout = 99


class Worker:
    """One worker's life."""

    def __init__(self, config: Config, lifeline: Lifeline, folder: Path) -> None:
        self.lifeline = lifeline
        self.config = config
        self.folder = folder
        self.signals: list[int] = []
        self.hangs = False
        self.parent_gone = False

    def report(self, event: str, **fields: object) -> None:
        line = json.dumps(
            {"event": event, "number": self.lifeline.number, "pid": os.getpid(), **fields}
        )
        report_fd = os.open(self.folder / "report", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(report_fd, line.encode() + b"\n")
        os.close(report_fd)

    def run(self) -> int:
        mode_file = self.folder / f"{self.lifeline.number}.mode"
        mode = Mode(mode_file.read_text()) if mode_file.exists() else Mode.WORK
        if mode is Mode.SLOW_BOOT:
            self.report("booting")
            hang_here()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(signum, lambda signum, frame: self.signals.append(signum))
        signal.signal(signal.SIGUSR1, lambda signum, frame: setattr(self, "hangs", True))
        self.report(
            "started",
            name=self.lifeline.name,
            incarnation=str(self.lifeline.incarnation),
            port=self.lifeline.metrics_socket.getsockname()[1],
            dead_siblings=[str(dead) for dead in self.lifeline.dead_siblings],
            notify_socket=os.environ.get("NOTIFY_SOCKET"),
            sockets=open_sockets(),
            timeout=self.config.timeout,
        )
        if mode is Mode.CRASH:
            raise RuntimeError("planted crash")
        if mode is Mode.EXIT_TWO:
            return ExitCode.UNUSABLE
        if mode is Mode.REFUSE or (mode is Mode.REFUSE_99 and self.config.timeout == 99):
            raise UnusableError("schema 99 is newer than this webhookd: upgrade it")
        return self.live(mode)

    def live(self, mode: Mode) -> int:
        first = True
        while mode is Mode.STUBBORN or not (self.signals or self.parent_gone):
            if self.hangs:
                hang_here()
            if mode is not Mode.MUTE and (mode is not Mode.ONE_BEAT or first):
                self.lifeline.beat(recycle=mode is Mode.RECYCLE)
            if first:
                self.report("working")
                first = False
            self.read_lifeline()
        self.report(
            "draining",
            signals=[signal.Signals(signum).name for signum in self.signals],
            orphan=self.parent_gone,
        )
        return ExitCode.FAILED if mode is Mode.FAIL_DRAIN else ExitCode.DRAINED

    def read_lifeline(self) -> None:
        if self.parent_gone:
            time.sleep(0.02)
        elif select.select([self.lifeline.lifeline_fd], [], [], 0.02)[0]:
            data = os.read(self.lifeline.lifeline_fd, 65536)
            self.parent_gone = not data
            for line in data.splitlines():
                self.report("told of death", incarnation=str(parse_death_line(line)))


def hang_here() -> None:
    """Stand for a loop that hangs; tests look for this name in the printed stacks."""
    while True:
        time.sleep(3600)


def open_sockets() -> int:
    """Return how many sockets this process holds."""
    links = []
    for entry in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own descriptor
            links.append(os.readlink(f"/proc/self/fd/{entry}"))
    return sum(link.startswith("socket:") for link in links)


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {"log": record.getMessage(), "level": record.levelname, **getattr(record, "fields", {})}
        )


def main() -> int:
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])

    def reload() -> Config:
        file = folder / "reload.json"
        changes = json.loads(file.read_text()) if file.exists() else {}
        if "unusable" in changes:
            raise UnusableError(changes["unusable"])
        return Config(**(settings | changes))

    def run_worker(config: Config, lifeline: Lifeline) -> int:
        return Worker(config, lifeline, folder).run()

    try:
        return Supervisor(Config(**settings), run_worker, reload).run()
    except UnusableError as error:
        print(f"webhookd: {error}", file=sys.stderr)
        return ExitCode.UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
