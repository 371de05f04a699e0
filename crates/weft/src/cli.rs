//! The command line: one module for each command.

mod admin;
mod child;
mod children;
mod completions;
mod config;
mod dev;
mod elect;
mod endpoints;
mod explain;
mod hold;
mod kv;
mod lb;
mod lock;
mod members;
mod proxy;
mod quota;
pub(crate) mod redirect;
mod run;
mod semaphore;
pub(crate) mod server;
mod services;
mod sidecars;
mod snapshot;
mod status;
mod tap;
mod token;
pub(crate) mod txn_format;
mod wal;

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use weft_client::{Client, Credentials, Identity, Options, Trust};

use crate::failure::Failure;
use crate::output::Format;

const HELP: &str = "\
Start here:
  dev           A whole mesh in one process, with demo services: try it in a minute

Run:
  server        A control-plane server; three or five form one group
  proxy         A sidecar beside your service
  run           Your service and its sidecar as one: started, stopped and ended in order

Look:
  get           Routes and policies that are stored
  services      All services with their healthy and total instances
  endpoints     Where a service is: address, health, source, owner, age
  members       Who is in the gossip pool
  explain       What would become of a request from one service to another, and why
  tap           Requests that come to a service, as they end
  status        The control plane: leader, servers, revisions, proxies
  token         Log in and print a token, for programs that register over HTTP

Change:
  apply         Create or replace routes and policies from files
  delete        Take a route or policy out
  lb            Show or set how proxies balance over a service
  kv            Get, put, delete, watch and transact keys
  quota         Show or set how many bytes may be stored under a prefix

Coordinate:
  lock          Run a command while holding a lock
  semaphore     Run a command while holding permits of a semaphore
  elect         Run a command while leading an election, or follow who leads

Data:
  snapshot      Save the whole state to a file, check it, start anew from it
  wal           Check or print the log of a server that does not run

More:
  check         Find every mistake in files with routes and policies, without a server
  schema        The JSON Schema of what you write, for editors
  completions   Print a completion script for your shell
  help          This text, or `weft help COMMAND` for one command

Examples:
  weft dev
  weft server --name s1 --data-dir /var/lib/weft
  weft proxy --join 10.0.0.1:7946 --service orders=127.0.0.1:8080
  weft kv put config/color blue
  weft lock deploy -- ./deploy.sh

Client commands ask the servers named by --endpoints or WEFT_ENDPOINTS (default 127.0.0.1:2379),
and as the user named by WEFT_USER and WEFT_PASSWORD where servers check who asks.";

/// A service mesh with discovery built in.
#[derive(Debug, Parser)]
#[command(
    name = "weft",
    version,
    about = "Weft: a service mesh with discovery and coordination built in",
    help_template = "{about}\n\n{usage-heading} {usage}\n\n{after-help}\n",
    after_help = HELP,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Dev(crate::flags::DevFlags),
    Server(Box<crate::flags::ServerFlags>),
    Proxy(redirect::Proxy),
    Run(Box<run::Run>),
    Services(services::Services),
    Endpoints(endpoints::Endpoints),
    Members(members::Members),
    Status(status::Status),
    Tap(tap::Tap),
    Explain(explain::Explain),
    Token(token::Token),
    Lb(lb::Lb),
    Apply(config::Apply),
    Get(config::Get),
    Delete(config::Delete),
    Check(config::Check),
    Schema(config::Schema),
    Kv(kv::Kv),
    Quota(quota::Quota),
    Lock(lock::Lock),
    Semaphore(semaphore::Semaphore),
    Elect(elect::Elect),
    Snapshot(snapshot::Snapshot),
    Wal(wal::Wal),
    Completions(completions::Completions),
}

/// Runs one command to its end.
pub(crate) fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Dev(flags) => control(None, dev::run(flags)),
        Command::Server(mut flags) => {
            match flags.command.take() {
                Some(server::ServerCommand::Change(change)) => return client(change.run(*flags)),
                Some(server::ServerCommand::Join(join)) => join.put_into(&mut flags),
                None => {}
            }
            let flags = flags.layered()?;
            control(Some(flags.workers()?), server::run(flags))
        }
        Command::Proxy(redirect::Proxy { command: Some(redirect), .. }) => redirect.run(),
        Command::Proxy(redirect::Proxy { flags, .. }) => control(None, proxy::run(*flags)),
        // The app is tied to the life of this very thread, which also is the only one to get signals, so that it can have
        // them wait.
        Command::Run(command) => {
            let runtime = control_runtime().on_thread_start(crate::signals::hold).build();
            finish(runtime, command.run())
        }
        Command::Services(command) => client(command.run()),
        Command::Endpoints(command) => client(command.run()),
        Command::Members(command) => client(command.run()),
        Command::Status(command) => client(command.run()),
        Command::Tap(command) => client(command.run()),
        Command::Explain(command) => client(command.run()),
        Command::Token(command) => client(command.run()),
        Command::Lb(command) => client(command.run()),
        Command::Apply(command) => client(command.run()),
        Command::Get(command) => client(command.run()),
        Command::Delete(command) => client(command.run()),
        Command::Check(command) => command.run(),
        Command::Schema(command) => Ok(command.run()),
        Command::Kv(command) => client(command.run()),
        Command::Quota(command) => client(command.run()),
        Command::Lock(command) => client(command.run()),
        Command::Semaphore(command) => client(command.run()),
        Command::Elect(command) => client(command.run()),
        Command::Snapshot(command) => client(command.run()),
        Command::Wal(command) => client(command.run()),
        Command::Completions(command) => Ok(command.run()),
    }
}

