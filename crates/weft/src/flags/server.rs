//! Flags of `weft server`.

use std::env::VarError;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Deserialize;
use weft_control_plane::backup::schedule::{BACKUP_INTERVAL, BACKUP_KEEP, BackupOptions};
use weft_control_plane::config::{self, HistoryLimits, ServerConfig};
use weft_control_plane::gate::{PeerTlsFiles, Secret, TokenSource};
use weft_control_plane::listener::TlsFiles;
use weft_control_plane::raft::{RaftTiming, ReadMode};
use weft_core::config::parse_duration;
use weft_core::tls::Identity;

use crate::cli::server::ServerCommand;

use super::{LogFormat, default_data_dir, host_name, layer, load};
use crate::failure::Failure;

/// Run a control-plane server; three or five form one group
///
/// Serves the etcd v3 and Weft APIs and xDS over gRPC, the registry over HTTP, and DNS. The first server
/// is started without --join and forms a group; the others join any member. Every flag can also be given
/// as the WEFT_… variable shown with it, or in the --config file under its own name; the flag wins over
/// the variable, the variable over the file. Port 0 means any free port, printed at start.
///
/// Example: weft server --name s2 --data-dir /var/lib/weft --bind 10.0.0.2 --join 10.0.0.1:7946
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct ServerFlags {
    /// Join a group, or change one in place of running a server
    #[command(subcommand)]
    #[serde(skip)]
    pub(crate) command: Option<ServerCommand>,
    /// Follow the group without a vote until somebody promotes this server (weft server promote)
    #[arg(long, env = "WEFT_LEARNER")]
    pub(crate) learner: bool,
    /// YAML file with any of these flags as keys, such as `grpc-port: 2379`; default: none
    #[arg(long, env = "WEFT_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
    /// Label of this server for people; default: this machine's name
    #[arg(long, env = "WEFT_NAME")]
    pub(crate) name: Option<String>,
    /// Folder of identity, log and snapshots, for this server alone; default: weft-data/server/NAME
    #[arg(long, env = "WEFT_DATA_DIR", value_name = "FOLDER")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Address that all ports listen on; default: 127.0.0.1
    #[arg(long, env = "WEFT_BIND", value_name = "IP")]
    pub(crate) bind: Option<IpAddr>,
    /// Address that others are told to use; default: that of --bind
    #[arg(long, env = "WEFT_ADVERTISE", value_name = "IP")]
    pub(crate) advertise: Option<IpAddr>,
    /// Port for gRPC: etcd v3, weft.v1, xDS; default: 2379
    #[arg(long, env = "WEFT_GRPC_PORT", value_name = "PORT")]
    pub(crate) grpc_port: Option<u16>,
    /// Port for HTTP: registry, /livez, /readyz, /metrics, /profile; default: 8500
    #[arg(long, env = "WEFT_HTTP_PORT", value_name = "PORT")]
    pub(crate) http_port: Option<u16>,
    /// Port for DNS, UDP and TCP; default: 8600
    #[arg(long, env = "WEFT_DNS_PORT", value_name = "PORT")]
    pub(crate) dns_port: Option<u16>,
    /// Port for the other servers of the group; default: 2380
    #[arg(long, env = "WEFT_PEER_PORT", value_name = "PORT")]
    pub(crate) peer_port: Option<u16>,
    /// Port for gossip, UDP and TCP; default: 7946
    #[arg(long, env = "WEFT_GOSSIP_PORT", value_name = "PORT")]
    pub(crate) gossip_port: Option<u16>,
    /// Gossip addresses of members to join, any of them; repeat it or separate by commas; default: form
    /// a new group, or go on with the one in the data folder
    #[arg(long, env = "WEFT_JOIN", value_name = "HOST:PORT", value_delimiter = ',')]
    pub(crate) join: Option<Vec<String>>,
    /// File with the group's join token, which every server proves to every other; a server that forms a group makes
    /// one, in its data folder. Two lines: the first is proved, both are accepted. Also in WEFT_JOIN_TOKEN itself;
    /// default: the file join-token in the data folder
    #[arg(long, env = "WEFT_JOIN_TOKEN_FILE", value_name = "FILE")]
    pub(crate) join_token_file: Option<PathBuf>,
    /// PEM file with this server's certificate for the DNS name server.weft: servers then speak TLS with each other,
    /// and each verifies the other. Renewed files are used without a restart; default: no TLS between servers
    #[arg(long, env = "WEFT_PEER_TLS_CERT", value_name = "FILE")]
    pub(crate) peer_tls_cert: Option<PathBuf>,
    /// PEM file with its private key
    #[arg(long, env = "WEFT_PEER_TLS_KEY", value_name = "FILE")]
    pub(crate) peer_tls_key: Option<PathBuf>,
    /// PEM file with the CA that signs the servers' certificates
    #[arg(long, env = "WEFT_PEER_TLS_CA", value_name = "FILE")]
    pub(crate) peer_tls_ca: Option<PathBuf>,
    /// PEM file with this server's certificate for its clients, on the gRPC and HTTP ports: for the names and addresses
    /// that clients use, and for the DNS name server.weft, which sidecars ask for. Renewed files are used without a
    /// restart; default: no TLS there
    #[arg(long, env = "WEFT_TLS_CERT", value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// PEM file with its private key
    #[arg(long, env = "WEFT_TLS_KEY", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// PEM file with the CA whose certificates clients must show, except for /livez, /readyz and /metrics; default:
    /// clients need none
    #[arg(long, env = "WEFT_TLS_CLIENT_CA", value_name = "FILE")]
    pub(crate) tls_client_ca: Option<PathBuf>,
    /// How long a change can be read and watched from, such as 1h; 0s: no limit; default: 1h. Clients that were
    /// away for longer read everything again. Age, number and bytes: whichever is reached first counts, on
    /// the server that leads
    #[arg(long, env = "WEFT_HISTORY_AGE", value_name = "DURATION", value_parser = parse_duration)]
    #[serde(with = "weft_core::config::duration::option")]
    pub(crate) history_age: Option<Duration>,
    /// How many of the newest changes can be read and watched from; each takes about 100 bytes beside its
    /// value; 0: no limit; default: 500000
    #[arg(long, env = "WEFT_HISTORY_CHANGES", value_name = "N")]
    pub(crate) history_changes: Option<u64>,
    /// MiB of history, with the values that were replaced or deleted, above which its older half goes; 0: no limit;
    /// default: as much as what exists now takes, at least 24 and at most 256
    #[arg(long, env = "WEFT_HISTORY_MIB", value_name = "MIB")]
    pub(crate) history_mib: Option<u64>,
    /// Folder in which backups of the whole state are made; default: none are made
    #[arg(long, env = "WEFT_BACKUP_DIR", value_name = "FOLDER")]
    pub(crate) backup_dir: Option<PathBuf>,
    /// Time between two backups, such as 30m; default: 1h
    #[arg(long, env = "WEFT_BACKUP_INTERVAL", value_name = "DURATION", value_parser = parse_duration)]
    #[serde(with = "weft_core::config::duration::option")]
    pub(crate) backup_interval: Option<Duration>,
    /// How many of the newest backups are kept; default: 24
    #[arg(long, env = "WEFT_BACKUP_KEEP", value_name = "N")]
    pub(crate) backup_keep: Option<usize>,
    /// Answer GET /profile?seconds=N on the HTTP port with where CPU time goes, as folded stacks; N is at most 30. Needs
    /// `perf` on this machine; for administrators where authentication is on; default: off
    #[arg(long, env = "WEFT_PROFILE", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) profile: Option<bool>,
    /// Threads that serve requests, 1 to 256; default: half of this machine's cores. Writing the log, making
    /// snapshots and the system's own network work come on top
    #[arg(long, env = "WEFT_WORKERS", value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// What a linearizable read relies on while this server leads: `index` asks a majority, once for all reads that wait;
    /// `lease` asks nobody within 250 ms of the last word of a majority, and may answer stale if the leader's clock runs
    /// at half the speed of others' or slower, or stands still while its machine is suspended; default: index
    #[arg(long, env = "WEFT_READ_MODE", value_enum, value_name = "MODE")]
    pub(crate) read_mode: Option<ReadModeFlag>,
    /// What is logged to stderr: error, warn, info, debug or trace, also per module, such as
    /// info,weft_gossip=debug; default: info
    #[arg(long, env = "WEFT_LOG_LEVEL", value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Log as text or as one JSON object a line; default: text
    #[arg(long, env = "WEFT_LOG_FORMAT", value_enum, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

/// See [`ReadMode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReadModeFlag {
    Index,
    Lease,
}

