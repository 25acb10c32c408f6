# make demo      try mailroute: two mail servers and mailroute in front of them
# make test      run the tests, against the installed package
# make check     look at the code: style, types, and who imports whom
# make coverage  which lines the tests reach, but for those with real servers
# make bench     measure what a session costs, beside nginx, HAProxy, Dovecot and Perdition
# make clean     remove everything that these made
#
# Each of them sets up what it needs.  For another Python: make PYTHON=python3.13 test

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV ?= .venv-$(VERSION)

# More than there are processors, since much of a test is waiting for other programs.
JOBS ?= $(shell expr $$(nproc) + 1)

RUN = $(VENV)/bin
# -P: not the mailroute in this folder, but the installed one.
PYTEST = MAILROUTE_INSTALLED=1 $(RUN)/python -P -m pytest
unexport PYTHONPATH PYTHONHOME

.PHONY: help demo test check coverage bench clean venv venv-test

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: venv
	@$(RUN)/twistd --nodaemon --pidfile= mailroute --demo

# A test skips what is missing, but where everything has to be there that is an error.
MISSING = { [ "$$CI" != true ] && echo "going on: the tests that need them are skipped"; }

# With options of pytest's, and one after the other: make test ARGS='-k demo' JOBS=0
test: venv-test
	@tools/install-debian-packages $$(grep -v '^#' tests/debian-packages.txt) || $(MISSING)
	@tools/install-node-packages || $(MISSING)
	@$(PYTEST) --numprocesses $(JOBS) --dist worksteal $(ARGS)

check: venv-test
	@$(RUN)/ruff check --quiet .
	@$(RUN)/ruff format --quiet --check .
	@$(RUN)/mypy --no-error-summary
	@$(PYTEST) --quiet --no-header tests/test_house.py

coverage: venv-test
	@$(RUN)/coverage run -m pytest --quiet --ignore=tests/integration $(ARGS)
	@$(RUN)/coverage report --skip-covered

# With options of its own: make bench ARGS='--quick --only login,noop --peers nginx,mailroute'
bench: venv
	@tools/install-debian-packages $$(grep -v '^#' benchmarks/debian-packages.txt) || \
		echo "going on: what is missing is left out"
	@$(RUN)/python -m benchmarks $(ARGS)

venv:
	@tools/make-venv $(PYTHON) $(VENV)

venv-test:
	@tools/make-venv $(PYTHON) $(VENV) test

clean:
	rm -rf .venv-* benchmarks/.build build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
