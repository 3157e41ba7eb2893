//! Questions at a terminal, and what comes from the standard input.

use std::io::{BufRead, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::failure::Failure;

/// Asks for a password without showing what is typed.
///
/// # Errors
/// The standard input ends or cannot be read.
pub fn ask_password(prompt: &str) -> Result<String, Failure> {
    eprint!("{prompt}");
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin).ok();
    if let Some(before) = &before {
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        // Not a terminal any more: then nothing is shown anyway.
        let _ = tcsetattr(&stdin, OptionalActions::Flush, &silent);
    }
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if let Some(before) = &before {
        let _ = tcsetattr(&stdin, OptionalActions::Flush, before);
        eprintln!();
    }
    match read {
        Ok(0) => Err(Failure::error("EOF")),
        Ok(_) => Ok(line.trim_end_matches(['\r', '\n']).to_owned()),
        Err(error) => Err(Failure::error(error.to_string())),
    }
}

/// Asks for a new password twice.
///
/// # Errors
/// It is empty, or the two differ.
pub fn ask_new_password(user: &str) -> Result<String, Failure> {
    let ask = |prompt: String| {
        ask_password(&prompt).map_err(|failure| {
            Failure::arguments(format!("failed to ask password: {}", failure.message))
        })
    };
    let password = ask(format!("Password of {user}: "))?;
    if password.is_empty() {
        return Err(Failure::arguments("empty password"));
    }
    let again = ask(format!("Type password of {user} again for confirmation: "))?;
    if password != again {
        return Err(Failure::arguments("given passwords are different"));
    }
    Ok(password)
}

/// The first word of the standard input.
pub fn read_word() -> String {
    let mut line = String::new();
    // An unreadable input is an empty one, as for Go's Scanf.
    let _ = std::io::stdin().lock().read_line(&mut line);
    line.split_whitespace().next().unwrap_or("").to_owned()
}

/// The argument at a position, or all of the standard input.
///
/// # Errors
/// There is neither.
pub fn argument_or_input(arguments: &[String], position: usize) -> Result<Vec<u8>, Failure> {
    if let Some(argument) = arguments.get(position) {
        return Ok(argument.clone().into_bytes());
    }
    let mut input = Vec::new();
    match std::io::stdin().lock().read_to_end(&mut input) {
        Ok(length) if length > 0 => Ok(input),
        _ => Err(Failure::arguments("no available argument and stdin")),
    }
}

/// Writes to the standard output. A reader that is gone ends the program quietly.
pub fn write_stdout(text: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    if stdout
        .write_all(text)
        .and_then(|()| stdout.flush())
        .is_err()
    {
        std::process::exit(1);
    }
}

/// Writes a line to the standard output.
pub fn say(line: impl AsRef<str>) {
    let mut text = line.as_ref().to_owned();
    text.push('\n');
    write_stdout(text.as_bytes());
}
