#!/usr/bin/env bash
# `make check`: what a reviewer should not have to say. Writes nothing into the repository.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
cargo fmt --all --check
cargo clippy --workspace --all-targets -- -D warnings

deny=$(.ci/scripts/cargo-deny.sh)
"$deny" --log-level error check bans licenses sources
# Advisories need the network and change without us: what they say is shown, and what fails is fetching them.
if "$deny" fetch db 2>/dev/null; then
    "$deny" --log-level error check --disable-fetch advisories
else
    echo "check: the database of advisories cannot be reached, so known vulnerabilities were not looked for" >&2
fi
