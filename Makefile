# Two commands: `make demo` sets up and runs the main job, `make test` sets up and runs the tests.
# Both keep to .venv; PYTHON chooses the interpreter (3.11 to 3.13).

PYTHON ?= python3
BIN := .venv/bin
# One thread per test process: two processes share the cores, and numpy, torch and the engines would fight over them.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -n 2 -rs

.PHONY: demo test test-heavy lint types docs clean

demo: .venv/export.done
	$(BIN)/edgevlm demo --out bundles/demo

test: lint types docs
	$(PYTEST)

# The 256M shape, wheels and fresh environments, llama.cpp, which is compiled here, and Core AI's beta: minutes
# long, wants 8 GB of memory and the package index; transformers.js too, where node and npm are installed.
test-heavy: .venv/test.done .venv/llama.done .venv/coreai.done
	$(PYTEST) -m heavy
	$(PYTEST) tests/runtimes/test_llama.py tests/verify/test_across.py tests/export/test_gguf.py tests/export/test_coreai.py tests/test_elsewhere.py

lint: .venv/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the mapping of export/ and runtimes/ into the package: show it the package as installed, by links.
types: .venv/test.done
	rm -rf .venv/types && mkdir -p .venv/types/edgevlm
	ln -s $(CURDIR)/edgevlm/* $(CURDIR)/export $(CURDIR)/runtimes .venv/types/edgevlm/
	cd .venv/types && ../bin/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p edgevlm

docs: .venv/test.done
	$(BIN)/python docs/make_cli_docs.py --check
	$(BIN)/python docs/make_schemas.py --check

.venv/%.done: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@

clean:
	rm -rf .venv build dist bundles *.egg-info .mypy_cache .ruff_cache .pytest_cache
