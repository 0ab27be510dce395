"""The grants and the recipe that docs/rights.md and the README teach, tried as the roles."""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.daemon import Daemon, answer_ok
from tests.support.doctor import findings
from tests.support.engine import Engine, answered, engine, insert, register
from tests.support.listening import Connection
from tests.support.postgres import Database, Server
from tests.support.receivers import Receiver
from tests.support.roles import acting
from tests.support.waiting import eventually
from webhookd.admin.doctor.findings import Severity

pytestmark = pytest.mark.every_postgres

ROOT = Path(__file__).parents[2]
QUEUE = "pggit.alert_delivery_queue"
INSERT = f"INSERT INTO {QUEUE} (webhook_id, message_body, alert_id, next_retry_at, max_retries)"
PUBLIC = """
    SELECT p.oid::regprocedure::text
      FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
     WHERE p.pronamespace = 'pggit'::regnamespace AND a.grantee = 0
     UNION ALL
    SELECT c.oid::regclass::text
      FROM pg_class c, aclexplode(c.relacl) a
     WHERE c.relnamespace = 'pggit'::regnamespace AND a.grantee = 0
     ORDER BY 1
"""


def grants(file: str, heading: str, first: int = 0, last: int = 1) -> str:
    """The SQL blocks of a section, with a role's name for each that the text invents."""
    section = (ROOT / file).read_text("utf-8").partition(f"\n## {heading}\n")[2]
    blocks = re.findall(r"```sql\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    assert len(blocks) > first
    return "\n".join(blocks[first:last])


def as_role(text: str, **names: str) -> str:
    for name, role in names.items():
        text = re.sub(rf"\b{name}\b(?!_)", role, text)
    return text


@pytest.mark.parametrize(
    ("file", "heading"),
    [("README.md", "Rights in the database"), ("docs/rights.md", "Producers")],
)
def test_a_producer_with_the_grants_for_columns_says_what_it_may_and_no_more(
    database: Database, server: Server, worker: Engine, file: str, heading: str
) -> None:
    register(database, 1)
    with acting(database, server) as producer:
        database.execute(as_role(grants(file, heading), app=producer.info.user))
        producer.execute(f"{INSERT} VALUES (1, '{{}}', 7, now(), 3)".encode())
        producer.execute(f"{INSERT} VALUES (1, '{{}}', NULL, NULL, NULL)".encode())
        with producer.cursor().copy(f"COPY {QUEUE} (webhook_id, message_body) FROM STDIN") as copy:
            copy.write_row([1, "{}"])
        for refused in (
            f"INSERT INTO {QUEUE} (webhook_id, message_body, attempts) VALUES (1, '{{}}', 1)",
            f"INSERT INTO {QUEUE} (webhook_id, message_body) VALUES (1, '{{}}')"
            " RETURNING delivery_id",
            f"SELECT count(*) FROM {QUEUE}",
            "SELECT * FROM pggit.count_pending_by_status()",
            "SELECT * FROM pggit.webhooks",
            "SELECT * FROM pggit.watch FOR UPDATE",
            "SELECT pggit.measure_body('1')",
            "SELECT nextval('pggit.delivery_ids')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                producer.execute(refused.encode())
    assert len(worker.take_all()) == 3


def test_with_the_further_grant_the_id_comes_back(database: Database, server: Server) -> None:
    with acting(database, server) as producer:
        text = grants("docs/rights.md", "Producers", 0, 2)
        database.execute(as_role(text, app=producer.info.user))
        returned = producer.execute(
            f"{INSERT} VALUES (1, '{{}}', 7, now(), 3) RETURNING delivery_id".encode()
        )
        assert returned.fetchone() == database.execute(f"SELECT delivery_id FROM {QUEUE}")[0]


@pytest.fixture
def tenants(database: Database, server: Server) -> Iterator[dict[str, str]]:
    """The recipe for several tenants: a role of its own for each, and one for the workers."""
    names = {name: server.create_role() for name in ("acme", "globex", "webhookd")}
    group = f"{names['acme']}_producers"
    heading = "Several producers that must not see or use each other's webhooks"
    database.execute(as_role(grants("docs/rights.md", "Workers"), webhookd=names["webhookd"]))
    database.execute(as_role(grants("docs/rights.md", heading), producers=group, **names))
    yield names
    database.execute(f"DROP OWNED BY {group}; DROP ROLE {group}")


def connected(database: Database, role: str) -> Connection:
    return database.connect(user=role)


def test_row_level_security_keeps_the_tenants_of_one_queue_apart(
    database: Database, server: Server, tenants: dict[str, str]
) -> None:
    register(database, 1, tenant=tenants["acme"])
    register(database, 2, tenant=tenants["globex"])
    one = f"{INSERT} VALUES (%s, '{{}}', 7, now(), 3) RETURNING delivery_id".encode()
    for name, own, foreign in (("acme", 1, 2), ("globex", 2, 1)):
        with connected(database, tenants[name]) as producer:
            for _ in range(2):
                assert producer.execute(one, [own]).fetchone()
            for webhook_id in (foreign, 3):  # another tenant's, and one that nobody registered
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    producer.execute(one, [webhook_id])
            assert producer.execute(
                f"SELECT DISTINCT webhook_id FROM {QUEUE}".encode()
            ).fetchall() == [(own,)]
    with engine(Database(database.name, server.dsn(database.name, tenants["webhookd"]))) as worker:
        taken = worker.take_all()
        assert sorted(item.webhook_id for item in taken) == [1, 1, 2, 2]
        assert len(worker.finish(taken, answered(200)).accepted) == 4


def test_workers_with_the_documented_grants_run_and_doctor_lacks_nothing(
    database: Database, server: Server
) -> None:
    role = server.create_role()
    database.execute(as_role(grants("docs/rights.md", "Workers"), webhookd=role))
    as_worker = Database(database.name, server.dsn(database.name, role))
    with Receiver(answer_ok) as receiver:
        register(database, 1)
        database.execute("UPDATE pggit.webhooks SET url = %s", [receiver.url()])
        # As a row of an earlier release: no claim takes it before a worker has measured its body.
        database.import_rows(
            f"INSERT INTO {QUEUE} (webhook_id, message_body) VALUES (1, '{{}}');"
            f"UPDATE {QUEUE} SET body_bytes = NULL"
        )
        insert(database, 1)
        insert(database, 404)
        with Daemon(as_worker.dsn, workers=2) as daemon:
            delivered = f"SELECT count(*)::int FROM {QUEUE} WHERE delivery_status = 'delivered'"
            eventually(lambda: database.execute(delivered) == [(2,)], what="both delivered")
            report = [found for found in findings(as_worker) if found.name == "rights"]
            assert daemon.stop() == 0
            assert "permission denied" not in daemon.log()
    assert [(finding.severity, finding.detail) for finding in report] == [(Severity.OK, "")]


def test_public_may_do_what_the_document_says(database: Database) -> None:
    assert database.execute(PUBLIC) == [("pggit.wake()",), ("pggit.wake_flag",)]


def test_roles_that_used_the_earlier_functions_go_on(
    empty_database: Database, server: Server
) -> None:
    from webhookd.schema.migrate import load, migrate

    reader = server.create_role()
    migrate(empty_database.dsn, migrations=load()[:4])
    empty_database.execute(
        f"GRANT USAGE ON SCHEMA pggit TO {reader}; GRANT SELECT ON {QUEUE} TO {reader};"
        f"GRANT SELECT (webhook_id, url) ON pggit.webhooks TO {reader}"
    )
    migrate(empty_database.dsn)
    register(empty_database, 1)
    insert(empty_database, 1)
    with connected(empty_database, reader) as session:
        counts = session.execute("SELECT pending_count FROM pggit.count_pending_by_status()")
        assert counts.fetchone() == (1,)
        assert session.execute("SELECT pggit.get_webhook_decrypted(1)").fetchone()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("SELECT * FROM pggit.get_ready_deliveries()")
