"""The bound: it claims a batch, POSTs each row over a bare socket, completes the batch, and does
nothing else.

`python bound.py URL`. It has no signature, health, log, metrics, lease or deadline, and hardly a
parser: never use it for anything but this comparison.
"""

import socket
import sys
import time
from urllib.parse import urlsplit

import psycopg

BATCH = 100
IDLE_S = 0.005

CLAIM = """
UPDATE bound.queue q SET status = 'sending'
  FROM (SELECT id FROM bound.queue WHERE status = 'pending' ORDER BY id LIMIT %s
           FOR UPDATE SKIP LOCKED) picked
 WHERE q.id = picked.id RETURNING q.id, q.webhook_id, q.body
"""
COMPLETE = "UPDATE bound.queue SET status = 'delivered' WHERE id = ANY(%s)"


def main(url: str) -> None:
    host, port = urlsplit(url).hostname, urlsplit(url).port
    sock = socket.create_connection((host, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = f" HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\ncontent-length: "
    with psycopg.connect(autocommit=True) as connection:
        print("ready", flush=True)
        while True:
            rows = connection.execute(CLAIM, [BATCH]).fetchall()
            if not rows:
                time.sleep(IDLE_S)
                continue
            for _, webhook_id, body in rows:
                sock.sendall(f"POST /{webhook_id}{head}{len(body)}\r\n\r\n{body}".encode())
                answer = sock.recv(4096)
                while not answer.endswith(b"\r\n\r\n"):
                    answer += sock.recv(4096)
                if not answer.startswith(b"HTTP/1.1 204"):
                    raise SystemExit(f"the sink answered {answer!r}")
            connection.execute(COMPLETE, [[row[0] for row in rows]])


if __name__ == "__main__":
    main(sys.argv[1])
