#!/usr/bin/env bash
# Makes sure that there is a cargo new enough for this repository, and prints the folder it is in if that
# is not in PATH.
#
# It installs through package managers only: with rustup where it is there, else with Debian's or
# Ubuntu's package `rustup` (Debian 13, Ubuntu 24.04 and newer). It never pipes a script from the network
# into a shell; where neither works it says what to do.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
minimum=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$root/Cargo.toml")
home_bin=${CARGO_HOME:-$HOME/.cargo}/bin

say() { echo "rust: $*" >&2; }

is_new_enough() {
    local cargo=$1 found
    # Outside of the repository, so that a rustup without a toolchain does not fetch one unasked.
    found=$("$cargo" --version 2>/dev/null | awk '{print $2}') || return 1
    [ -n "$found" ] && [ "$(printf '%s\n' "$minimum" "$found" | sort -V | head -n 1)" = "$minimum" ]
}

if command -v cargo >/dev/null && is_new_enough cargo; then
    exit 0
fi
if [ -x "$home_bin/cargo" ] && is_new_enough "$home_bin/cargo"; then
    echo "$home_bin"
    exit 0
fi

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

is_offered() { apt-cache policy "$1" 2>/dev/null | grep -q 'Candidate: [0-9]'; }

give_up() {
    say "cargo $minimum or newer is needed and was not found; found: $(cargo --version 2>/dev/null || echo none)."
    say "Install it from https://rustup.rs, or with the package 'rustup' of your distribution, then run make again."
    exit 1
}

rustup=$(command -v rustup || true)
[ -n "$rustup" ] || { [ -x "$home_bin/rustup" ] && rustup=$home_bin/rustup; } || true
if [ -z "$rustup" ]; then
    command -v apt-get >/dev/null || give_up
    if ! is_offered rustup; then
        say "updating the package lists, to look for the package rustup"
        as_root apt-get update -qq >&2 || give_up
    fi
    is_offered rustup || give_up
    say "installing the package rustup"
    as_root apt-get install -y -qq --no-install-recommends rustup >&2 || give_up
    rustup=$(command -v rustup) || give_up
fi
say "installing the stable Rust toolchain with rustup"
"$rustup" toolchain install stable --profile minimal --component clippy,rustfmt >&2 || give_up
"$rustup" default stable >&2 || give_up

for folder in "" "$home_bin" "$(dirname "$rustup")"; do
    if is_new_enough "${folder:+$folder/}cargo"; then
        echo "$folder"
        exit 0
    fi
done
give_up
