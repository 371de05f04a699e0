//! `weft proxy install-redirect` and `weft proxy remove-redirect`.

mod rules;

use std::io::Write;
use std::process::{Command, ExitCode, Stdio};

use clap::{Args, Subcommand, ValueEnum};
use weft_proxy::proxy_protocol::Network;

use crate::failure::Failure;
use crate::flags::ProxyFlags;
use crate::output;
use rules::{CHAINS, Family, Incoming, Outgoing, Ports, Rules, list, remove_nft};

/// Where captured connections of this machine go, unless told otherwise.
const TO_PORT: u16 = 15002;
/// The same of connections of others.
const INBOUND_TO_PORT: u16 = 15007;
/// Left alone where all ports are redirected: the way in to set it right (SSH), gossip, and the sidecar's own ports.
const NEVER_INBOUND: [u16; 7] = [22, 7946, 15000, 15001, TO_PORT, 15006, INBOUND_TO_PORT];

// `weft proxy`, or what belongs to it. Its description is that of the flags.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Proxy {
    #[command(subcommand)]
    pub(crate) command: Option<Redirect>,
    #[command(flatten)]
    pub(crate) flags: Box<ProxyFlags>,
}

/// Rules of the kernel for transparent capture.
#[derive(Debug, Subcommand)]
pub(crate) enum Redirect {
    /// Have the kernel redirect this machine's TCP connections, or those of others to it, to a sidecar
    ///
    /// With --exclude-uid outgoing connections go to --to-port on loopback, where the sidecar listens with --capture. What stays
    /// on loopback is left alone, and so is what is excluded: above all the user that the sidecar runs as, whose connections
    /// would come back to it for ever. With --inbound-port connections of other machines to the ports of apps go to
    /// --inbound-to-port, where the sidecar listens with --capture-inbound. Rules are in a table or chains of their own; a second
    /// call replaces them whole. Needs root or CAP_NET_ADMIN.
    ///
    /// Example: weft proxy install-redirect --exclude-uid weft --exclude-port 22 --exclude-network 10.96.0.0/16
    ///
    /// Example: weft proxy install-redirect --inbound-port 8080,5432 --exclude-source 10.0.0.1
    ///
    /// Example: weft proxy install-redirect --inbound-port '*' --exclude-inbound-port 9100
    InstallRedirect(Install),
    /// Remove what install-redirect has installed; nothing is there to remove is no error
    RemoveRedirect(Remove),
}

/// See [`Redirect::InstallRedirect`].
#[derive(Debug, Args)]
pub(crate) struct Install {
    /// Where outgoing connections go: the sidecar listens there on 127.0.0.1 and ::1
    #[arg(long, value_name = "PORT", default_value_t = TO_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    to_port: u16,
    /// Redirect outgoing connections, but for those of this user, by number or name: that of the sidecar; repeat it or
    /// separate by commas
    #[arg(long, value_name = "USER", value_delimiter = ',', required_unless_present = "inbound_port", value_parser = uid)]
    exclude_uid: Vec<u32>,
    /// Leave alone connections to this port; repeat it or separate by commas
    #[arg(long, value_name = "PORT", value_delimiter = ',', requires = "exclude_uid", value_parser = clap::value_parser!(u16).range(1..))]
    exclude_port: Vec<u16>,
    /// Leave alone connections to these addresses, such as 10.96.0.0/16 or fd00::/8; repeat it or separate by commas
    #[arg(long, value_name = "NETWORK", value_delimiter = ',', requires = "exclude_uid")]
    exclude_network: Vec<Network>,
    /// Redirect connections to these ports only; repeat it or separate by commas
    #[arg(long, value_name = "PORT", value_delimiter = ',', requires = "exclude_uid", value_parser = clap::value_parser!(u16).range(1..))]
    only_port: Vec<u16>,
    /// Redirect connections of other machines to this port of this one, where an app listens that the sidecar receives for;
    /// repeat it or separate by commas; *: to all TCP ports but 22, 7946, 15000-15002, 15006, 15007, and those where
    /// connections are redirected to
    #[arg(long, value_name = "PORT|*", value_delimiter = ',')]
    inbound_port: Vec<InboundPort>,
    /// With --inbound-port '*', leave alone connections to this port too; repeat it or separate by commas
    #[arg(long, value_name = "PORT", value_delimiter = ',', requires = "inbound_port", value_parser = clap::value_parser!(u16).range(1..))]
    exclude_inbound_port: Vec<u16>,
    /// Where these go: the sidecar listens there with --capture-inbound
    #[arg(long, value_name = "PORT", default_value_t = INBOUND_TO_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    inbound_to_port: u16,
    /// Leave alone connections to --inbound-port from these addresses, such as those of health checks by the machine itself;
    /// repeat it or separate by commas
    #[arg(long, value_name = "NETWORK", value_delimiter = ',', requires = "inbound_port")]
    exclude_source: Vec<Network>,
    #[command(flatten)]
    how: How,
}

