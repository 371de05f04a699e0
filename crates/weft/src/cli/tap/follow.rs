//! The sidecars of a service's instances, as they come and go. What changes is said on stderr, a line each.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_stream::StreamMap;
use weft_client::{Client, Error};
use weft_core::backoff::Backoff;

use super::{Query, Seen};
use crate::cli::admin::Admin;
use crate::cli::sidecars::Instance;
use crate::failure::Failure;

/// Waits before a sidecar that broke off, or does not answer, is asked again.
const AGAIN_BASE: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(3);

/// Instances by id: the sidecar of each, or why it cannot be asked from here.
type Known = BTreeMap<String, Result<Admin, String>>;

/// See the module.
pub(super) struct Follow {
    /// As a stream, so that a request for a server goes on while lines come.
    told: BoxStream<'static, Result<Known, Error>>,
    known: Known,
    lines: StreamMap<String, BoxStream<'static, String>>,
    query: Query,
}

impl Follow {
    /// Waits for what servers know now. None if there are instances and none of them can be asked.
    pub async fn begin(client: &Client, service: &str, query: Query) -> Result<Option<Self>, Failure> {
        let watch = client.mesh().watch_endpoints(service);
        let told = stream::try_unfold(watch, async |mut watch| {
            let instances = watch.next().await?;
            Ok(Some((known(instances.iter().map(Instance::from)), watch)))
        });
        let mut follow = Self { told: told.boxed(), known: Known::new(), lines: StreamMap::new(), query };
        let first = follow.told.next().await.transpose()?.unwrap_or_default();
        if first.is_empty() {
            // Who has mistaken the name is told of the right one.
            let hint = client.mesh().endpoints(service).await.err().map(|why| format!("{why}; "));
            eprintln!("{}waiting for an instance of {service}", hint.unwrap_or_default());
        }
        follow.update(first);
        Ok(Some(follow).filter(|follow| follow.known.is_empty() || !follow.lines.is_empty()))
    }

    /// The next line that a sidecar tells.
    ///
    /// # Errors
    /// The servers do not tell any more which instances there are.
    pub async fn next(&mut self) -> Result<Seen, Failure> {
        loop {
            tokio::select! {
                Some((id, line)) = self.lines.next() => return Ok((Some(id), line)),
                Some(told) = self.told.next() => self.update(told?),
            }
        }
    }

    fn update(&mut self, now: Known) {
        for (id, change) in changes(&self.known, &now) {
            // It stands for a sidecar that is no longer there, or is another one.
            self.lines.remove(id);
            match change {
                Some(Ok(admin)) => {
                    let look = Look::new(id.clone(), *admin, self.query.clone());
                    let told = stream::unfold(look, async |mut look| Some((look.next().await, look)));
                    self.lines.insert(id.clone(), told.boxed());
                }
                Some(Err(why)) => eprintln!("not seen: {why}"),
                None => eprintln!("gone: {id}"),
            }
        }
        self.known = now;
    }
}

/// Of two instances with one id, as registry and gossip may have them, the one that can be asked.
fn known(instances: impl Iterator<Item = Instance>) -> Known {
    let mut known = Known::new();
    for Instance { id, sidecar, .. } in instances {
        if !matches!(known.get(&id), Some(Ok(_))) {
            known.insert(id, sidecar);
        }
    }
    known
}

/// What is different now; none: no longer there.
fn changes<'k>(
    before: &'k Known,
    now: &'k Known,
) -> impl Iterator<Item = (&'k String, Option<&'k Result<Admin, String>>)> {
    let gone = before.keys().filter(|id| !now.contains_key(*id)).map(|id| (id, None));
    let others = now.iter().filter(|(id, sidecar)| before.get(*id) != Some(sidecar));
    gone.chain(others.map(|(id, sidecar)| (id, Some(sidecar))))
}

/// One sidecar, which is asked again for as long as its instance is there.
struct Look {
    id: String,
    admin: Admin,
    query: Query,
    lines: Option<Lines<BufReader<TcpStream>>>,
    again: Backoff,
    /// That it is not seen was said.
    lost: bool,
}

impl Look {
    fn new(id: String, admin: Admin, query: Query) -> Self {
        Self { id, admin, query, lines: None, again: Backoff::new(AGAIN_BASE, AGAIN_MAX), lost: false }
    }

    /// Waits for the next line, and for the sidecar.
    async fn next(&mut self) -> String {
        loop {
            let why = match &mut self.lines {
                Some(lines) => match lines.next_line().await {
                    Ok(Some(line)) => {
                        self.again.reset();
                        return line;
                    }
                    _ => format!("the sidecar at {} broke off", self.admin.0),
                },
                None => match self.admin.get("/tap", &self.query).await {
                    Ok(answer) => {
                        eprintln!("seen from now on: {}", self.id);
                        self.lines = Some(answer.lines());
                        self.lost = false;
                        continue;
                    }
                    Err(why) => why.to_string(),
                },
            };
            self.lines = None;
            if !std::mem::replace(&mut self.lost, true) {
                eprintln!("not seen: {}: {why}; it is asked again", self.id);
            }
            sleep(self.again.next(fastrand::f64())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Result<Admin, String> {
        Ok(Admin(([127, 0, 0, 1], port).into()))
    }

    #[test]
    fn only_what_is_different_is_told() {
        let of = |all: &[(&str, Result<Admin, String>)]| -> Known {
            all.iter().map(|(id, sidecar)| ((*id).to_owned(), sidecar.clone())).collect()
        };
        let before = of(&[("gone", at(1)), ("moved", at(2)), ("same", at(3)), ("mute", Err("why".into()))]);
        let now = of(&[("moved", at(4)), ("same", at(3)), ("mute", Err("why".into())), ("new", at(5))]);
        let seen: Vec<_> = changes(&before, &now).map(|(id, to)| (id.as_str(), to.cloned())).collect();
        assert_eq!(seen, [("gone", None), ("moved", Some(at(4))), ("new", Some(at(5)))]);
        assert_eq!(changes(&now, &now).count(), 0);
    }

    #[test]
    fn of_two_records_of_an_instance_the_one_counts_that_can_be_asked() {
        let one = |sidecar| Instance { id: "a".into(), address: None, identity: None, sidecar };
        for all in [[one(at(1)), one(Err("no".into()))], [one(Err("no".into())), one(at(1))]] {
            assert_eq!(known(all.into_iter()).get("a"), Some(&at(1)));
        }
    }
}
