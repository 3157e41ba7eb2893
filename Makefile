# Each target is one line that calls a script or cargo; .ci/scripts/environment.sh finds Rust and RocksDB.
# `check` never writes, `fix` may.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

ENVIRONMENT := source .ci/scripts/environment.sh

# The tests start our programs, and cargo does not build one package's program for another's tests. The whole
# workspace at once: a selection of packages has other features, and all dependencies would be built twice.
PREPARE_TESTS := tests/tools/install.sh >/dev/null; tests/tools/install-clients.sh >/dev/null; tests/kubernetes/install.sh --helm >/dev/null || echo "the charts are not tested: there is no helm"; cargo build --workspace --bins --tests

.PHONY: help
help: ## show the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

.PHONY: build
build: ## build the programs: target/release/metastore and metastorectl
	@$(ENVIRONMENT); cargo build --release --package metastore-server --package metastore-ctl

.PHONY: run
run: ## start one member on port 2379
	@.ci/scripts/run.sh 1

.PHONY: run-cluster
run-cluster: ## start three members on ports 2379, 2389 and 2399
	@.ci/scripts/run.sh 3

.PHONY: test
test: ## run every test; builds etcd's programs once, to compare with
	@$(ENVIRONMENT); $(PREPARE_TESTS); cargo test --workspace --no-fail-fast

.PHONY: test-again
test-again: ## run some test targets: TARGETS="--test process --lib"
	@$(ENVIRONMENT); $(PREPARE_TESTS); cargo test --workspace --no-fail-fast $(TARGETS)

.PHONY: check
check: ## format, lints, licences and dependencies; writes nothing
	@$(ENVIRONMENT); .ci/scripts/check.sh

.PHONY: fix
fix: ## format, apply lints' suggestions, write the generated pages
	@$(ENVIRONMENT); .ci/scripts/fix.sh

.PHONY: e2e
e2e: ## only the tests that start processes
	@$(ENVIRONMENT); $(PREPARE_TESTS); cargo test --package metastore-tests --no-fail-fast

.PHONY: soak
soak: ## the tests that start processes, again and again: ROUNDS=20
	@$(ENVIRONMENT); $(PREPARE_TESTS); for round in $$(seq $${ROUNDS:-20}); do echo "round $$round"; cargo test --package metastore-tests; done

.PHONY: fuzz
fuzz: ## fuzzing that follows the coverage, ten minutes for each of six targets: TARGETS="options log"
	@tests/fuzz/run.sh $(TARGETS)

.PHONY: bench
bench: ## measure MetaStore and etcd in turn; takes about an hour
	@$(ENVIRONMENT); tests/bench/run.sh $(ARGUMENTS)

.PHONY: operator
operator: ## run the operator on this machine, against the current kubeconfig
	@$(ENVIRONMENT); cargo run --release --package metastore-operator -- --log-format text --listen 127.0.0.1:8080 $(ARGUMENTS)

.PHONY: kubernetes-tools
kubernetes-tools: ## build kube-apiserver and its controllers once, for the tests of the operator
	@tests/kubernetes/install.sh

.PHONY: e2e-control-plane
e2e-control-plane: kubernetes-tools ## a Kubernetes control plane on one and on three members, which are killed
	@$(ENVIRONMENT); cargo build --workspace --bins --tests; tests/kubernetes/control-plane.sh 1; tests/kubernetes/control-plane.sh 3

.PHONY: e2e-kubernetes
e2e-kubernetes: kubernetes-tools ## the operator on a real Kubernetes API server: SERVER=metastore or etcd
	@$(ENVIRONMENT); $(PREPARE_TESTS); METASTORE_KUBERNETES_SERVER=$${SERVER:-metastore} cargo test --workspace --test kubernetes -- --include-ignored --nocapture --test-threads=1 $(TESTS)

.PHONY: e2e-object-stores
e2e-object-stores: ## backups into S3 and Azure, against servers of their protocols
	@tests/kubernetes/install-stores.sh >/dev/null; $(ENVIRONMENT); $(PREPARE_TESTS); cargo test --workspace --test object_stores -- --ignored

.PHONY: e2e-nodes
e2e-nodes: kubernetes-tools ## the operator on a real Kubernetes with nodes that run containers; needs root
	@$(ENVIRONMENT); cargo build --workspace --bins --tests; tests/kubernetes/nodes.sh