/// See [`Redirect::RemoveRedirect`].
#[derive(Debug, Args)]
pub(crate) struct Remove {
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct How {
    /// Which tool sets the rules; auto: nft if it is there, else iptables
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    backend: Backend,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    Auto,
    Nft,
    Iptables,
}

/// To which ports of this machine connections of others are redirected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InboundPort {
    All,
    One(u16),
}

impl std::str::FromStr for InboundPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("*", _) => Ok(Self::All),
            // Numbers are read with a sign, too.
            (_, Ok(port @ 1..)) if !text.starts_with('+') => Ok(Self::One(port)),
            _ => Err(format!("{text:?} is no port from 1 to 65535, nor * for all")),
        }
    }
}

/// A command with its standard input.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    command: Vec<String>,
    input: String,
    /// Failing says that there is nothing to do.
    may_fail: bool,
    /// Only if this one fails.
    unless: Option<Vec<String>>,
}

impl Redirect {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let (how, rules) = match self {
            Self::InstallRedirect(install) => {
                let (how, rules) = install.rules()?;
                (how, Some(rules))
            }
            Self::RemoveRedirect(remove) => (remove.how, None),
        };
        let steps = match (how.backend()?, &rules) {
            (Backend::Iptables, Some(rules)) => install_iptables(rules),
            (Backend::Iptables, None) => remove_iptables(),
            (_, Some(rules)) => vec![step(&["nft", "-f", "-"], rules.nft())],
            (_, None) => vec![step(&["nft", "-f", "-"], remove_nft())],
        };
        for step in &steps {
            if how.dry_run {
                output::print(step.shown());
            } else {
                step.run()?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Install {
    fn rules(self) -> Result<(How, Rules), Failure> {
        let incoming = self.incoming()?;
        let outgoing = Outgoing {
            ports: Ports { to: self.to_port, exclude: self.exclude_port, only: self.only_port },
            exclude_uids: self.exclude_uid,
            exclude_networks: self.exclude_network,
        };
        let rules =
            Rules { outgoing: Some(outgoing).filter(|rules| !rules.exclude_uids.is_empty()), incoming };
        Ok((self.how, rules))
    }

    fn incoming(&self) -> Result<Option<Incoming>, Failure> {
        let to = self.inbound_to_port;
        let one = |port: &InboundPort| if let InboundPort::One(port) = port { Some(*port) } else { None };
        let only: Vec<u16> = self.inbound_port.iter().filter_map(one).collect();
        let all = self.inbound_port.contains(&InboundPort::All);
        let refused = |why: String| Err(Failure::new(why));
        if only.contains(&to) {
            return refused(format!(
                "inbound-port {to} is where connections are redirected to; name the ports of apps"
            ));
        }
        if all && !only.is_empty() {
            return refused(format!("inbound-port is * and {}; give * alone, or only ports", list(&only)));
        }
        if !all && !self.exclude_inbound_port.is_empty() {
            let seen = list(&self.exclude_inbound_port);
            return refused(format!(
                "exclude-inbound-port {seen} is for inbound-port *; of ports that are named, leave it out"
            ));
        }
        let mut exclude = match all {
            true => [&NEVER_INBOUND[..], &[self.to_port, to], &self.exclude_inbound_port].concat(),
            false => Vec::new(),
        };
        exclude.sort_unstable();
        exclude.dedup();
        let ports = Ports { to, exclude, only };
        let incoming = Incoming { ports, exclude_sources: self.exclude_source.clone() };
        Ok(Some(incoming).filter(|_| !self.inbound_port.is_empty()))
    }
}

impl How {
    fn backend(&self) -> Result<Backend, Failure> {
        match self.backend {
            Backend::Auto if is_there("nft") => Ok(Backend::Nft),
            Backend::Auto if is_there("iptables") => Ok(Backend::Iptables),
            Backend::Auto => Err(Failure::new("neither nft nor iptables is there: install one of them")),
            chosen => Ok(chosen),
        }
    }
}

fn is_there(program: &str) -> bool {
    let version = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    version.is_ok_and(|output| output.status.success())
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}

fn step(command: &[&str], input: String) -> Step {
    Step { command: words(command), input, may_fail: false, unless: None }
}

fn install_iptables(rules: &Rules) -> Vec<Step> {
    let of = |(family, tool): (Family, &str)| {
        let restore = step(&[&format!("{tool}-restore"), "-w", "--noflush"], rules.iptables(family));
        let jumps = CHAINS.map(|(from, to)| {
            let jump = |action| words(&[tool, "-w", "-t", "nat", action, from, "-p", "tcp", "-j", to]);
            Step { command: jump("-A"), unless: Some(jump("-C")), ..step(&[], String::new()) }
        });
        [restore].into_iter().chain(jumps)
    };
    [(Family::V4, "iptables"), (Family::V6, "ip6tables")].into_iter().flat_map(of).collect()
}

fn remove_iptables() -> Vec<Step> {
    let of = |(tool, (from, to)): (&str, (&str, &str))| {
        let gone = |words_of: &[&str]| Step {
            may_fail: true,
            ..step(&[&[tool, "-w", "-t", "nat"], words_of].concat(), String::new())
        };
        [gone(&["-D", from, "-p", "tcp", "-j", to]), gone(&["-F", to]), gone(&["-X", to])]
    };
    ["iptables", "ip6tables"]
        .into_iter()
        .flat_map(|tool| CHAINS.map(|chain| (tool, chain)))
        .flat_map(of)
        .collect()
}

impl Step {
    fn shown(&self) -> String {
        let command = self.command.join(" ");
        let command = match &self.unless {
            Some(unless) => format!("{} || {command}", unless.join(" ")),
            None => command,
        };
        match self.input.as_str() {
            "" => format!("{command}\n"),
            input => format!("{command} <<'END'\n{input}END\n"),
        }
    }

    fn run(&self) -> Result<(), Failure> {
        if let Some(unless) = &self.unless
            && run(unless, "").is_ok()
        {
            return Ok(());
        }
        match run(&self.command, &self.input) {
            Err(_) if self.may_fail => Ok(()),
            ended => ended.map_err(|why| Failure::new(format!("{}: {why}", self.command.join(" ")))),
        }
    }
}

/// What it says if it fails.
fn run(command: &[String], input: &str) -> Result<(), String> {
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let mut tool = Command::new(program);
    tool.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = tool.spawn().map_err(|error| error.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let ended = child.wait_with_output().map_err(|error| error.to_string())?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(format!(
        "{}; rules need root or CAP_NET_ADMIN",
        said.lines().next().unwrap_or("failed without a word")
    ))
}

/// A user's number, or the number of a named one.
fn uid(text: &str) -> Result<u32, String> {
    if let Ok(uid) = text.parse() {
        return Ok(uid);
    }
    let found = Command::new("id").args(["-u", "--", text]).stdin(Stdio::null()).output();
    let found = found.ok().filter(|output| output.status.success());
    let number = found.and_then(|output| String::from_utf8_lossy(&output.stdout).trim().parse().ok());
    number.ok_or_else(|| {
        format!("there is no user {text:?}; give the number or name of the one that runs the sidecar")
    })
}
