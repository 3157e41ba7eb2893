//! Writes `proto/src/generated` from the `.proto` files.
//!
//! The generated files are checked in, so that building a crate that needs only the messages costs
//! no protobuf compiler. `make fix` runs this program; a test below fails when its output is stale.

use std::path::{Path, PathBuf};

const PROTO_FILES: &[&str] = &[
    "etcd/kv.proto",
    "etcd/auth.proto",
    "etcd/rpc.proto",
    "etcd/v3lock.proto",
    "etcd/v3election.proto",
    "internal/command.proto",
    "internal/peer.proto",
];

fn proto_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn generate(out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let root = proto_root();
    let files: Vec<PathBuf> = PROTO_FILES.iter().map(|file| root.join(file)).collect();
    let descriptors = protox::compile(&files, [root.join("etcd"), root.join("internal")])?;
    let mut config = prost_build::Config::new();
    config
        .bytes(["."])
        .extern_path(".mvccpb.KeyValue", "crate::EncodedKeyValue")
        .out_dir(out);
    tonic_prost_build::configure()
        .codec_path("crate::codec::SmallBufferCodec")
        .server_mod_attribute(".", "#[cfg(feature = \"services\")]")
        .client_mod_attribute(".", "#[cfg(feature = \"services\")]")
        .build_transport(true)
        .out_dir(out)
        .compile_fds_with_config(descriptors.clone(), config)?;
    std::fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    generate(&proto_root().join("src/generated"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_files_are_fresh() {
        let out = tempfile::tempdir().expect("a temporary directory");
        generate(out.path()).expect("the proto files compile");
        for entry in std::fs::read_dir(out.path()).expect("the directory was just written") {
            let entry = entry.expect("a directory entry");
            let checked_in = proto_root().join("src/generated").join(entry.file_name());
            assert!(
                std::fs::read(&checked_in).ok() == std::fs::read(entry.path()).ok(),
                "{} is stale: run `make fix`",
                checked_in.display()
            );
        }
    }
}
