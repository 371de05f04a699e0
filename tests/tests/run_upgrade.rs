//! `weft run` becomes a new version of itself while its app runs on (P47): same process, same child.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use weft_tests::installed::Installed;
use weft_tests::mesh::{Mesh, strings};
use weft_tests::notified::{Notified, ready};
use weft_tests::process::WeftProcess;
use weft_tests::wait::until;

const SOON: Duration = Duration::from_secs(20);

/// An app and what it runs with.
struct App {
    weft: Installed,
    mesh: Mesh,
}

impl App {
    fn new() -> Self {
        let mesh = Mesh::empty();
        Self { weft: Installed::new(&mesh.folder("")), mesh }
    }

    /// A program that is weft as a sidecar, and does what it is told when it is to be the supervisor.
    fn install_supervisor(&self, script: &str) {
        self.weft.install_script(&format!("[ \"$1\" = proxy ] && exec \"$weft\" \"$@\"\n{script}"));
    }

    /// `weft run` of a shell script that begins with its own pid and `WEFT_SIDECAR`.
    async fn run(&self, app: &str) -> WeftProcess {
        self.run_with(app, &[]).await
    }

    async fn run_with(&self, app: &str, env: &[(&str, &str)]) -> WeftProcess {
        let app = format!("echo \"ready {{\\\"app\\\":$$,\\\"outbound\\\":\\\"$WEFT_SIDECAR\\\"}}\"\n{app}");
        let folder = self.folder().display().to_string();
        let mut args = strings(&["run", "--name", "app", "--data-dir", &folder, "--gossip-port", "0"]);
        // A port of its own choice would be another one after a crash.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("bound");
        let outbound = free.to_string();
        args.extend(strings(&["--outbound", &outbound, "--admin", "127.0.0.1:0", "--", "sh", "-c", &app]));
        WeftProcess::start_program("app", self.weft.path(), &args, env).await.expect("starts")
    }

    fn folder(&self) -> PathBuf {
        self.mesh.folder("data")
    }

    /// Who serves as the sidecar.
    fn sidecar(&self) -> String {
        fs::read_to_string(self.folder().join("pid")).expect("a pid").trim().to_owned()
    }

    /// Until `whole` is the very file that is installed now.
    async fn becomes_it(&self, whole: &WeftProcess) {
        until("it is the new program", SOON, async || {
            let runs = fs::metadata(format!("/proc/{}/exe", whole.pid())).map_err(|e| e.to_string())?;
            let installed = fs::metadata(self.weft.path()).expect("installed");
            if runs.ino() == installed.ino() { Ok(()) } else { Err(whole.log()) }
        })
        .await;
    }
}

/// What `/proc` says of a process: its state and its parent.
fn process(pid: impl std::fmt::Display) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn children(parent: u32) -> Vec<(String, char)> {
    let all = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    let pids = all.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let state = |pid: String| process(&pid).filter(|(_, of)| *of == parent).map(|(state, _)| (pid, state));
    pids.filter(|pid| pid.parse::<u32>().is_ok()).filter_map(state).collect()
}

