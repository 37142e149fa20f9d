# The two commands: `make demo` shows everything on this machine, `make test` runs every test. Each sets up what is missing.

.PHONY: setup workloads test check demo down bench docs

setup:
	@PYTHON="$(PYTHON)" tools/setup.sh

# What the examples of jobs run, PyTorch and MPI among it: 1.5 GB on disk
workloads: setup
	@tools/setup_workloads.sh

# Four files at a time, since most of a live test is waiting; live ones first, so that none is left to be waited for alone.
# ARGS="-k supervisor" chooses tests, ARGS="-n 0" takes one at a time.
# Tests with limits on time, or that look at the machine as a whole, run by themselves afterwards. (5: none were chosen.)
# Without the workloads the others still run, and say so.
# Tests are compiled once meanwhile, and not by each of those that run them.
test: setup
	@env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m pytest --collect-only -qq >/dev/null 2>&1 & tools/setup_workloads.sh || true; wait
	.venv/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not alone" --durations=15 $(ARGS) || [ $$? -eq 5 ]
	.venv/bin/python -m pytest -m alone $(ARGS) || [ $$? -eq 5 ]

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/basedpyright
	.venv/bin/lint-imports
	.venv/bin/python tools/check_budgets.py src tests tools

demo: setup
	@.venv/bin/python examples/demo/demo.py

down:
	@if [ -x .venv/bin/steelyard ]; then .venv/bin/steelyard down; else echo "Nothing is set up, so nothing runs."; fi

bench: setup
	.venv/bin/python -m bench $(ARGS)

docs: setup
	.venv/bin/python tools/render_docs.py
