# Everything starts with `make demo` or `make test`; both make the environment first. GPU: make EXTRA=gpu ...
EXTRA ?= cpu
BIN := .venv/bin
COMPILE = uv pip compile pyproject.toml requirements/build.in --extra datasets --extra otel --extra s3 --generate-hashes \
	--no-emit-index-url --no-header --python-version 3.11 --python-platform x86_64-manylinux_2_28 --quiet
WORKSHOP = --extra broker --extra plots --group dev --group trainers

.DEFAULT_GOAL := help
.PHONY: help env demo test lint types format bench chaos sim requirements clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 15

env: ## the environment .venv from pinned, hashed requirements
	@requirements/make_env.sh $(EXTRA)

demo: env ## from nothing to a reward curve that rises; DEMO_ARGS="--seed 1 ..."
	$(BIN)/rollstream demo $(DEMO_ARGS)

test: env ## the whole suite: real broker, real vLLM, sandboxes; TEST_ARGS="-k name ..."
	$(BIN)/pytest $(TEST_ARGS)

lint: env ## ruff and the import arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: env ## pyright, strict
	$(BIN)/pyright

format: env ## rewrite what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env ## the figures: a table and runs/bench/latest.json
	$(BIN)/python benchmarks/run.py $(BENCH_ARGS)

chaos: env ## kill everything at random moments; KILLS=50 SEED=0 ENGINE=scripted|vllm MINUTES=5
	$(BIN)/python tests/chaos/run.py $(if $(KILLS),--kills $(KILLS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(ENGINE),--engine $(ENGINE)) $(if $(MINUTES),--minutes $(MINUTES)) $(CHAOS_ARGS)

sim: env ## the production code under simulated faults; SEEDS=20000 FIRST=0 PROFILE=default
	$(BIN)/python tests/simulation/campaign.py $(or $(SEEDS),20000) --first $(or $(FIRST),0) \
		--profile $(or $(PROFILE),default)

requirements: ## pin again after a change of dependencies; needs uv
	$(COMPILE) $(WORKSHOP) --extra cpu --output-file requirements/cpu.txt
	$(COMPILE) $(WORKSHOP) --extra gpu --output-file requirements/gpu.txt
	$(COMPILE) --output-file requirements/light.txt
	echo 'uv==0.13.8' | uv pip compile - --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet \
		--python-version 3.11 --output-file requirements/uv.txt

clean: ## remove the environment and every cache in this folder; runs/ stays
	rm -rf .venv .cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
