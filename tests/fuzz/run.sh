#!/usr/bin/env bash
# Runs fuzz targets, each for SECONDS_EACH (default 600), one after the other: `tests/fuzz/run.sh [TARGET…]`.
#
# New inputs go to tests/fuzz/target/corpus; `MINIMISE=1` merges what follows different paths into
# target/minimised afterwards. An input that fails is kept in tests/fuzz/target/failures and ends the run.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
./build.sh --features server
programs=target/$(rustc -vV | sed -n 's/^host: //p')/debug
targets=("$@")
[ $# -gt 0 ] || targets=(gateway_json request_message http_path options bolt_file log)
mkdir -p target/failures
for target in "${targets[@]}"; do
    seeds=corpus/$target
    found=target/corpus/$target
    mkdir -p "$seeds" "$found"
    echo "fuzz: $target for ${SECONDS_EACH:-600} s"
    "$programs/fuzz_$target" -max_total_time="${SECONDS_EACH:-600}" -max_len=32768 -timeout=10 -rss_limit_mb=1024 \
        -artifact_prefix="target/failures/$target-" -print_final_stats=1 "$found" "$seeds" \
        2>"target/$target.log" || { tail -n 40 "target/$target.log" >&2; exit 1; }
    grep -E "^stat::number_of_executed_units|cov:" "target/$target.log" | tail -n 2
    if [ "${MINIMISE:-0}" = 1 ]; then
        mkdir -p "target/minimised/$target"
        "$programs/fuzz_$target" -merge=1 -max_len=4096 "target/minimised/$target" "$seeds" "$found" 2>/dev/null
    fi
done
