# To be sourced by the lines of the Makefile: finds or installs what a build needs, says so, and exports
# where it is. A warm run takes a fraction of a second.
#
#   Rust      cargo of at least the version in Cargo.toml (.ci/scripts/rust.sh)
#   RocksDB   built once into the user's cache (server/crates/store-rocksdb/build-rocksdb.sh)

_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# The folder of a cargo that was installed a moment ago is not in this shell's PATH yet.
_cargo_folder=$("$_root/.ci/scripts/rust.sh") || exit 1
[ -z "$_cargo_folder" ] || export PATH="$_cargo_folder:$PATH"

"$_root/server/crates/store-rocksdb/build-rocksdb.sh" || exit 1
eval "$("$_root/server/crates/store-rocksdb/build-rocksdb.sh" --print-env)"

unset _root _cargo_folder
