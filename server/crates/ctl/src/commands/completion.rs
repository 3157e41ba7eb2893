//! completion: scripts for shells, made from the table of commands.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Command, Context, GLOBAL_FLAGS, command, commands};
use crate::failure::Failure;
use crate::terminal::write_stdout;

pub(super) const COMMANDS: &[Command] = &[command(
    &["completion"],
    "[bash|zsh|fish|powershell]",
    "Generate completion script",
    &[],
    |context| Box::pin(async move { completion(&context) }),
)];

fn completion(context: &Context) -> Result<(), Failure> {
    let script = match context.arguments.positional.as_slice() {
        [shell] => match shell.as_str() {
            "bash" => bash(),
            "zsh" => format!("autoload -U +X bashcompinit && bashcompinit\n{}", bash()),
            "fish" => fish(),
            "powershell" => powershell(),
            other => {
                return Err(Failure::error(format!(
                    "invalid argument {other:?} for \"metastorectl completion\""
                )));
            }
        },
        several => {
            return Err(Failure::error(format!(
                "accepts 1 arg(s), received {}",
                several.len()
            )));
        }
    };
    write_stdout(script.as_bytes());
    Ok(())
}

/// What may follow some words: the words of commands and their flags.
fn followers() -> BTreeMap<String, Vec<String>> {
    let mut followers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for command in commands() {
        for length in 0..command.path.len() {
            let words = followers
                .entry(command.path[..length].join(" "))
                .or_default();
            let next = command.path[length].to_owned();
            if !words.contains(&next) {
                words.push(next);
            }
        }
        let flags = command.flags.iter().chain(GLOBAL_FLAGS);
        followers
            .entry(command.path.join(" "))
            .or_default()
            .extend(flags.map(|flag| format!("--{}", flag.name)));
    }
    followers
}

fn bash() -> String {
    let mut script = String::from(
        "# bash completion for metastorectl\n_metastorectl() {\n  local words=\"\" word\n  \
         for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n    \
         case \"$word\" in -*) ;; *) words=\"${words:+$words }$word\" ;; esac\n  done\n  \
         local choices=\"\"\n  case \"$words\" in\n",
    );
    for (words, choices) in followers() {
        let _ = writeln!(
            script,
            "    \"{words}\") choices=\"{}\" ;;",
            choices.join(" ")
        );
    }
    script.push_str(
        "  esac\n  COMPREPLY=($(compgen -W \"$choices\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n}\n\
         complete -o default -F _metastorectl metastorectl\n",
    );
    script
}

fn powershell() -> String {
    let mut script = String::from(
        "# powershell completion for metastorectl\n\
         Register-ArgumentCompleter -Native -CommandName metastorectl -ScriptBlock {\n  \
         param($wordToComplete, $commandAst, $cursorPosition)\n  \
         $words = @($commandAst.CommandElements | Select-Object -Skip 1 | ForEach-Object { \"$_\" })\n  \
         if ($wordToComplete -ne '') { $words = @($words | Select-Object -SkipLast 1) }\n  \
         $path = ($words | Where-Object { -not $_.StartsWith('-') }) -join ' '\n  \
         $choices = switch ($path) {\n",
    );
    for (words, choices) in followers() {
        let choices: Vec<String> = choices.iter().map(|one| format!("'{one}'")).collect();
        let _ = writeln!(script, "    '{words}' {{ {} }}", choices.join(", "));
    }
    script.push_str(
        "  }\n  \
         $choices | Where-Object { $_ -like \"$wordToComplete*\" } | ForEach-Object {\n    \
         [System.Management.Automation.CompletionResult]::new($_, $_, 'ParameterValue', $_)\n  }\n}\n",
    );
    script
}

fn fish() -> String {
    let mut script = String::from("# fish completion for metastorectl\n");
    for command in commands() {
        let condition = match command.path {
            [_] => "__fish_use_subcommand".to_owned(),
            [group, ..] => {
                let _ = writeln!(
                    script,
                    "complete -c metastorectl -f -n __fish_use_subcommand -a {group}"
                );
                format!("\"__fish_seen_subcommand_from {group}\"")
            }
            [] => continue,
        };
        let last = command.path.last().copied().unwrap_or_default();
        let help = command.help.replace('\'', "\\'");
        let _ = writeln!(
            script,
            "complete -c metastorectl -f -n {condition} -a {last} -d '{help}'"
        );
        for flag in command.flags {
            let help = flag.help.replace('\'', "\\'");
            let _ = writeln!(
                script,
                "complete -c metastorectl -n \"__fish_seen_subcommand_from {last}\" -l {} -d '{help}'",
                flag.name
            );
        }
    }
    for flag in GLOBAL_FLAGS {
        let help = flag.help.replace('\'', "\\'");
        let _ = writeln!(
            script,
            "complete -c metastorectl -l {} -d '{help}'",
            flag.name
        );
    }
    script
}
