//! Times of requests to a cluster, where their route says none. Envoy has them on routes only, so they stand in the
//! cluster's metadata.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::google::protobuf::Struct;
use serde::Serialize;

use super::metadata::{self, Numbers};
use super::{InvalidResource, Validator};

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Timeouts {
    /// From a request to the end of its answer, all tries together; none: what the proxy does by itself.
    pub request: Option<Duration>,
    /// For each try; none: no limit of its own.
    pub one_try: Option<Duration>,
    /// Longest time in which nothing of an answer comes behind its head; none: no limit.
    pub stream_idle: Option<Duration>,
    /// Longest time in which nothing moves in a tunnel or a connection of bytes; none: what the proxy does by itself.
    pub tunnel_idle: Option<Duration>,
}

const NAME: &str = "weft.timeouts";
const REQUEST: &str = "request_millis";
const TRY: &str = "try_millis";
const STREAM_IDLE: &str = "stream_idle_millis";
const TUNNEL_IDLE: &str = "tunnel_idle_millis";
/// An hour. 0 is none.
const MILLIS: (u32, u32) = (0, 3_600_000);

pub(super) fn decode(v: &Validator<'_>, metadata: Option<&Metadata>) -> Result<Timeouts, InvalidResource> {
    let Some(rule) = Numbers::of(v, NAME, metadata) else { return Ok(Timeouts::default()) };
    let time = |field| {
        let millis = rule.get_or(field, 0, MILLIS)?;
        Ok((millis > 0).then(|| Duration::from_millis(millis.into())))
    };
    Ok(Timeouts {
        request: time(REQUEST)?,
        one_try: time(TRY)?,
        stream_idle: time(STREAM_IDLE)?,
        tunnel_idle: time(TUNNEL_IDLE)?,
    })
}

pub(super) fn encode(timeouts: Timeouts) -> Option<(String, Struct)> {
    let millis = |t: Option<Duration>| t.map_or(0, |t| u32::try_from(t.as_millis()).unwrap_or(u32::MAX));
    let rule = || {
        let all = [
            (REQUEST, timeouts.request),
            (TRY, timeouts.one_try),
            (STREAM_IDLE, timeouts.stream_idle),
            (TUNNEL_IDLE, timeouts.tunnel_idle),
        ];
        metadata::encode(NAME, &all.map(|(name, time)| (name, millis(time))))
    };
    (timeouts != Timeouts::default()).then(rule)
}
