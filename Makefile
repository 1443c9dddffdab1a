# What CI and contributors run, by name.
.PHONY: setup test slow mutants lint docs bench

setup:  ## the tested versions and the checkout, into the active environment
	pip install -c constraints.txt -e '.[test]'
	pre-commit install

test:  ## the suite, as CI runs it
	python -m pytest -n 2 --dist worksteal

slow:  ## tests that take minutes each
	python -m pytest -m slow --timeout 7200

N ?= 300
SEED ?= 1
mutants:  ## put N faults in, count those that the tests notice; goes on where it was stopped
	PYTHONPATH=.:tests python -m mutation record
	PYTHONPATH=.:tests python -m mutation run --count $(N) --seed $(SEED) --jobs 2
	PYTHONPATH=.:tests python -m mutation report --count $(N) --seed $(SEED)

lint:  ## style, types, who imports whom, spelling
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	codespell

docs:  ## the documentation site, into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

bench:  ## a quick pass over all benchmarks on the CPU; its numbers mean nothing
	bash benchmarks/gpu.sh build/bench --device cpu --quick
