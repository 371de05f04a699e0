//! One run: form a group, let clients work while things go wrong, heal, check.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;
use weft_state::defect::{Defect, plant};
use weft_tests::checker::kv::{Answer, Call, Key, learn};
use weft_tests::checker::revision;
use weft_tests::checker::watch::Truth;
use weft_tests::history::{Process, Recorder};
use weft_xds_proto::etcdserverpb::kv_client::KvClient;

use crate::intercept;
use crate::invariants::{self, Finished};
use crate::nemesis::Nemesis;
use crate::net::Net;
use crate::plots::Plot;
use crate::rng::Rng;
use crate::server::Number;
use crate::stage::Stage;
use crate::workload::watch::Told;
use crate::workload::{Client, call, compact, kv, lease, lock, watch};
use crate::world::World;

/// Longest time for a group to form, and for everyone to come to an end once all is well, in milliseconds.
const FORM_MS_MAX: u64 = 60_000;
const END_MS_MAX: u64 = 90_000;

/// Once all is well, calls must be answered again within this time, and go on being answered.
const RECOVERY_MS_MAX: u64 = 15_000;

/// Once all is well, every server of the group must be a voter again within this time.
const WHOLE_MS_MAX: u64 = 60_000;

/// How long clients go on when all is well: sessions are held and run out, and are told so in time.
const WELL_MS: u64 = 4_000;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// How long things go wrong.
    pub seconds: u64,
    /// A mistake that it should find.
    pub defect: Option<Defect>,
    /// What goes wrong by a script, in place of chance.
    pub plot: Option<Plot>,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// As given.
    pub seed: u64,
    /// Servers in the group.
    pub servers: u8,
    /// Equal for equal runs.
    pub trace: u64,
    /// Calls that were answered, refused, and of unknown end.
    pub calls: (usize, usize, usize),
    /// Entries that were applied.
    pub applied: u64,
    /// Terms that had a leader.
    pub leaders: usize,
    /// What went wrong on purpose, with its time in milliseconds.
    pub faults: Vec<(u64, String)>,
    /// What must not have happened.
    pub violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ok, refused, unknown) = self.calls;
        write!(
            f,
            "seed {}: {} servers, {} faults, {} leaders, {} entries; calls: {ok} answered, {refused} refused, {unknown} \
             unknown; trace {:016x}; {}",
            self.seed,
            self.servers,
            self.faults.len(),
            self.leaders,
            self.applied,
            self.trace,
            if self.violations.is_empty() { "ok" } else { "FAILED" }
        )
    }
}

/// Runs a seed on a thread of its own.
pub fn run(options: Options) -> Report {
    watch_panics();
    // Outside of the simulation, as its name must not be taken twice by processes that run at the same time.
    let folder = match tempfile::tempdir() {
        Ok(folder) => folder,
        Err(error) => {
            let violations = vec![format!("no folder for the run: {error}")];
            return Report { seed: options.seed, violations, ..Report::default() };
        }
    };
    let path = folder.path().to_path_buf();
    let simulate = move || simulate(options, &path);
    let thread = std::thread::Builder::new().stack_size(16 * 1024 * 1024).spawn(simulate);
    let result = thread.map(std::thread::JoinHandle::join);
    match result {
        Ok(Ok(report)) => report,
        Ok(Err(_)) => {
            let violations = vec!["the simulation panicked, see above".to_owned()];
            Report { seed: options.seed, violations, ..Report::default() }
        }
        Err(error) => {
            let violations = vec![format!("no thread for the run: {error}")];
            Report { seed: options.seed, violations, ..Report::default() }
        }
    }
}

thread_local! {
    /// Of tasks, which the runtime would keep to itself.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
            before(panic);
        }));
    });
}

/// What clients found, while they find it.
#[derive(Clone, Default)]
struct Findings {
    calls: Recorder<Call, Answer>,
    watchers: Arc<Mutex<Vec<Told>>>,
    notes: lease::Notes,
    grants: lock::Grants,
    compactions: compact::Compactions,
    /// No more calls are begun.
    stop: Arc<AtomicBool>,
    /// All calls have ended, and everything was read once more.
    done: Arc<AtomicBool>,
}

fn simulate(options: Options, folder: &Path) -> Report {
    let Options { seed, defect, plot, .. } = options;
    if !plant(defect) {
        let violations = vec!["this build has no defects to plant: it has no debug assertions".to_owned()];
        return Report { seed, violations, ..Report::default() };
    }
    intercept::seed(seed);
    fastrand::seed(seed);
    let mut rng = Rng::new(seed, "run");
    let servers: Number = if rng.chance(300) { 5 } else { 3 };
    let servers = plot.map_or(servers, Plot::servers);
    let mut stage = Stage::new(seed, World::new(seed, servers, folder));
    let mut nemesis = Nemesis::new(Rng::new(seed, "nemesis"));
    let findings = Findings::default();
    let result = play(&options, &mut stage, &mut nemesis, &findings);
    let Stage { world, leaders, mut log, .. } = stage;
    log.extend(nemesis.log.iter().map(|(at, fault)| (*at, fault.to_string())));
    let mut violations: Vec<String> = result.clone().err().into_iter().collect();
    if let Ok(healed) = result {
        violations.extend(judge(&world, &findings, healed));
    }
    violations.extend(PANICS.take().into_iter().map(|panic| format!("a task panicked: {panic}")));
    Report {
        seed,
        servers,
        trace: world.trace.hash(),
        calls: findings.calls.lock().tally(),
        applied: world.ledger.applied(),
        leaders: leaders.count(),
        faults: log,
        violations,
    }
}

