//! Many seeds, each in a process of its own, and how to run one again.

use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use weft_state::defect::Defect;

use crate::plots::Plot;
use crate::run::{Options, Report, run};

/// Simulated seconds in which things go wrong, unless told otherwise.
const SECONDS: u64 = 10;

/// How a failure says what to run.
const REPRODUCE: &str = "REPRODUCE:";

/// What `weft simulate` is told.
#[derive(Debug, Clone, clap::Parser)]
#[command(about = "Run whole groups of servers under simulated clock, network and disk")]
pub struct Args {
    /// The first seed; the same seed gives the same run
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many seeds, each in a process of its own, as many at a time as there are processors
    #[arg(long, default_value_t = 1)]
    pub count: u64,
    /// Seconds of simulated time in which things go wrong
    #[arg(long, default_value_t = SECONDS)]
    pub seconds: u64,
    /// A mistake to plant, which must then be found; only in builds with debug assertions
    #[arg(long, value_parser = defect)]
    pub defect: Option<Defect>,
    /// A script for what goes wrong, in place of chance
    #[arg(long, value_parser = plot)]
    pub plot: Option<Plot>,
    /// Say what went wrong and when, also if all is well
    #[arg(long)]
    pub verbose: bool,
}

/// Runs them; fails if one fails.
pub fn run_all(args: &Args) -> bool {
    if args.count == 1 {
        let report =
            run(Options { seed: args.seed, seconds: args.seconds, defect: args.defect, plot: args.plot });
        print(args, &report);
        return report.violations.is_empty();
    }
    let (next, end) = (AtomicU64::new(args.seed), args.seed.saturating_add(args.count));
    let bad = Mutex::new(Vec::new());
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(seed) = Some(next.fetch_add(1, Relaxed)).filter(|seed| *seed < end) {
                    if !alone(args, seed) {
                        bad.lock().push(seed);
                    }
                }
            });
        }
    });
    let mut bad = bad.into_inner();
    bad.sort_unstable();
    println!("{} of {} seeds failed{}", bad.len(), args.count, if bad.is_empty() { "" } else { ":" });
    for seed in &bad {
        println!("{}", reproduce(args, *seed));
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

fn plot(name: &str) -> Result<Plot, String> {
    let names = || Plot::ALL.map(Plot::name).join(", ");
    let found = Plot::ALL.into_iter().find(|plot| plot.name() == name);
    found.ok_or_else(|| format!("{name:?} is none of them: {}", names()))
}

/// What to run to have this again.
fn reproduce(args: &Args, seed: u64) -> String {
    let mut line = format!("{REPRODUCE} weft simulate --seed {seed}");
    if args.seconds != SECONDS {
        line.push_str(&format!(" --seconds {}", args.seconds));
    }
    if let Some(defect) = args.defect {
        line.push_str(&format!(" --defect {defect}"));
    }
    if let Some(plot) = args.plot {
        line.push_str(&format!(" --plot {}", plot.name()));
    }
    line
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
    if let Some(plot) = args.plot {
        command.args(["--plot", plot.name()]);
    }
    if args.verbose {
        command.arg("--verbose");
    }
    match command.stdin(Stdio::null()).stderr(Stdio::inherit()).output() {
        Ok(Output { status, stdout, .. }) => {
            // Whole, as others run at the same time.
            print!("{}", String::from_utf8_lossy(&stdout));
            if !status.success() && !String::from_utf8_lossy(&stdout).contains(REPRODUCE) {
                println!("seed {seed}: {status}\n{}", reproduce(args, seed));
            }
            status.success()
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
        println!("{}", reproduce(args, report.seed));
    }
}
