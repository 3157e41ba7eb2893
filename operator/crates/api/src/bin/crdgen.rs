//! Writes the definitions of the custom resources into the folder given as the only argument, or compares
//! them with `--check`.

use std::path::Path;
use std::process::ExitCode;

use metastore_operator_api::definition_files;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (check, folder) = match arguments.as_slice() {
        [folder] => (false, folder),
        [flag, folder] if flag == "--check" => (true, folder),
        _ => {
            eprintln!("usage: crdgen [--check] FOLDER");
            return ExitCode::from(2);
        }
    };
    let mut stale = false;
    for (name, text) in definition_files() {
        let path = Path::new(folder).join(&name);
        if check {
            if std::fs::read_to_string(&path).is_ok_and(|found| found == text) {
                continue;
            }
            eprintln!("{} is stale: run `make fix`", path.display());
            stale = true;
        } else if let Err(error) = std::fs::write(&path, text) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    if stale {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
