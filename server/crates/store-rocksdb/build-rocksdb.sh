#!/usr/bin/env bash
# Builds RocksDB once for every profile and checkout, as a static library in the user's cache.
#
#   server/crates/store-rocksdb/build-rocksdb.sh               build if needed
#   eval "$(server/crates/store-rocksdb/build-rocksdb.sh --print-env)"   and tell cargo where it is
#
# Why: librocksdb-sys compiles 343 C++ files one by one, 37 CPU-minutes for each cargo profile,
# nearly all of it spent in reading the same headers. The same files as a dozen translation units
# take a quarter of that, and a library outside target/ serves debug, release and `cargo clean`.
# Without this script a plain `cargo build` still works; it is only slow.
#
# The sources, their list and the flags are those of the librocksdb-sys version in Cargo.lock, plus
# SSE4.2 and PCLMUL on x86_64, without which the checksum of every block is computed in software.
#
# ROCKSDB_BUILD_JOBS limits how many units are compiled at once (default: cores, and not more than
# fit into the free memory at 2 GiB each).
set -euo pipefail

readonly units=12
readonly unit_memory_kib=$((2 * 1024 * 1024))

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/metastore

say() { echo "build-rocksdb: $*" >&2; }
die() { say "$*"; exit 1; }

# The version of a package in Cargo.lock.
locked_version() {
    awk -v name="name = \"$1\"" '$0 == name { getline; gsub(/version = |"/, ""); print; exit }' \
        "$root/Cargo.lock"
}

print_env() {
    echo "export ROCKSDB_LIB_DIR=$cache/rocksdb/lib"
    echo "export ROCKSDB_STATIC=1"
}

