//! Writes what is generated from the types below the folder given as the only argument, the root of the
//! repository: the definitions of the custom resources, also for the chart, and the reference page.

use std::path::Path;
use std::process::ExitCode;

use metastore_operator_api::generated_files;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root] = arguments.as_slice() else {
        eprintln!("usage: crdgen ROOT");
        return ExitCode::from(2);
    };
    for (name, text) in generated_files() {
        let path = Path::new(root).join(&name);
        if let Err(error) = std::fs::write(&path, text) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
