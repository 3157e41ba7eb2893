#!/usr/bin/env bash
# `make check`: what a reviewer should not have to say. Writes nothing.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
cargo fmt --all --check
cargo clippy --workspace --all-targets -- -D warnings
if command -v cargo-deny >/dev/null; then
    # Advisories need the network and change without us: `cargo deny check advisories` is for people.
    cargo deny --log-level error check bans licenses sources
else
    echo "check: cargo-deny is not installed, so licences and duplicates were not checked" \
        "(cargo install --locked cargo-deny)" >&2
fi
