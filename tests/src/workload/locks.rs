//! Sessions that take one lock in turn, write under its fence, and give it back or leave it to expire.

use std::time::Duration;

use weft_client::kv::{Compare, CompareOp, CompareTarget, KeyRange, PutOptions, Txn, TxnOp};
use weft_client::semaphore::{Grant, Permit};
use weft_client::{Client, Session};

use crate::checker::lock::{Answer, Call, Key};
use crate::history::{OpId, Process};
use crate::workload::Run;

const LOCK: &str = "under-faults";
const TTL: Duration = Duration::from_secs(2);
/// How long one waits for the lock.
const WAIT: Duration = Duration::from_secs(3);
/// Between writes under the lock.
const PAUSE: Duration = Duration::from_millis(50);
/// How long an ended session is looked for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Takes the lock again and again until the run is stopped.
pub async fn contend(run: Run, client: Client) {
    let (process, mut rng) = run.process();
    while !run.is_stopped() {
        let Ok(session) = client.session(TTL).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let turn = Turn { run: &run, client: &client, process, session: session.lease() };
        // It may end by itself from now on.
        let end = turn.begin(Call::End { lock: turn.lock(), session: turn.session });
        let grant = turn.hold(&session, &mut rng).await;
        turn.finish(session, grant, end, rng.bool()).await;
    }
}

struct Turn<'a> {
    run: &'a Run,
    client: &'a Client,
    process: Process,
    session: i64,
}

impl Turn<'_> {
    fn lock(&self) -> Key {
        LOCK.into()
    }

    fn begin(&self, call: Call) -> OpId {
        let now = self.run.now();
        self.run.locks().lock().invoke(self.process, now, call)
    }

    fn done(&self, id: OpId, answer: Answer) {
        let now = self.run.now();
        self.run.locks().lock().ok(id, now, answer);
    }

    /// Acquires, writes a few times, and perhaps releases. Answers the grant.
    async fn hold(&self, session: &Session, rng: &mut fastrand::Rng) -> Option<Grant> {
        let acquire = self.begin(Call::Acquire { lock: self.lock(), session: self.session });
        // Without an answer it may have been granted, until the session ends.
        let permit: Permit = self.client.lock(LOCK).acquire_within(session, WAIT).await.ok().flatten()?;
        let grant = permit.grant().clone();
        self.done(acquire, Answer::Granted { fence: grant.fence });
        // Sometimes for longer than the session is kept alive, if servers are away.
        for _ in 0..rng.u32(1..10) {
            self.write(&grant).await;
            tokio::time::sleep(PAUSE).await;
        }
        if rng.bool() {
            let release = self.begin(Call::Release { lock: self.lock(), session: self.session });
            if permit.release().await.is_ok() {
                // Answered alike whether the session still held it or not.
                self.done(release, Answer::Over);
            }
        }
        Some(grant)
    }

    /// A write that the store does only if the lock's key is that of this grant.
    async fn write(&self, grant: &Grant) {
        let txn = Txn {
            compares: vec![Compare {
                range: KeyRange::key(grant.key.clone()),
                op: CompareOp::Equal,
                target: CompareTarget::CreateRevision(grant.fence),
            }],
            success: vec![TxnOp::Put(
                "lock/guarded".into(),
                grant.fence.to_string().into(),
                PutOptions::default(),
            )],
            failure: Vec::new(),
        };
        let guarded = self.begin(Call::Guarded { lock: self.lock(), fence: grant.fence });
        if let Ok(answer) = self.client.kv().txn(txn).await {
            self.done(guarded, if answer.succeeded { Answer::Done } else { Answer::No });
        }
    }

    /// Ends the session, by request or by leaving it alone, and waits until it is over.
    async fn finish(&self, session: Session, grant: Option<Grant>, end: OpId, close: bool) {
        let abandoned = !close && grant.is_some();
        if !abandoned && session.close().await.is_ok() {
            return self.done(end, Answer::Over);
        }
        drop(session);
        let left = tokio::time::Instant::now();
        while left.elapsed() < PATIENCE {
            if let Ok(None) = self.client.leases().time_to_live(self.session).await {
                return self.done(end, Answer::Over);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
