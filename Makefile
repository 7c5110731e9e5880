# make lint   formatting and lints, as CI runs them
# make check  a quick type check
.PHONY: lint check test
CARGO ?= cargo

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings

check:
	$(CARGO) check --workspace --all-targets

test: lint
	$(CARGO) test --workspace
