# make lint   formatting and lints, as CI runs them
# make check  a quick type check
.PHONY: lint check test
CARGO ?= cargo

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	# Clippy cannot tell the biased wrapper from what it wraps, so this rule is a search.
	@! grep -rnE 'tokio::(select!|\{[^}]*select)' crates --include='*.rs' | grep -v '^crates/coracle-clock/' \
		|| { echo 'use coracle_clock::select, which is biased: tokio::select is unordered'; exit 1; }

check:
	$(CARGO) check --workspace --all-targets

test: lint
	$(CARGO) test --workspace
