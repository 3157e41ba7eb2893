#!/usr/bin/env bash
# Builds the fuzz targets with the stable toolchain: LLVM's coverage pass needs no flag that is unstable, only
# sanitizers do, and safe Rust has little for them to find.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=/dev/null
source .ci/scripts/environment.sh
cd tests/fuzz
# `--cfg fuzzing` opens a module of our copy of h2 that its own lints do not allow.
export RUSTFLAGS="--cfg fuzzing --cap-lints warn -Cdebug-assertions -Coverflow-checks -Ccodegen-units=1 \
-Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
# With a target of its own, so that build scripts and macros are not instrumented.
cargo build --bins --target "$(rustc -vV | sed -n 's/^host: //p')" "$@"
