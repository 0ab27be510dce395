"""Benchmarks of webhookd, each run from the top of the tree as `.venv/bin/python -m bench.NAME`;
bench/README.md explains them.

They share these modules: `postgres` (a server of their own), `sink` (receivers), `fleet`
(webhookd), `deliveries` (its queue), `processes` (CPU and memory), `figures` (intervals and
ratios), `report` (tables in bench/results), `command` (exit status and messages). `systems` are
webhookd and its peers; the peers' programs are in bench/peers. `rounds` measures how one of them
drains its queue. `backlog` makes queues of millions of rows, `probe` and `statements` measure what
claims cost, `curves` and `pictures` show it.
"""
