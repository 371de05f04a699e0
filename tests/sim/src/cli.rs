//! Many seeds, each in a process of its own, and how to run one again.

use std::process::{Command, ExitCode, Stdio};

use weft_state::defect::Defect;

use crate::run::{Options, Report, run};

/// Simulated seconds in which things go wrong, unless told otherwise.
const SECONDS: u64 = 10;

/// What `weft simulate` is told.
#[derive(Debug, Clone, clap::Parser)]
#[command(about = "Run whole groups of servers under simulated clock, network and disk")]
pub struct Args {
    /// The first seed; the same seed gives the same run
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many seeds, one after the other
    #[arg(long, default_value_t = 1)]
    pub count: u64,
    /// Seconds of simulated time in which things go wrong
    #[arg(long, default_value_t = SECONDS)]
    pub seconds: u64,
    /// A mistake to plant, which must then be found; only in builds with debug assertions
    #[arg(long, value_parser = defect)]
    pub defect: Option<Defect>,
    /// Say what went wrong and when, also if all is well
    #[arg(long)]
    pub verbose: bool,
}

/// Runs them; fails if one fails.
pub fn run_all(args: &Args) -> bool {
    if args.count == 1 {
        let report = run(Options { seed: args.seed, seconds: args.seconds, defect: args.defect });
        print(args, &report);
        return report.violations.is_empty();
    }
    let mut bad = Vec::new();
    for seed in args.seed..args.seed.saturating_add(args.count) {
        if !alone(args, seed) {
            bad.push(seed);
        }
    }
    println!("{} of {} seeds failed{}", bad.len(), args.count, if bad.is_empty() { "" } else { ":" });
    for seed in &bad {
        println!("REPRODUCE: weft simulate --seed {seed}");
    }
    bad.is_empty()
}

/// The same, as the exit code of a process.
pub fn main(args: &Args) -> ExitCode {
    if run_all(args) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn defect(name: &str) -> Result<Defect, String> {
    let names = || Defect::ALL.map(Defect::name).join(", ");
    let found = Defect::ALL.into_iter().find(|defect| defect.name() == name);
    found.ok_or_else(|| format!("{name:?} is none of them: {}", names()))
}

fn alone(args: &Args, seed: u64) -> bool {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            println!("seed {seed}: cannot start this program again: {error}");
            return false;
        }
    };
    // The first words are those that led here: `simulate` of the whole binary, or none.
    let words = std::env::args().skip(1).take_while(|word| !word.starts_with('-'));
    let mut command = Command::new(program);
    command.args(words).args(["--seed", &seed.to_string(), "--seconds", &args.seconds.to_string()]);
    if let Some(defect) = args.defect {
        command.args(["--defect", defect.name()]);
    }
    if args.verbose {
        command.arg("--verbose");
    }
    match command.stdin(Stdio::null()).status() {
        Ok(status) if status.success() => true,
        Ok(status) => {
            println!("seed {seed}: {status}");
            println!("REPRODUCE: weft simulate --seed {seed}");
            false
        }
        Err(error) => {
            println!("seed {seed}: cannot start this program again: {error}");
            false
        }
    }
}

fn print(args: &Args, report: &Report) {
    println!("{report}");
    if args.verbose || !report.violations.is_empty() {
        for (at, fault) in &report.faults {
            println!("  {:>7.3} s  {fault}", *at as f64 / 1000.0);
        }
    }
    for violation in &report.violations {
        println!("VIOLATION: {violation}");
    }
    if !report.violations.is_empty() {
        let seconds =
            if args.seconds == SECONDS { String::new() } else { format!(" --seconds {}", args.seconds) };
        println!("REPRODUCE: weft simulate --seed {}{seconds}", report.seed);
    }
}