/// The supervisor too is replaced, twice, and all is as before: who the app is and whose child, the end of the sidecars that
/// were, a crash of the one that is, signals, and the code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_supervisor_becomes_the_new_program_and_the_app_stays_its_child() {
    let app = App::new();
    let told = ["HUP", "USR1", "WINCH"].map(|signal| (signal, app.mesh.folder(signal)));
    let traps: String =
        told.iter().map(|(signal, file)| format!("trap 'touch {}' {signal}; ", file.display())).collect();
    let script = format!("{traps}trap 'exit 5' QUIT; while :; do sleep 0.02; done");
    let mut whole = app.run(&script).await;
    let pid = whole.pid();
    let child = whole.ready()["app"].as_u64().expect("its pid");
    assert_eq!(process(child).expect("it runs").1, pid);
    let command = fs::read(format!("/proc/{child}/cmdline")).expect("it runs");
    let started = fs::read(format!("/proc/{pid}/environ")).expect("it runs");
    for _ in 0..2 {
        let before = app.sidecar();
        app.weft.install();
        whole.signal(Signal::USR2);
        app.becomes_it(&whole).await;
        until("another sidecar, and no child is left unwaited", SOON, async || {
            let seen = (app.sidecar(), children(pid));
            let wanted = [child.to_string(), seen.0.clone()];
            match seen.0 != before
                && seen.1.len() == 2
                && seen.1.iter().all(|(pid, state)| *state != 'Z' && wanted.contains(pid))
            {
                true => Ok(()),
                false => Err(format!("{seen:?}\n{}", whole.log())),
            }
        })
        .await;
        tokio::net::TcpStream::connect(whole.addr("outbound")).await.expect("the same port");
    }
    assert_eq!(fs::read(format!("/proc/{child}/cmdline")).expect("the same app"), command);
    assert_eq!(fs::read(format!("/proc/{pid}/environ")).expect("it runs"), started, "nothing is added");

    let before = app.sidecar();
    let sidecar = before.parse().ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(sidecar, Signal::KILL).expect("it is ours");
    until("it is started again", SOON, async || match app.sidecar() {
        now if now != before => {
            tokio::net::TcpStream::connect(whole.addr("outbound")).await.map_err(|e| e.to_string())
        }
        _ => Err(whole.log()),
    })
    .await;

    for (signal, (name, file)) in [Signal::HUP, Signal::USR1, Signal::WINCH].into_iter().zip(&told) {
        whole.signal(signal);
        until(&format!("SIG{name} is passed on"), SOON, async || match file.exists() {
            true => Ok(()),
            false => Err(whole.log()),
        })
        .await;
    }
    // The app is told the very signal, once its callers have gone elsewhere.
    whole.signal(Signal::QUIT);
    assert_eq!(whole.wait(SOON).await, 5, "the app's own code\n{}", whole.log());
    assert!(!app.folder().join("handover.sock").exists(), "the last sidecar has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_ends_by_itself_after_an_upgrade_is_heard_and_so_is_its_code() {
    let app = App::new();
    let end = app.mesh.folder("end");
    let mut whole = app.run(&format!("while ! [ -e {} ]; do sleep 0.02; done; exit 9", end.display())).await;
    app.weft.install();
    whole.signal(Signal::USR2);
    app.becomes_it(&whole).await;
    fs::write(&end, "").expect("written");
    assert_eq!(whole.wait(SOON).await, 9);
    assert!(!app.folder().join("handover.sock").exists(), "the sidecar has ended too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_program_that_cannot_be_the_supervisor_leaves_the_old_one_which_says_why() {
    let app = App::new();
    let mut whole = app.run("trap 'exit 6' TERM; while :; do sleep 0.02; done").await;
    let before = fs::metadata(format!("/proc/{}/exe", whole.pid())).expect("it runs").ino();
    // The first leaves a process behind that could still say something: nobody waits for it.
    for refusal in ["sleep 25 & echo 'error: this is no weather for it' >&2; exit 3", "kill -KILL $$"] {
        app.install_supervisor(refusal);
        let said = whole.log().matches("which goes on").count();
        whole.signal(Signal::USR2);
        until("it says why it goes on", SOON, async || {
            let log = whole.log();
            if log.matches("which goes on").count() > said { Ok(()) } else { Err(log) }
        })
        .await;
    }
    let log = whole.log();
    assert!(log.contains("exit status: 3: error: this is no weather for it"), "{log}");
    assert!(log.contains("signal: 9"), "{log}");
    assert_eq!(fs::metadata(format!("/proc/{}/exe", whole.pid())).expect("it runs").ino(), before);
    // And another time it can.
    app.weft.install();
    whole.signal(Signal::USR2);
    app.becomes_it(&whole).await;
    whole.signal(Signal::TERM);
    assert_eq!(whole.wait(SOON).await, 6);
}

/// After the first upgrade the sidecar is a process of its own, and nothing but what it does says whether another one took over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_sidecar_that_does_not_take_over_leaves_everything_as_it_was() {
    let app = App::new();
    let mut whole = app.run("trap 'exit 4' TERM; while :; do sleep 0.02; done").await;
    app.weft.install();
    whole.signal(Signal::USR2);
    app.becomes_it(&whole).await;
    let (before, program) = (app.sidecar(), fs::metadata(app.weft.path()).expect("installed").ino());
    // What takes the place of neither, but would pass for a supervisor.
    app.weft.install_script("[ \"$1\" = proxy ] && sleep 1 && exit 7\nexec \"$weft\" \"$@\"");
    whole.signal(Signal::USR2);
    until("it says that nobody took over", SOON, async || {
        let log = whole.log();
        if log.contains("did not take over (exit status: 7)") { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(app.sidecar(), before);
    assert_eq!(fs::metadata(format!("/proc/{}/exe", whole.pid())).expect("it runs").ino(), program);
    tokio::net::TcpStream::connect(whole.addr("outbound")).await.expect("it serves");
    whole.signal(Signal::TERM);
    assert_eq!(whole.wait(SOON).await, 4);
}

/// A signal that comes while one program gives way to the other is for the app all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_in_the_middle_of_the_upgrade_waits_for_the_new_program() {
    let app = App::new();
    let (began, go, told) = (app.mesh.folder("began"), app.mesh.folder("go"), app.mesh.folder("told"));
    let script = format!(
        "trap 'readlink /proc/$PPID/exe > {}; exit 8' TERM; while :; do sleep 0.02; done",
        told.display()
    );
    let mut whole = app.run(&script).await;
    // A shell would let the signal in, so only the rehearsal is its own.
    let rehearsal =
        format!("touch {}; while ! [ -e {} ]; do sleep 0.01; done", began.display(), go.display());
    app.install_supervisor(&rehearsal);
    whole.signal(Signal::USR2);
    until("it is about to", SOON, async || if began.exists() { Ok(()) } else { Err(whole.log()) }).await;
    whole.signal(Signal::TERM);
    app.weft.install();
    fs::write(&go, "").expect("written");
    assert_eq!(whole.wait(SOON).await, 8, "{}", whole.log());
    let parent = fs::read_to_string(&told).expect("the app was told");
    assert_eq!(
        Path::new(parent.trim()),
        app.weft.path(),
        "by the new program: the old one's file is no more"
    );
}

/// By hand the flag is of no use, and does no harm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_child_of_the_process_is_not_adopted() {
    let handed = r#"{"protocol":1,"rehearsal":false,"app":1,"own_group":true,"data_dir":"/","sidecars":[]}"#;
    let refused = weft_tests::process::run(&["run", "--adopt", handed, "--", "true"]).await;
    assert!(refused.code == 1 && refused.stderr.contains("process 1 is no child of this one"), "{refused:?}");
    let refused = weft_tests::process::run(&["run", "--adopt", r#"{"protocol":2}"#, "--", "true"]).await;
    assert!(refused.code == 2 && refused.stderr.contains("restart it instead"), "{refused:?}");
}

/// systemd is told by the process that stays the main one, and by no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_hears_of_an_app_with_its_sidecar_as_of_one() {
    let app = App::new();
    let supervisor = Notified::listen(&app.mesh.folder("notify"), true);
    let mut whole =
        app.run_with("trap 'exit 0' TERM; while :; do sleep 0.02; done", &supervisor.environment()).await;
    assert_eq!(supervisor.hears().await, ready(whole.pid()));
    for refused in [false, true] {
        match refused {
            false => app.weft.install(),
            true => app.install_supervisor("exit 1"),
        }
        whole.signal(Signal::USR2);
        assert_eq!(supervisor.hears_of_an_upgrade().await, ready(whole.pid()));
        // Its log is read beside it, so that a line may come after what is heard here.
        until("it goes on, and says so, where the new program is refused", SOON, async || {
            let log = whole.log();
            if log.contains("which goes on") == refused { Ok(()) } else { Err(log) }
        })
        .await;
    }
    supervisor.heard_all();
    whole.signal(Signal::TERM);
    assert_eq!(supervisor.hears().await, "STOPPING=1\n");
    assert_eq!(whole.wait(SOON).await, 0);
    supervisor.heard_all();
}
