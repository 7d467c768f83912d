# The commands of a checkout. `make demo` and `make test` set up all they need in .venv.
ROOT := $(shell dirname "$(strip $(MAKEFILE_LIST))")
RUN := cd "$(ROOT)" &&

# Without byte code every start of Airflow takes two to three times as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo demo-celery test test-clients test-matrix test-ui release-check check serve bench-airflow bench-completions bench-evaluation bench-page bench-server bench-tuning constraints tiny-model docs screenshots clean

help: ## list these targets
	@$(RUN) grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 20

demo: ## run the notebook's story and the improvement loop in a real Airflow against a real Gradient server
	@$(RUN) scripts/install server && .venv/bin/python -m scripts.demo

demo-celery: ## complete a dataset in shards over two Celery workers, one of them killed (needs PostgreSQL and Redis)
	@$(RUN) scripts/install demo-celery && .venv/bin/python -m scripts.demo_celery

test: ## lint, type-check and run the whole test suite
	@$(RUN) scripts/install dev && scripts/check && .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-clients: ## run published clients, unmodified, against the server (their environments come from package indexes)
	@$(RUN) scripts/install dev && .venv/bin/python -m pytest tests/clients -m clients

test-matrix: ## run the Airflow side's tests under each supported Airflow and Python; a part by ARGS="3.1.8:3.11"
	@$(RUN) scripts/install dev && scripts/test_matrix $(ARGS)

release-check: ## build the package and try it in empty environments, with each extra (ten minutes)
	@$(RUN) scripts/install dev && .venv/bin/python scripts/release_check.py

test-ui: ## make, test and edit connections and watch tasks in a running Airflow by a browser (needs chromium)
	@$(RUN) scripts/install dev && .venv/bin/python -m pytest tests/ui -m ui

check: ## lint and type-check only
	@$(RUN) scripts/install dev && scripts/check

serve: ## start the Gradient server alone; options by ARGS="--port 3026"
	@$(RUN) scripts/install server && exec .venv/bin/python -m airflow_provider_gradient.server $(ARGS)

bench-completions: ## measure completions over datasets beside their peers (twenty minutes); options by ARGS="--quick"
	@$(RUN) scripts/install bench && exec .venv/bin/python -m benchmarks.completions $(ARGS)

bench-evaluation: ## measure evaluation beside its peers, and its gate (ten minutes); options by ARGS="--quick"
	@$(RUN) scripts/install bench && exec .venv/bin/python -m benchmarks.evaluation $(ARGS)

bench-server: ## measure the server's engine beside its peers (ten minutes); options by ARGS="--quick"
	@$(RUN) scripts/install dev && exec .venv/bin/python -m benchmarks.server $(ARGS)

bench-tuning: ## measure what tuning adds to its calls, and the loop's gain (ten minutes); options by ARGS="--quick"
	@$(RUN) scripts/install dev && exec .venv/bin/python -m benchmarks.tuning $(ARGS)

bench-page: ## measure the Gradient page with 10,000 recorded runs (five minutes); options by ARGS="--quick"
	@$(RUN) scripts/install dev && exec .venv/bin/python -m benchmarks.page $(ARGS)

bench-airflow: ## run 200 tasks and 200 sensors in an Airflow with PostgreSQL (twenty minutes); options by ARGS="--tasks 20"
	@$(RUN) scripts/install dev && exec .venv/bin/python -m benchmarks.airflow_load $(ARGS)

constraints: ## write constraints.txt anew (needs uv)
	@$(RUN) scripts/lock

tiny-model: ## train the built-in model anew (ten minutes)
	@$(RUN) scripts/install dev && .venv/bin/python scripts/tiny_model/train.py

docs: ## build the documentation site, strictly, into .site
	@$(RUN) scripts/install docs && .venv/bin/python -m mkdocs build --strict

screenshots: ## take the documentation's pictures from a running Airflow (needs chromium)
	@$(RUN) scripts/install docs && scripts/install server && .venv/bin/python -m scripts.screenshots

clean: ## remove .venv, the demo's and the benchmarks' folders and caches
	@$(RUN) rm -rf .venv .demo .demo-celery .site .bench .matrix dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
