#!/usr/bin/env bash
# Prints where cargo-deny is, and builds it once into the user's cache when it is not installed.
set -euo pipefail

version=0.20.2

if command -v cargo-deny; then
    exit 0
fi
folder=${XDG_CACHE_HOME:-$HOME/.cache}/metastore/cargo-deny
if [ ! -x "$folder/bin/cargo-deny" ]; then
    echo "check: building cargo-deny $version once; this takes some minutes" >&2
    # A target of its own: with the one of the repository all its packages would be rebuilt.
    CARGO_TARGET_DIR="$folder/target" cargo install --quiet --locked --version "$version" --root "$folder" cargo-deny >&2
    rm -rf "$folder/target"
fi
echo "$folder/bin/cargo-deny"
