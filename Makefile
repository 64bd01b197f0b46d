# `make run` shows the product, `make check` says yes or no. Everything is installed into .venv, nothing else is touched.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Tests wait for processes more than they compute: a few at a time fit on two cores.
PYTEST_ARGUMENTS ?= --numprocesses=3
COMPILED_TESTS ?= tests/wire tests/worker_child tests/control_plane/web/test_worker_socket.py $(patsubst %,tests/integration/test_%.py, child_killed drain generations public_clients \
  joined_sessions fault_schedules misbehaving_children poison_job process_isolation token_stream)
.DEFAULT_GOAL := help
.PHONY: help run test test-compiled test-long test-llm check format docs bench bench-compiled wheel bench-growth campaign campaign-store lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

.PHONY: python
python:
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: install the Debian package python3 (3.11 or newer)"; exit 69; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version)"; exit 69; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "the venv module is missing: install the Debian package python3-venv"; exit 69; }

$(VENV)/runtime: requirements/runtime.txt pyproject.toml | python
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing what is needed into $(VENV) (once)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/runtime.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# The published clients that the tests run unchanged; they share a package name, so each has an environment of its own.
CLIENTS := $(VENV)/clients-0.0.23 $(VENV)/clients-0.0.61 $(VENV)/clients-0.5.0

$(VENV)/clients-%: requirements/clients-%.txt | python
	@mkdir -p $(VENV)/clients
	$(PYTHON) -m venv $(VENV)/clients/$*
	$(VENV)/clients/$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# The published npm client, with a Node of its own: it wants a newer one than many machines have.
$(VENV)/npm-client/installed: bench/node/package.json bench/node/package-lock.json bench/node/worker.mjs
	@mkdir -p $(@D)
	cp $^ $(@D)
	@if command -v npm >/dev/null; then cd $(@D) && npm ci --silent --ignore-scripts && touch $(@F); \
	  else echo "npm is missing: the measurements leave the npm client out"; fi