impl From<ReadModeFlag> for ReadMode {
    fn from(flag: ReadModeFlag) -> Self {
        match flag {
            ReadModeFlag::Index => Self::Index,
            ReadModeFlag::Lease => Self::Lease,
        }
    }
}

/// The token itself: only as a variable, as others on this machine see command lines.
const JOIN_TOKEN: &str = "WEFT_JOIN_TOKEN";

fn join_token() -> Result<Option<String>, Failure> {
    match std::env::var(JOIN_TOKEN) {
        Ok(token) => Ok(Some(token)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(Failure::new(format!("{JOIN_TOKEN} is not UTF-8"))),
    }
}

impl ServerFlags {
    /// Puts the file, if one is named, under flags and variables.
    pub(crate) fn layered(self) -> Result<Self, Failure> {
        let file = load(self.config.as_deref())?;
        Ok(self.over(file))
    }

    fn over(mut self, mut file: Self) -> Self {
        self.learner |= file.learner;
        layer!(self, file;
            name, data_dir, bind, advertise, grpc_port, http_port, dns_port, peer_port, gossip_port, join,
            join_token_file, peer_tls_cert, peer_tls_key, peer_tls_ca,
            tls_cert, tls_key, tls_client_ca,
            history_age, history_changes, history_mib, backup_dir, backup_interval, backup_keep,
            profile, workers, read_mode, log_level, log_format,
        );
        self
    }

    /// Threads that serve requests.
    pub(crate) fn workers(&self) -> Result<usize, Failure> {
        match self.workers {
            None => Ok(config::workers_default()),
            Some(workers) if (1..=config::WORKERS_MAX).contains(&workers) => Ok(workers),
            Some(seen) => {
                Err(Failure::new(format!("--workers {seen}: allowed are 1 to {}", config::WORKERS_MAX)))
            }
        }
    }

    /// With defaults for what nobody said.
    ///
    /// # Errors
    /// If some of it needs what is not there.
    pub(crate) fn into_config(self) -> Result<ServerConfig, Failure> {
        let join_token = match (self.join_token_file, join_token()?) {
            (None, None) => TokenSource::DataFolder,
            (Some(file), None) => TokenSource::File(file),
            (None, Some(token)) => TokenSource::Given(Secret(token)),
            (Some(_), Some(_)) => {
                return Err(Failure::new(
                    "--join-token-file and WEFT_JOIN_TOKEN are both given: which one counts?",
                ));
            }
        };
        let tls = match (self.tls_cert, self.tls_key, self.tls_client_ca) {
            (None, None, None) => None,
            (Some(cert), Some(key), client_ca) => {
                Some(TlsFiles { identity: Identity { cert, key }, client_ca })
            }
            _ => return Err(Failure::new("TLS for clients needs both of --tls-cert and --tls-key")),
        };
        let peer_tls = match (self.peer_tls_cert, self.peer_tls_key, self.peer_tls_ca) {
            (None, None, None) => None,
            (Some(cert), Some(key), Some(ca)) => Some(PeerTlsFiles { identity: Identity { cert, key }, ca }),
            _ => {
                return Err(Failure::new(
                    "TLS between servers needs all of --peer-tls-cert, --peer-tls-key and --peer-tls-ca",
                ));
            }
        };
        let name = self.name.unwrap_or_else(host_name);
        let data_dir = self.data_dir.unwrap_or_else(|| default_data_dir("server", &name));
        let defaults = ServerConfig::new(name, data_dir);
        let history = HistoryLimits {
            age_max_ms: self
                .history_age
                .map_or(defaults.history.age_max_ms, |age| age.as_millis().try_into().unwrap_or(u64::MAX)),
            changes_max: self.history_changes.unwrap_or(defaults.history.changes_max),
            bytes_max: self.history_mib.map(|mib| mib.saturating_mul(1024 * 1024)),
        };
        Ok(ServerConfig {
            learner: self.learner,
            bind: self.bind.unwrap_or(config::BIND),
            advertise: self.advertise,
            grpc_port: self.grpc_port.unwrap_or(config::GRPC_PORT),
            http_port: self.http_port.unwrap_or(config::HTTP_PORT),
            dns_port: self.dns_port.unwrap_or(config::DNS_PORT),
            peer_port: self.peer_port.unwrap_or(config::PEER_PORT),
            gossip_port: self.gossip_port.unwrap_or(config::GOSSIP_PORT),
            join: self.join.unwrap_or_default(),
            join_token,
            peer_tls,
            tls,
            history,
            backup: self.backup_dir.map(|folder| BackupOptions {
                folder,
                interval: self.backup_interval.unwrap_or(BACKUP_INTERVAL),
                keep: self.backup_keep.unwrap_or(BACKUP_KEEP),
            }),
            profile: self.profile.unwrap_or(false),
            raft: RaftTiming {
                reads: self.read_mode.map_or_else(Default::default, Into::into),
                ..defaults.raft
            },
            ..defaults
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn file(text: &str) -> ServerFlags {
        weft_core::config::parse_yaml(Path::new("weft.yaml"), text).unwrap()
    }

    #[test]
    fn what_flag_or_variable_do_not_say_comes_from_the_file_and_then_from_the_default() {
        let flags = ServerFlags { name: Some("flag".to_owned()), ..ServerFlags::default() };
        let file = file("name: file\ngrpc-port: 1111\njoin: [\"a:1\", \"b:2\"]\nbind: 0.0.0.0\n");
        let config = flags.over(file).into_config().unwrap();
        assert_eq!(config.name, "flag");
        assert_eq!(config.grpc_port, 1111);
        assert_eq!(config.join, ["a:1", "b:2"]);
        assert_eq!(config.bind, IpAddr::from([0, 0, 0, 0]));
        assert_eq!(config.http_port, 8500);
        assert_eq!(config.data_dir, Path::new("weft-data/server/flag"));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_what_is_allowed() {
        let text =
            weft_core::config::parse_yaml::<ServerFlags>(Path::new("weft.yaml"), "name: a\ncolour: red\n");
        let text = text.unwrap_err().to_string();
        assert!(
            text.contains("weft.yaml:2") && text.contains("colour") && text.contains("grpc-port"),
            "{text}"
        );
    }

    #[test]
    fn at_least_one_thread_serves_requests() {
        assert_eq!(file("workers: 3\n").workers().ok(), Some(3));
        assert!(file("").workers().is_ok_and(|workers| workers >= 1));
        for refused in ["workers: 0\n", "workers: 257\n"] {
            assert!(file(refused).workers().is_err_and(|e| e.to_string().contains("1 to 256")), "{refused}");
        }
    }

    #[test]
    fn reads_ask_a_majority_unless_told_to_rely_on_clocks() {
        let reads = |text: &str| file(text).into_config().unwrap().raft.reads;
        assert_eq!((reads(""), reads("read-mode: lease\n")), (ReadMode::Index, ReadMode::Lease));
        let text = weft_core::config::parse_yaml::<ServerFlags>(Path::new("weft.yaml"), "read-mode: stale\n");
        let text = text.unwrap_err().to_string();
        assert!(text.contains("stale") && text.contains("index") && text.contains("lease"), "{text}");
    }

    #[test]
    fn limits_of_history_come_in_hours_and_mib() {
        let config = file("history-age: 2h\nhistory-mib: 1\n").into_config().unwrap();
        assert_eq!(config.history.age_max_ms, 7_200_000);
        assert_eq!(config.history.bytes_max, Some(1 << 20));
        assert_eq!(config.history.changes_max, HistoryLimits::default().changes_max);
        let none =
            file("history-age: 0s\nhistory-mib: 0\nhistory-changes: 0\n").into_config().unwrap().history;
        assert_eq!((none.age_max_ms, none.bytes_max, none.changes_max), (0, Some(0), 0));
    }

    #[test]
    fn a_port_out_of_range_is_named() {
        let text = weft_core::config::parse_yaml::<ServerFlags>(Path::new("weft.yaml"), "grpc-port: 70000\n");
        let text = text.unwrap_err().to_string();
        assert!(text.contains("grpc-port"), "{text}");
    }
}
