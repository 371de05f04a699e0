//! How openraft is instantiated, and what goes into its log.

use std::{fmt, net::SocketAddr};

use bytes::Bytes;
use openraft::{TokioRuntime, impls::leader_id_std};
use serde::{Deserialize, Serialize};
use weft_state::{
    command::{Command, Response, Revision},
    error::StoreError,
};

openraft::declare_raft_types!(
    /// Weft's Raft: one leader per term (as in the Raft paper), server ids, batches of commands.
    pub TypeConfig:
        D = Batch,
        R = BatchResult,
        NodeId = u64,
        Node = Peer,
        Term = u64,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = TokioRuntime,
);

pub type Raft = openraft::Raft<TypeConfig, super::state_machine::StateMachine>;
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
pub type Payload = openraft::alias::PayloadOf<TypeConfig>;
pub type Membership = openraft::Membership<u64, Peer>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, super::snapshot::SnapshotFile>;

/// Largest encoded command, in bytes: etcd's request limit of 1.5 MiB with room for what wraps a value.
pub const COMMAND_BYTES_MAX: usize = 2 * 1024 * 1024;

/// A batch is closed when its commands exceed this, in bytes, so that one entry is not long on the wire
/// ahead of heartbeats. One command above it travels alone.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Commands in one batch. They are applied under one write lock, which readers wait for.
pub const BATCH_COMMANDS_MAX: usize = 512;

/// A server of the group, as its membership entries carry it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// A label for people.
    pub name: String,
    /// Where it was reached when it joined. What gossip says later takes precedence.
    pub addr: SocketAddr,
}

/// The commands of one log entry, encoded. They are encoded once, by the proposer; the log, the wire and
/// the disk share the bytes; each replica decodes them once, to apply them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    bytes: Bytes,
}

impl Batch {
    /// Joins commands that were encoded with [`encode_command`].
    pub fn join(commands: &[Bytes]) -> Self {
        let mut bytes = Vec::with_capacity(10 + commands.iter().map(|c| c.len()).sum::<usize>());
        // The same bytes as postcard gives for `Vec<Command>`: the count as a varint, then each.
        let mut count = commands.len() as u64;
        while count >= 0x80 {
            bytes.push(count as u8 | 0x80);
            count >>= 7;
        }
        bytes.push(count as u8);
        for command in commands {
            bytes.extend_from_slice(command);
        }
        Self { bytes: bytes.into() }
    }

    /// From bytes that came from [`Batch::bytes`] on some server.
    pub fn from_bytes(bytes: Bytes) -> Self {
        Self { bytes }
    }

    /// The encoded form.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The commands.
    pub fn commands(&self) -> Result<Vec<Command>, postcard::Error> {
        postcard::from_bytes(&self.bytes)
    }
}

/// Encodes one command for [`Batch::join`].
pub fn encode_command(command: &Command) -> Bytes {
    // Serialization to a growing vector fails only for types postcard does not support, and ours are.
    postcard::to_allocvec(command).expect("commands are encodable").into()
}

/// Whether another server's bytes are what [`encode_command`] gives, and says why not.
pub fn check_command(bytes: &[u8]) -> Result<(), String> {
    if bytes.len() > COMMAND_BYTES_MAX {
        return Err(format!(
            "command of {} bytes exceeds the limit of {COMMAND_BYTES_MAX} bytes",
            bytes.len()
        ));
    }
    match postcard::take_from_bytes::<Command>(bytes) {
        Ok((_, [])) => Ok(()),
        Ok((_, rest)) => Err(format!("command is followed by {} bytes that do not belong to it", rest.len())),
        Err(error) => Err(format!("command cannot be decoded by this server's version: {error}")),
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} bytes)", self.bytes.len())
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} bytes", self.bytes.len())
    }
}

/// What applying the commands of a batch answered, in their order. Empty for entries without commands.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct BatchResult {
    /// One per command.
    pub results: Vec<CommandResult>,
}

/// What one command answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommandResult {
    /// The revision after it.
    pub revision: Revision,
    /// The answer or the refusal.
    pub response: Result<Response, StoreError>,
}

/// Shorthand.
pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(term.into(), index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_state::command::Put;

    #[test]
    fn joined_commands_decode_as_they_were() {
        for count in [0, 1, 127, 128, 300] {
            let commands: Vec<Command> = (0..count)
                .map(|i: u32| {
                    let key = Bytes::from(i.to_string());
                    Command::Put(Put { key, value: Bytes::from_static(b"v"), ..Put::default() })
                })
                .collect();
            let encoded: Vec<Bytes> = commands.iter().map(encode_command).collect();
            let batch = Batch::join(&encoded);
            assert_eq!(batch.commands().expect("decodes"), commands);
            assert_eq!(batch.bytes(), &postcard::to_allocvec(&commands).expect("encodes"));
        }
    }
}
