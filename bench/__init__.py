"""Benchmarks of webhookd, each run from the top of the tree as `.venv/bin/python -m bench.NAME`;
bench/README.md explains them.

The ground that they share: `postgres` (a server of their own), `sink` (receivers), `fleet`
(webhookd), `deliveries` (its queue), `processes` (CPU and memory), `figures` (intervals and
ratios), `report` (tables in bench/results), `command` (how they end). `systems` are webhookd and
its peers, whose programs are in bench/peers; `rounds` measures one of them draining its queue.
`backlog` makes queues of millions of rows, `probe` and `statements` say what claims cost, `curves`
and `pictures` show it.
"""
