# Two commands: `make demo` sets up and runs the main job, `make test` sets up and runs the tests.
# Both keep to .venv; PYTHON chooses the interpreter (3.11 to 3.13).

PYTHON ?= python3
BIN := .venv/bin
TOOLS := .venv/tools/bin
# One thread per test process: two processes share the cores, and numpy, torch and the engines would fight over them.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -n 2 -rs

# GCC 12 compiles llama.cpp's AMX code to a crash (https://github.com/ggml-org/llama.cpp/pull/26954): leave that code
# out where the CPU has such a unit.
NO_AMX := $(shell echo | cc -march=native -dM -E - 2>/dev/null | grep -q __AMX_TILE__ && echo -mno-amx-tile -mno-amx-int8)

.PHONY: demo test test-heavy campaigns lint types docs site models lock wheel licences clean

demo: .venv/export.done
	$(BIN)/edgevlm demo --out bundles/demo

test: lint types docs
	$(PYTEST)

# The 256M shape, wheels and fresh environments, llama.cpp, which is compiled here, and Core AI's beta: minutes
# long, wants 8 GB of memory and the package index; with node and npm, transformers.js too. Then the files with tests
# that `make test` skips where it has neither llama.cpp nor Core AI.
test-heavy: .venv/heavy.done .venv/coreai.done
	$(PYTEST) -m heavy
	$(PYTEST) $$(grep -rlE '\("(llama_cpp|coreai)"[,)]' tests --include='test_*.py')

# Damaged files by the thousand, kills and full disks by the hundred: an hour or so, weekly rather than at each change.
campaigns: .venv/heavy.done
	$(PYTEST) -m campaign tests/fuzz tests/serve

lint: .venv/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the mapping of export/ and runtimes/ into the package: show it the package as installed, by links.
# It knows what each system's Python lacks.
types: .venv/test.done
	rm -rf .venv/types && mkdir -p .venv/types/edgevlm
	ln -s $(CURDIR)/edgevlm/* $(CURDIR)/export $(CURDIR)/runtimes .venv/types/edgevlm/
	cd .venv/types && for system in linux darwin win32; do \
	  ../bin/mypy --platform $$system --config-file $(CURDIR)/pyproject.toml \
	  --cache-dir $(CURDIR)/.mypy_cache/$$system -p edgevlm || exit 1; done

docs: .venv/test.done
	$(BIN)/python docs/make_cli_docs.py --check
	$(BIN)/python docs/make_schemas.py --check
	$(BIN)/python docs/make_limits.py --check
	$(BIN)/python docs/make_models.py --check
	$(BIN)/python docs/make_performance.py --check
	$(BIN)/python docs/make_choose.py --check

# The documents as a site, into build/site, where `python3 -m http.server` shows it. A link or heading that is not there, or a page
# that the navigation lacks, stops it.
site: .venv/docs.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# docs/models.md, of what the families' tests measure, heavy ones too: an hour or so. One family: docs/make_models.py NAME.
models: .venv/heavy.done
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python docs/make_models.py

.venv/%.done: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	CFLAGS='$(CFLAGS) $(NO_AMX)' CXXFLAGS='$(CXXFLAGS) $(NO_AMX)' $(BIN)/pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@

# Requirements by version and hash, of the tests and of the tools, which live apart from what is tested.
lock: $(TOOLS)/done
	$(TOOLS)/python requirements/make_lock.py

wheel: $(TOOLS)/done
	$(TOOLS)/python release/make_dist.py dist

licences: .venv/test.done
	$(BIN)/python docs/make_licences.py

$(TOOLS)/done: requirements/tools.txt
	$(PYTHON) -m venv .venv/tools
	$(TOOLS)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	touch $@

clean:
	rm -rf .venv build dist bundles *.egg-info .mypy_cache .ruff_cache .pytest_cache
