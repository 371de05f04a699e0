//! What `lock`, `semaphore` and `elect` have in common: a session, a wait with messages, a command that
//! runs while it is held, and an orderly end.

use std::ffi::OsString;
use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use weft_client::semaphore::Grant;
use weft_client::{Client, Session};
use weft_core::config::parse_duration;

use super::child::{self, Ended};
use crate::failure::{Failure, NOT_GRANTED, SESSION_LOST};
use crate::signals::{Signals, signal_exit};

/// A wait is reported when it lasts longer than this; a free lock is granted sooner.
const REPORT_AFTER: Duration = Duration::from_millis(250);
/// Pause between two looks at the queue.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How long to try to tell the servers that the session is over.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);

/// How long to hold and to wait.
#[derive(Debug, Args)]
pub(crate) struct Holding {
    /// Time to live of the session without renewal: how long others wait after a crash of this machine
    #[arg(long, default_value = "10s", value_parser = parse_ttl, value_name = "DURATION")]
    ttl: Duration,
    /// Wait no longer than this, then exit with 124; default: wait for ever
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) timeout: Option<Duration>,
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = parse_duration(text).map_err(|error| error.to_string())?;
    if ttl < Duration::from_secs(1) {
        return Err(format!("{text} is too short; 1s is the shortest time to live"));
    }
    Ok(ttl)
}

/// What is asked for, in words: `lock deploy`.
pub(crate) struct Wanted<'a> {
    pub(crate) what: String,
    pub(crate) name: &'a str,
    pub(crate) command: &'a [OsString],
}

impl Holding {
    /// Opens a session, waits for `acquire`, runs the command while it holds, and ends the session.
    /// `progress` says where the wait stands; it is asked once a second and printed when it changes.
    pub(crate) async fn run<A, P>(
        &self,
        client: &Client,
        wanted: Wanted<'_>,
        acquire: impl FnOnce(Session) -> A,
        progress: impl Fn(Session) -> P,
    ) -> Result<ExitCode, Failure>
    where
        A: Future<Output = Result<Option<Grant>, weft_client::Error>>,
        P: Future<Output = Result<String, weft_client::Error>>,
    {
        let mut signals = Signals::listen()?;
        let session = tokio::select! {
            session = client.session(self.ttl) => session?,
            signal = signals.next() => return Ok(signal_exit(signal)),
        };
        let held = tokio::select! {
            held = acquire(session.clone()) => held,
            signal = signals.next() => {
                end(&session, &wanted).await;
                return Ok(signal_exit(signal));
            }
            () = report(&session, &wanted, progress) => unreachable!("reports go on until the wait is over"),
        };
        let grant = match held {
            Ok(Some(grant)) => grant,
            Ok(None) => {
                end(&session, &wanted).await;
                let why = match self.timeout {
                    Some(timeout) => format!("{} was not granted within {timeout:?}", wanted.what),
                    None => format!("{} is taken", wanted.what),
                };
                return Err(Failure::with_code(NOT_GRANTED, why));
            }
            Err(error) => {
                end(&session, &wanted).await;
                return Err(error.into());
            }
        };
        eprintln!("acquired {}, fence {}", wanted.what, grant.fence);
        let environment = [
            ("WEFT_FENCE", grant.fence.to_string()),
            ("WEFT_LEASE", format!("{:x}", grant.lease)),
            ("WEFT_NAME", wanted.name.to_owned()),
        ];
        let ended = child::run(wanted.command, &environment, &grant, &session, &mut signals).await;
        match ended {
            Ok(Ended::Lost) => {
                // What may be left of it is of no use to us and in the way of others.
                let _ = tokio::time::timeout(Duration::from_secs(1), session.close()).await;
                Err(Failure::with_code(
                    SESSION_LOST,
                    format!("{} was lost while the command ran; the command was stopped", wanted.what),
                ))
            }
            Ok(Ended::Code(code)) => {
                end(&session, &wanted).await;
                Ok(ExitCode::from(code))
            }
            Err(failure) => {
                end(&session, &wanted).await;
                Err(failure)
            }
        }
    }
}

/// Revoking the lease frees all that the session holds or waits for, in one step.
async fn end(session: &Session, wanted: &Wanted<'_>) {
    let why = match tokio::time::timeout(CLOSE_LIMIT, session.close()).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no server answered".to_owned(),
    };
    eprintln!("could not free {} ({why}); it frees itself within {:?}", wanted.what, session.ttl());
}

async fn report<P>(session: &Session, wanted: &Wanted<'_>, progress: impl Fn(Session) -> P)
where
    P: Future<Output = Result<String, weft_client::Error>>,
{
    tokio::time::sleep(REPORT_AFTER).await;
    let mut said = String::new();
    loop {
        match progress(session.clone()).await {
            Ok(now) if now != said => {
                eprintln!("waiting for {}{now}", wanted.what);
                said = now;
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "could not look at the queue"),
        }
        tokio::time::sleep(REPORT_EVERY).await;
    }
}

/// Where a session stands in a queue, for [`Holding::run`].
pub(crate) fn position(waiters: &[i64], holders: usize, lease: i64) -> String {
    match waiters.iter().position(|waiter| *waiter == lease) {
        Some(ahead) => {
            let held = if holders == 1 { "1 holder".to_owned() } else { format!("{holders} holders") };
            format!(", position {} of {}, {held}", ahead + 1, waiters.len())
        }
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_from_one() {
        assert_eq!(position(&[5, 7], 1, 7), ", position 2 of 2, 1 holder");
        assert_eq!(position(&[5], 2, 5), ", position 1 of 1, 2 holders");
        assert_eq!(position(&[5], 1, 9), "");
    }

    #[test]
    fn a_ttl_below_a_second_is_refused() {
        assert!(parse_ttl("500ms").unwrap_err().contains("1s"));
        assert!(parse_ttl("5").unwrap_err().contains("unit"));
        assert_eq!(parse_ttl("10s"), Ok(Duration::from_secs(10)));
    }
}
