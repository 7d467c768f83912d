# The commands of a checkout. `make demo` and `make test` set up all they need in .venv.
ROOT := $(shell dirname "$(strip $(MAKEFILE_LIST))")
RUN := cd "$(ROOT)" &&

# Without byte code every start of Airflow takes two to three times as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check serve bench-completions constraints tiny-model screenshots clean

help: ## list these targets
	@$(RUN) grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 20

demo: ## run the notebook's story and the improvement loop in a real Airflow against a real Gradient server
	@$(RUN) scripts/install server && .venv/bin/python scripts/demo.py

test: ## lint, type-check and run the whole test suite
	@$(RUN) scripts/install dev && scripts/check && .venv/bin/python -m pytest

check: ## lint and type-check only
	@$(RUN) scripts/install dev && scripts/check

serve: ## start the Gradient server alone; options by ARGS="--port 3026"
	@$(RUN) scripts/install server && exec .venv/bin/python -m airflow_provider_gradient.server $(ARGS)

bench-completions: ## measure completions over datasets beside their peers (twenty minutes); options by ARGS="--quick"
	@$(RUN) scripts/install bench && exec .venv/bin/python -m benchmarks.completions $(ARGS)

constraints: ## write constraints.txt anew (needs uv)
	@$(RUN) scripts/lock

tiny-model: ## train the built-in model anew (ten minutes)
	@$(RUN) scripts/install dev && .venv/bin/python scripts/tiny_model/train.py

screenshots: ## take the documentation's pictures from a running Airflow (needs chromium)
	@$(RUN) scripts/install docs && .venv/bin/python scripts/screenshots.py

clean: ## remove .venv, the demo's and the benchmarks' folders and caches
	@$(RUN) rm -rf .venv .demo .bench .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