/// The control runtime of the roles, with as many threads as cores unless said otherwise. Proxies carry traffic on
/// threads of their own.
fn control(
    workers: Option<usize>,
    command: impl Future<Output = Result<ExitCode, Failure>>,
) -> Result<ExitCode, Failure> {
    let mut runtime = control_runtime();
    if let Some(workers) = workers {
        runtime.worker_threads(workers);
    }
    finish(runtime.build(), command)
}

fn control_runtime() -> tokio::runtime::Builder {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.thread_name("weft-control").enable_all();
    runtime
}

/// A client command needs one thread. The child of `weft lock` is tied to the life of this very thread.
fn client(command: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    weft_core::telemetry::init(CLIENT_LOG_LEVEL, false);
    finish(tokio::runtime::Builder::new_current_thread().enable_all().build(), command)
}

/// What a client's libraries have to say to a person: interrupted watches, renewals that fail.
const CLIENT_LOG_LEVEL: &str = "warn";

fn finish(
    runtime: std::io::Result<tokio::runtime::Runtime>,
    command: impl Future<Output = Result<ExitCode, Failure>>,
) -> Result<ExitCode, Failure> {
    let runtime =
        runtime.map_err(|error| Failure::new(format!("cannot start the async runtime: {error}")))?;
    let code = runtime.block_on(command);
    // A blocking task (a read of standard input, a name look-up) must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    code
}

/// Which servers to ask.
#[derive(Debug, Clone, Args)]
pub(crate) struct Connection {
    /// gRPC addresses of one or more servers, as HOST:PORT; another is asked when one fails
    #[arg(
        long,
        env = "WEFT_ENDPOINTS",
        value_name = "HOST:PORT,…",
        value_delimiter = ',',
        default_value = "127.0.0.1:2379"
    )]
    endpoints: Vec<String>,
    /// Ask as this user, when the servers check who asks
    #[arg(long, env = "WEFT_USER", value_name = "NAME[:PASSWORD]", hide_env_values = true)]
    user: Option<String>,
    /// The user's password; better in WEFT_PASSWORD, since others on this machine see command lines
    #[arg(long, env = "WEFT_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// PEM file with the CA that signs the servers' certificates; servers are then asked over TLS, as they are for
    /// endpoints with https://, which alone trust the system's CAs
    #[arg(long, env = "WEFT_CACERT", value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// PEM file with a certificate to show to servers that require one
    #[arg(id = "tls_cert", long = "cert", env = "WEFT_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM file with its private key
    #[arg(id = "tls_key", long = "key", env = "WEFT_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl Connection {
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        self.client_at(&self.endpoints)
    }

    /// A client that asks others, as the same user.
    pub(crate) fn client_at<S: AsRef<str>>(&self, endpoints: &[S]) -> Result<Client, Failure> {
        // People and scripts rather hear soon that nobody is there; a change of leader is waited for
        // by the servers themselves.
        let options = Options {
            retry_for: Duration::from_secs(1),
            tls: self.trust(),
            credentials: credentials(self.user.as_deref(), self.password.as_deref())?,
            ..Options::default()
        };
        Ok(Client::connect_with(endpoints, options)?)
    }
}

impl Connection {
    fn trust(&self) -> Option<Trust> {
        let identity =
            self.tls_cert.clone().zip(self.tls_key.clone()).map(|(cert, key)| Identity { cert, key });
        (self.cacert.is_some() || identity.is_some()).then(|| Trust { ca: self.cacert.clone(), identity })
    }
}

/// A password may stand behind the user's name, as etcdctl has it, or by itself, and then may hold a colon.
fn credentials(user: Option<&str>, password: Option<&str>) -> Result<Option<Credentials>, Failure> {
    let (user, password) = match (user, password) {
        (None, None) => return Ok(None),
        (None, Some(_)) => return Err(Failure::new("password: given without a user; name one with --user")),
        (Some(user), Some(password)) => (user, password),
        (Some(both), None) => both.split_once(':').ok_or_else(|| {
            Failure::new(format!("user: {both} is given without a password; set WEFT_PASSWORD or --password"))
        })?,
    };
    Ok(Some(Credentials { user: user.to_owned(), password: password.to_owned() }))
}

/// How to answer.
#[derive(Debug, Clone, Args)]
pub(crate) struct Output {
    /// Answer as a table for people or as JSON with stable field names
    #[arg(long, short, env = "WEFT_OUTPUT", value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub(crate) output: Format,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_password_stands_behind_the_user_or_by_itself_and_never_alone() {
        let of = |user, password| credentials(user, password).ok().flatten().map(|c| (c.user, c.password));
        let app = |password: &str| Some(("app".to_owned(), password.to_owned()));
        assert_eq!(of(Some("app:secret"), None), app("secret"));
        assert_eq!(of(Some("app"), Some("se:cret")), app("se:cret"));
        assert!(credentials(None, None).is_ok_and(|none| none.is_none()));
        assert!(credentials(Some("app"), None).is_err_and(|e| e.to_string().contains("WEFT_PASSWORD")));
        assert!(credentials(None, Some("secret")).is_err_and(|e| e.to_string().contains("--user")));
    }

    #[test]
    fn help_names_every_command() {
        for command in Cli::command().get_subcommands() {
            assert!(
                HELP.contains(&format!("\n  {:14}", command.get_name())),
                "{} is missing",
                command.get_name()
            );
        }
    }

    #[test]
    fn every_flag_has_help_and_every_command_says_what_it_does() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no description", command.get_name());
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                assert!(arg.get_help().is_some(), "{} {} has no help", command.get_name(), arg.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
