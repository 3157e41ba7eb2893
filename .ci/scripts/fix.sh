#!/usr/bin/env bash
# `make fix`: writes what can be written by a program.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
cargo run --quiet --package metastore-proto-codegen
cargo run --quiet --package metastore-operator-api --bin crdgen -- .
METASTORE_WRITE_PAGES=1 cargo test --quiet --package metastore-tests --test tidy generated
cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
cargo fmt --all