$(VENV)/dev: requirements/dev.txt $(VENV)/runtime $(CLIENTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

run: $(VENV)/runtime ## start everything on this machine, run a sample automation, stay up until Ctrl-C
	@exec $(BIN)/mobius quickstart

test: $(VENV)/dev ## the tests
	$(BIN)/python -m pytest $(PYTEST_ARGUMENTS)

check: $(VENV)/dev ## format, lint, types, import contracts, tests: one yes or no
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory test

test-long: $(VENV)/dev ## the same properties, walked much longer than in the tests (minutes)
	MOBIUS_TEST_LONG=1 $(BIN)/python -m pytest --timeout=3600 -rP tests/integration/test_joined_sessions.py \
	  tests/integration/test_fault_schedules.py

# llama.cpp with its own HTTP server, built already; in an environment of its own, since no program of ours needs it.
$(VENV)/llama/installed: requirements/llama.txt | python
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

test-llm: $(VENV)/dev $(VENV)/llama/installed ## generations by a real llama.cpp server, with a tiny model that the test writes
	$(BIN)/python -m pytest -s tests/llm

# The job systems that ours is measured beside, in an environment of their own. Redis and PostgreSQL are Debian's.
$(VENV)/bench-peers/installed: requirements/bench.txt | python
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# Built from what a release would have in it, and nothing is left between the sources: native code there would be run.
$(VENV)/wheel/built: $(VENV)/dev $(shell find wire service_manager supervisor worker_child control_plane mobius_cli -name '*.py') pyproject.toml
	@printf '#include <Python.h>\n' | cc -E -I"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')" - >/dev/null 2>&1 \
	  || { echo "a C compiler or Python's headers are missing: install the Debian packages gcc and python3-dev"; exit 69; }
	rm -rf $(@D)
	$(BIN)/python -m hatchling build --target sdist --directory $(@D)
	HATCH_BUILD_HOOK_ENABLE_MYPYC=true $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  --wheel-dir $(@D) $(@D)/*.tar.gz
	@touch $@

wheel: $(VENV)/wheel/built ## dist/*.whl for this machine, in which what every job passes through is native code
	@mkdir -p dist && cp $(VENV)/wheel/*.whl dist/ && ls dist/*.whl

PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

# The wheel in an environment of its own, which takes everything else from ours.
$(VENV)/compiled/installed: $(VENV)/wheel/built
	$(BIN)/python -m venv --clear --without-pip $(@D)
	$(BIN)/python -m pip --python $(@D)/bin/python install --quiet --disable-pip-version-check --no-deps $(VENV)/wheel/*.whl
	$(BIN)/python $(PURELIB) > $$($(@D)/bin/python $(PURELIB))/of-the-sources.pth
	@touch $@

# Away from the sources, which would be found before what is installed.
.PHONY: compiled-tree
compiled-tree: $(VENV)/compiled/installed
	rm -rf $(VENV)/compiled/tree && mkdir $(VENV)/compiled/tree
	cp -r pyproject.toml bench configs docs tests $(VENV)/compiled/tree
	ln -s $(abspath $(VENV)) $(VENV)/compiled/tree/.venv
	cd $(VENV)/compiled/tree && ../bin/python -c 'import worker_child.session as s; assert not s.__file__.endswith(".py")'

test-compiled: compiled-tree ## the worker's tests against the native code of `make wheel` (COMPILED_TESTS=)
	cd $(VENV)/compiled/tree && ../bin/python -m pytest $(PYTEST_ARGUMENTS) -m "not replaces_code" $(COMPILED_TESTS)

.PHONY: bench-peers
bench-peers: $(VENV)/bench-peers/installed

bench: $(VENV)/dev $(VENV)/compiled/installed $(VENV)/npm-client/installed $(VENV)/bench-peers/installed ## the measurements, side by side with what one would take instead
	$(BIN)/python -m bench.control_plane
	$(MAKE) --no-print-directory bench-compiled
	$(BIN)/python -m bench.worker
	$(BIN)/python -m bench.supervisor
	$(BIN)/python -m bench.tokens
	$(BIN)/python -m bench.deltas
	$(BIN)/python -m bench.isolation

bench-compiled: compiled-tree $(VENV)/bench-peers/installed ## what a job costs where ours is native code (BENCH_ARGUMENTS=)
	cd $(VENV)/compiled/tree && ../bin/python -m bench.control_plane --only ours-sqlite,ours-postgresql,pgqueuer $(BENCH_ARGUMENTS)

bench-growth: $(VENV)/dev ## what is not to grow: with what is kept, with what has passed through, with workers that wait (minutes)
	$(BIN)/python -m bench.growth

campaign: $(VENV)/dev ## random faults against workers under load (SEED= FAULTS=500 WORKERS=20), then KILLS=10 of the quickstart's supervisor
	@$(BIN)/python -m tests.campaign $(if $(SEED),--seed $(SEED)) $(if $(FAULTS),--faults $(FAULTS)) \
	  $(if $(WORKERS),--workers $(WORKERS)) $(if $(KILLS),--kills $(KILLS)) $(if $(OUTPUT),--output $(OUTPUT))

campaign-store: $(VENV)/dev ## control planes killed, PostgreSQL restarted, under load (STORE=sqlite|postgresql SEED= KILLS=200 RESTARTS=20 CUTS=40)
	@$(BIN)/python -m tests.campaign.store $(if $(STORE),--store $(STORE)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(KILLS),--kills $(KILLS)) $(if $(RESTARTS),--restarts $(RESTARTS)) $(if $(CUTS),--cuts $(CUTS)) \
	  $(if $(OUTPUT),--output $(OUTPUT))

format: $(VENV)/dev ## format the code and apply safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/runtime ## write the generated pages of docs/ anew
	$(BIN)/python docs/slots.py

lock: $(VENV)/dev ## write requirements/*.txt anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --extra build --output-file requirements/runtime.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --extra dev --extra postgres --output-file requirements/dev.txt pyproject.toml
	for version in 0.0.23 0.0.61 0.5.0; do echo "deepnoodle-mobius==$$version" | $(BIN)/uv pip compile --quiet --universal \
	  --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --output-file requirements/clients-$$version.txt - || exit; done
	printf '%s\n' asyncpg uvloop pgqueuer "procrastinate" "psycopg[binary,pool]" "dramatiq[redis]" "celery[redis]" | $(BIN)/uv \
	  pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --output-file requirements/bench.txt -
	echo "xllamacpp" | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --output-file requirements/llama.txt -
	if command -v npm >/dev/null; then cd bench/node && npm install --package-lock-only --omit-lockfile-registry-resolved; fi

clean: ## remove what make has made
	rm -rf $(VENV) .quickstart