has_libclang() {
    local candidates=("${LIBCLANG_PATH:-/nonexistent}" /usr/lib/llvm-*/lib /usr/lib/*-linux-gnu
        /usr/lib64 /usr/lib)
    compgen -G "/usr/lib/llvm-*/lib/clang/*/include/stdbool.h" >/dev/null \
        || compgen -G "/usr/lib*/clang/*/include/stdbool.h" >/dev/null || return 1
    local folder
    for folder in "${candidates[@]}"; do
        compgen -G "$folder/libclang*.so*" >/dev/null && return 0
    done
    return 1
}

# bindgen reads RocksDB's C header with libclang, and libclang needs the headers of its own version.
install_tools() {
    local packages=()
    command -v g++ >/dev/null || packages+=(g++)
    if ! has_libclang; then
        command -v apt-cache >/dev/null \
            || die "libclang and its headers are missing and this is no Debian: install clang's library package"
        [ -n "$(apt-cache search --names-only '^libclang1-[0-9]+$')" ] || as_root apt-get update -qq >&2
        local newest
        newest=$(apt-cache search --names-only '^libclang1-[0-9]+$' | sed 's/^libclang1-\([0-9]*\).*/\1/' \
            | sort -n | tail -1)
        [ -n "$newest" ] || die "apt offers no libclang1-<version>: install libclang and its headers by hand"
        packages+=("libclang1-$newest" "libclang-common-$newest-dev")
    fi
    [ ${#packages[@]} -eq 0 ] && return
    command -v apt-get >/dev/null || die "these are missing: ${packages[*]}"
    say "installing ${packages[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${packages[@]}" >&2
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# The folder of a package's sources: what cargo unpacked before, else where cargo says they are (it
# downloads them then; registries, vendoring and patches all work).
source_folder() {
    local path
    for path in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$1-$(locked_version "$1")"; do
        [ -d "$path" ] && { echo "$path"; return; }
    done
    say "asking cargo for the sources of $1"
    path=$(cargo metadata --locked --format-version 1 --manifest-path "$root/Cargo.toml" \
        | grep -o "\"manifest_path\":\"[^\"]*/$1[^/\"]*/Cargo.toml\"" | head -1 || true)
    path=${path#'"manifest_path":"'}
    [ -n "$path" ] || die "cargo metadata --locked did not name the sources of $1 (is Cargo.lock stale?)"
    dirname "${path%\"}"
}

jobs_that_fit() {
    local cores free_kib fit
    cores=$(nproc)
    free_kib=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo)
    fit=$((free_kib / unit_memory_kib))
    [ "$fit" -ge 1 ] || fit=1
    echo $((cores < fit ? cores : fit))
}

architecture=$(uname -m)
version=$(locked_version librocksdb-sys)
[ -n "$version" ] || die "$root/Cargo.lock does not name librocksdb-sys"

install_tools

flags=(-std=c++20 -O2 -fPIC -ffunction-sections -fdata-sections -w -include cstdint -DNDEBUG=1
    -DLZ4=1 -DZSTD=1 -DHAVE_ALIGNED_NEW -DHAVE_UINT128_EXTENSION -DOS_LINUX
    -DROCKSDB_PLATFORM_POSIX -DROCKSDB_LIB_IO_POSIX -DROCKSDB_SCHED_GETCPU_PRESENT
    -DROCKSDB_AUXV_GETAUXVAL_PRESENT -DROCKSDB_FALLOCATE_PRESENT -DROCKSDB_RANGESYNC_PRESENT)
case $architecture in
x86_64) flags+=(-msse4.2 -mpclmul) ;;
aarch64) flags+=(-march=armv8-a+crc+crypto) ;;
esac

# What decides about the bytes of the library: sources, flags and compiler.
key=$(printf '%s\n' "$version" "$(locked_version lz4-sys)" "$(locked_version zstd-sys)" \
    "$architecture" "$(g++ -dumpfullversion)" "$units" "${flags[@]}" | sha256sum | cut -c1-12)
target=$cache/rocksdb-${version%%+*}-$key

point_to_target() {
    [ "$(readlink "$cache/rocksdb" || true)" = "$target" ] && return
    ln -s "$target" "$cache/rocksdb.$$"
    mv -T "$cache/rocksdb.$$" "$cache/rocksdb"
}

build() {
    [ "$(uname -s)" = Linux ] || die "only Linux is supported: let cargo build RocksDB itself"
    local rocksdb lz4 zstd work jobs
    rocksdb=$(source_folder "librocksdb-sys")
    lz4=$(source_folder lz4-sys)/liblz4/lib
    zstd=$(source_folder zstd-sys)/zstd/lib
    work=$target/build
    mkdir -p "$work" "$target/lib"

    # build_version.cc comes generated with the crate. The rest is cut into runs of about equal size:
    # neighbours share headers, and a run keeps the order in which RocksDB lists its files.
    {
        echo build_version.cc
        sed -e 's/[[:space:]]*$//' -e '/^$/d' -e '/^util\/build_version\.cc$/d' -e 's|^|rocksdb/|' \
            "$rocksdb/rocksdb_lib_sources.txt"
    } >"$work/sources"
    rm -f "$work"/unit-*.cc
    (cd "$rocksdb" && xargs wc -c <"$work/sources") | awk -v units="$units" -v work="$work" '
        $2 == "total" { next }
        { size[NR] = $1; name[NR] = $2; total += $1; count = NR }
        END {
            for (i = 1; i <= count; i++) {
                unit = int(done * units / total); done += size[i]
                printf "#include \"%s\"\n", name[i] > sprintf("%s/unit-%02d.cc", work, unit)
            }
        }'

    jobs=${ROCKSDB_BUILD_JOBS:-$(jobs_that_fit)}
    say "compiling $(wc -l <"$work/sources") files as $units units, $jobs at once, into $target"
    # An object that is there is whole (it is renamed when done), so an interrupted build goes on.
    export CXX_COMMAND
    CXX_COMMAND=$(printf '%q ' "${CXX:-g++}" "${flags[@]}" "-I$rocksdb/rocksdb/include" \
        "-I$rocksdb/rocksdb" "-I$rocksdb/rocksdb/third-party/gtest-1.8.1/fused-src" "-I$rocksdb" \
        "-I$lz4" "-I$zstd")
    printf '%s\n' "$work"/unit-*.cc | xargs -P "$jobs" -I{} bash -c '
        set -e
        object=${1%.cc}.o
        [ -f "$object" ] && exit 0
        eval "nice $CXX_COMMAND -c \"\$1\" -o \"\$object.part\""
        mv "$object.part" "$object"
        echo "build-rocksdb: $(basename "$object") done" >&2
    ' _ {} || die "a unit did not compile; its messages are above"

    rm -f "$work/librocksdb.a"
    ar crs "$work/librocksdb.a" "$work"/unit-*.o
    mv "$work/librocksdb.a" "$target/lib/librocksdb.a"
    rm -r "$work"
    say "built $(du -h "$target/lib/librocksdb.a" | cut -f1) in $target/lib"
}

mkdir -p "$cache"
if [ ! -f "$target/lib/librocksdb.a" ]; then
    exec 9>"$cache/rocksdb.lock"
    flock 9
    # Whoever held the lock may have built it.
    [ -f "$target/lib/librocksdb.a" ] || build
fi
point_to_target

case ${1:-} in
--print-env) print_env ;;
"") ;;
*) die "unknown option $1; the only one is --print-env" ;;
esac
