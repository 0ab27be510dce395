"""What claims cost: those of one worker, made here on an idle server, or those of a busy fleet."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from uuid import uuid4

from bench.backlog import Connection, Level
from bench.statements import CLAIM, RECORD, Cost, Statements, together
from webhookd.config.options import Config
from webhookd.core.answer import Answer, AnswerKind
from webhookd.core.lane import Budget
from webhookd.core.model import Attempted, Result
from webhookd.postgres import session as store
from webhookd.postgres.claim import Claimer
from webhookd.postgres.record import ResultWriter
from webhookd.postgres.rows import defaults_of
from webhookd.transport.egress import Egress
from webhookd.worker.judge import Judge

LIMIT = 200  # rows a claim
CLAIMS, FIRST_CLAIMS = 25, 5  # the first ones prepare statements and warm caches


@dataclass(frozen=True, slots=True)
class Claims:
    """Means per claim; only *ms* is the median, where claims on an idle server were timed one by
    one.

    *pages* and *ms* cover all statements of a claim and the `next_look` after it; *by_statement*:
    pages per call.
    """

    ms: float
    pages: float
    rows: float
    by_statement: Mapping[str, float]


def probe(dsn: str, connection: Connection, level: Level) -> Claims:
    """Claim and record as a single worker would; each claimed row is replaced. Blocks for
    seconds.
    """
    worker, defaults = "probe", defaults_of(Config())
    claimer = Claimer(
        worker_id=worker,
        incarnation=uuid4(),
        defaults=defaults,
        judge=Judge(Egress(allow_http=True, networks=["127.0.0.0/8"])),
    )
    recorder = ResultWriter(worker_id=worker, defaults=defaults)
    statements = Statements(connection)
    times_ms: list[float] = []
    rows = 0
    with store.connect(dsn, application_name=f"webhookd/{worker}/bench") as session:
        for number in range(FIRST_CLAIMS + CLAIMS):
            if number == FIRST_CLAIMS:
                statements.start()
                times_ms.clear()
                rows = 0
            began = time.monotonic()
            claimed = claimer.claim(session, Budget(LIMIT, LIMIT)).deliveries
            claimer.next_look(session)
            times_ms.append((time.monotonic() - began) * 1000)
            rows += len(claimed)
            answer = Attempted(
                Answer(AnswerKind.RESPONSE, 0.001, http_status=204), time.monotonic()
            )
            if claimed:
                recorder.record(session, [Result(delivery, answer) for delivery in claimed])
            level.put(len(claimed))
    return _claims(statements.costs(), ms=median(times_ms), rows=rows)


def of_fleet(statements: Statements) -> Claims:
    """Return what the fleet's claims cost since *statements* started; *ms* is the server's time."""
    costs = statements.costs()
    total = together(costs, CLAIM)
    return _claims(
        costs, ms=total.ms / max(1.0, total.calls), rows=costs.get("settle", Cost()).rows
    )


def depth_ms(statements: Statements) -> float:
    """Return how long the server took to count the queue's depth, as a fleet does every 4 s; 0 if
    it was not counted.
    """
    cost = statements.costs().get("measure_depth", Cost())
    return cost.ms / max(1.0, cost.calls)


def _claims(costs: Mapping[str, Cost], *, ms: float, rows: float) -> Claims:
    total = together(costs, CLAIM)
    calls = max(1.0, total.calls)
    pages = {
        name: costs[name].pages / costs[name].calls for name in (*CLAIM, *RECORD) if name in costs
    }
    return Claims(ms, total.pages / calls, rows / calls, pages)
