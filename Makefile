# Coracle: Kubernetes in one small binary.
#
#   make up      prerequisites, build, a one-node cluster, its kubeconfig, and an example Pod running
#   make down    stop the cluster; `make purge` also removes every trace
#   make test    everything that CI runs
#   make vm-test the cluster on Debian's kernel in qemu: cgroups v2, reboots, power cuts, all end-to-end tests (an hour)
#   make podspec  PODSPEC.md anew: what of a Pod is honoured
#   make soak    100,000 power cuts at random moments of random histories, 1,000 Pods that come and go, a million
#                programs that end at once; hours
#   make sim-hashes  the example scenarios do the same in debug and release builds
#   make fuzz    2,000 random simulated clusters of ten minutes under the invariants; minutes
#   make guards  takes each guard away, one at a time, and sees that its test fails; GUARD=WORD for some
#   make bench   the benchmarks, as a table
#   make lint    formatting, lints and dependency rules
#   make check   a quick type check
.PHONY: up down purge test soak bench lint check build prerequisites e2e vm-test guards fuzz sim-hashes podspec
CARGO ?= cargo
export PATH := $(CURDIR)/.cache/deny/bin:$(PATH)

up:
	@scripts/up.sh

build:
	$(CARGO) build --release --bin coracle

down:
	target/release/coracle down

purge:
	target/release/coracle down --purge

check:
	$(CARGO) check --workspace --all-targets

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	# Clippy cannot tell the biased wrapper from what it wraps, so this rule is a search.
	@! grep -rnE 'tokio::(select!|\{[^}]*select)' crates --include='*.rs' | grep -v '^crates/coracle-clock/' \
		|| { echo 'use coracle_clock::select, which is biased: tokio::select is unordered'; exit 1; }
	@python3 scripts/guards/run.py --check

prerequisites:
	@scripts/prerequisites.sh test

test: prerequisites lint
	$(CARGO) fetch --quiet
	$(CARGO) deny --offline --log-level error check bans licenses sources
	$(CARGO) test --workspace

e2e: prerequisites
	$(CARGO) test --package coracle --test e2e

vm-test:
	@scripts/prerequisites.sh vm
	@$(CARGO) build --quiet --release --bin coracle
	@python3 scripts/vm/run.py $(VM_TEST)

soak:
	$(CARGO) test --release --package coracle-store --test crash soak -- --ignored --nocapture
	$(CARGO) test --release --package coracle --test e2e soak -- --ignored --nocapture
	CORACLE_FAST_EXITS=1000000 $(CARGO) test --release --package coracle-runtime --test engine \
		exploits::no_start_hangs_and_no_exit_is_lost -- --nocapture

sim-hashes:
	@scripts/sim-hashes.sh

fuzz: sim-hashes
	$(CARGO) run --release --quiet --package coracle-sim --example fuzz -- --seeds 2000 --minutes 10

podspec:
	CORACLE_WRITE_PODSPEC=1 $(CARGO) test --package coracle-api the_document_says_what_the_server_does

guards: prerequisites
	@python3 scripts/guards/run.py $(GUARD)

bench: prerequisites
	@$(CARGO) build --quiet --release --bin coracle --bin coracle-bench
	@python3 scripts/busybox-image.py target/busybox.tar --name busybox:1.35
	@target/release/coracle-bench --coracle target/release/coracle --image-archive target/busybox.tar