/// All phases; answers when everything was well again.
fn play(
    options: &Options,
    stage: &mut Stage,
    nemesis: &mut Nemesis,
    findings: &Findings,
) -> Result<Duration, String> {
    stage.world.servers().into_iter().for_each(|server| stage.world.boot(server));
    stage.until(FORM_MS_MAX, "the group does not form", World::is_whole)?;

    stage.world.clients.boot();
    let begun = stage.world.now;
    let (net, group) = (stage.world.net.clone(), stage.world.servers());
    stage.world.clients.spawn(clients(options.seed, net, group, findings.clone()));
    match options.plot {
        Some(plot) => plot.play(stage)?,
        None => {
            while stage.world.now < begun + options.seconds * 1000 {
                nemesis.step(&mut stage.world, &mut stage.operator);
                stage.step()?;
            }
        }
    }
    nemesis.end(&mut stage.world);
    is_answered(stage, findings)?;
    stage
        .until(WHOLE_MS_MAX, "liveness: the group is not whole again", World::is_whole)
        .map_err(|error| format!("{error}: {}", stage.world.views()))?;
    let healed = stage.world.now;
    for _ in 0..2 {
        is_answered(stage, findings)?;
        stage.for_ms(WELL_MS / 2)?;
    }
    findings.stop.store(true, Relaxed);
    let done = findings.done.clone();
    stage.until(END_MS_MAX, "liveness: not every client comes to an end", |_| done.load(Relaxed))?;
    stage.until(END_MS_MAX, "liveness: a server does not apply everything", |world| {
        let mut behind = 0;
        world.each(|_, inside| behind += usize::from(inside.status().applied < world.ledger.applied()));
        behind == 0 && world.on().len() == world.servers().len()
    })?;
    Ok(Duration::from_millis(healed - begun))
}

/// All is well: then calls are answered.
fn is_answered(stage: &mut Stage, findings: &Findings) -> Result<(), String> {
    let answered = findings.calls.lock().tally().0;
    let progress = |_: &World| findings.calls.lock().tally().0 > answered;
    stage.until(RECOVERY_MS_MAX, "liveness: all is well, and no call is answered", progress)
}

/// Everything that clients do, from the start to the last look.
async fn clients(seed: u64, net: Net, group: Vec<Number>, findings: Findings) {
    let client = Client::new(&net, &group, findings.stop.clone());
    let rng = |of: String| Rng::new(seed, &of);
    let mut working = JoinSet::new();
    for number in 1..=4 {
        let process = Process(number);
        working.spawn(kv::run(client.clone(), process, rng(format!("kv {number}")), findings.calls.clone()));
    }
    for number in 11..=13 {
        let (rng, calls, notes) =
            (rng(format!("lease {number}")), findings.calls.clone(), findings.notes.clone());
        working.spawn(lease::run(client.clone(), Process(number), rng, calls, notes));
    }
    for number in 21..=22 {
        let (rng, calls, grants) =
            (rng(format!("lock {number}")), findings.calls.clone(), findings.grants.clone());
        working.spawn(lock::run(client.clone(), rng, calls, grants));
    }
    working.spawn(compact::run(client.clone(), rng("compact".to_owned()), findings.compactions.clone()));
    for number in 31..=32 {
        let told = watch::told(format!("watcher {number}"));
        findings.watchers.lock().push(told.clone());
        tokio::spawn(watch::run(
            client.clone(),
            rng(format!("watch {number}")),
            findings.calls.clone(),
            told,
        ));
    }
    // One that stays with each server: also with one that falls behind, and gets a snapshot.
    for (place, server) in group.iter().enumerate() {
        let told = watch::told(format!("watcher of server {server}"));
        findings.watchers.lock().push(told.clone());
        let rng = rng(format!("watch at {place}"));
        tokio::spawn(watch::stay(client.only(place), rng, findings.calls.clone(), told));
    }
    while working.join_next().await.is_some() {}
    read_all(&client, seed, &findings.calls).await;
    // Long enough for every watcher to find a server and to hear what it has not heard.
    sleep(Duration::from_secs(12)).await;
    findings.done.store(true, Relaxed);
}

/// Reads every key once more, from any server.
async fn read_all(client: &Client, seed: u64, calls: &Recorder<Call, Answer>) {
    let mut rng = Rng::new(seed, "last look");
    for key in kv::keys() {
        loop {
            let call = Call::get(key.clone());
            let id = calls.lock().invoke(Process(99), client.at(), call.clone());
            match call::carry_out(&mut KvClient::new(client.any(&mut rng)), &call).await {
                Ok(answer) => {
                    calls.lock().ok(id, client.at(), answer);
                    break;
                }
                Err(_) => calls.lock().fail(id, client.at()),
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Holds what clients saw against what was.
fn judge(world: &World, findings: &Findings, healed: Duration) -> Vec<String> {
    let (own, others): (Vec<_>, Vec<_>) =
        world.ledger.changes().into_iter().partition(|change| change.key.starts_with(kv::PREFIX));
    let last = own.last().map_or(0, |change| change.revision);
    let mut truth = match Truth::new(own) {
        Ok(truth) => truth,
        Err(wrong) => return vec![wrong.to_string()],
    };
    truth.compacted_to(findings.compactions.lock().iter().copied());
    let mut calls = findings.calls.lock().clone();
    let readings = revision::readings(&calls);
    learn(&mut calls, Some(&truth.puts()));
    let fences = others.iter().filter(|change| change.key == Key::from(lock::PROTECTED));
    invariants::check(&Finished {
        calls,
        readings,
        truth,
        protected: fences.filter_map(|change| change.value.as_ref()?.parse().ok()).collect(),
        watchers: findings.watchers.lock().iter().map(|told| told.lock().clone()).collect(),
        notes: findings.notes.lock().clone(),
        grants: findings.grants.lock().clone(),
        healed,
        last,
    })
}
