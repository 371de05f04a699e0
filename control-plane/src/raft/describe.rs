//! What a log entry holds, in words.

use std::fmt::{self, Write};

use openraft::EntryPayload;
use weft_state::command::Command;

use super::codec;
use crate::wal;

/// The kind of an entry and its commands' names, such as `batch: 2 Put, 1 DeleteRange`; or why it cannot be read.
pub fn describe_entry(entry: &wal::Entry) -> Result<String, String> {
    let entry = codec::entry_from_wal(entry).map_err(|e| e.to_string())?;
    match &entry.payload {
        EntryPayload::Blank => Ok("blank".to_owned()),
        EntryPayload::Membership(membership) => {
            let voters: Vec<String> = membership.voter_ids().map(|id| format!("{id:016x}")).collect();
            Ok(format!("members: voters {}", voters.join(", ")))
        }
        EntryPayload::Normal(batch) => {
            let commands = batch.commands().map_err(|e| e.to_string())?;
            let mut counts: Vec<(String, usize)> = Vec::new();
            for name in commands.iter().map(|command| name(command.bare())) {
                match counts.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((name, 1)),
                }
            }
            let counts: Vec<String> =
                counts.into_iter().map(|(name, count)| format!("{count} {name}")).collect();
            Ok(format!("batch: {}", counts.join(", ")))
        }
    }
}

/// The variant's name. Its content, which may be large, is not formatted.
fn name(command: &Command) -> String {
    struct Name(String);
    impl Write for Name {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let end = text.find(|c: char| !c.is_ascii_alphanumeric());
            self.0.push_str(&text[..end.unwrap_or(text.len())]);
            if end.is_some() { Err(fmt::Error) } else { Ok(()) }
        }
    }
    let mut name = Name(String::new());
    // The error only ends it early.
    let _ = write!(name, "{command:?}");
    name.0
}

#[cfg(test)]
mod tests {
    use weft_state::command::{DeleteRange, Put};

    use super::*;

    #[test]
    fn a_command_is_named_by_its_variant() {
        for (command, expected) in [
            (Command::Put(Put::default()), "Put"),
            (Command::DeleteRange(DeleteRange::default()), "DeleteRange"),
            (Command::Compact { revision: 3 }, "Compact"),
            (Command::Noop, "Noop"),
        ] {
            assert_eq!(name(&command), expected);
        }
    }
}
