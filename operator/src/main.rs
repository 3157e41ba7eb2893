//! The program `metastore-operator`.

fn main() {
    println!("{}", metastore_operator_api::GROUP);
}
