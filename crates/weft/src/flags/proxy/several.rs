//! What several flags say together.

use std::path::PathBuf;
use std::time::Duration;

use weft_proxy::policy::overload::Limits;
use weft_proxy::telemetry::access_log::{AccessLogConfig, Format, Target};
use weft_proxy::telemetry::trace::TraceConfig;
use weft_proxy::tls::mesh::{MeshFiles, MeshMode};

use crate::failure::Failure;

/// Enough to see what is usual, and little work for the collector.
pub(super) const TRACE_SAMPLE_PERCENT: f64 = 1.0;

/// Files of the identity among sidecars.
pub(super) fn mesh(
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    ca: Option<PathBuf>,
    crl: Option<PathBuf>,
    mode: Option<&str>,
) -> Result<Option<MeshFiles>, Failure> {
    let given = crl.is_some() || mode.is_some();
    let mode = mode.map(str::parse::<MeshMode>).transpose();
    let mode = mode.map_err(|why| Failure::new(format!("mesh-mode: {why}")))?.unwrap_or_default();
    match (cert, key, ca) {
        (Some(cert), Some(key), Some(ca)) => Ok(Some(MeshFiles { cert, key, ca, crl, mode })),
        (None, None, None) if !given => Ok(None),
        _ => Err(Failure::new(
            "mesh-cert, mesh-key and mesh-ca: all three are needed, or none of the mesh-… flags",
        )),
    }
}

/// Where requests are logged and how.
pub(super) fn access_log(
    target: Option<PathBuf>,
    format: Option<&str>,
) -> Result<Option<AccessLogConfig>, Failure> {
    if format.is_some() && target.is_none() {
        return Err(Failure::new("access-log-format needs access-log, which says where lines go"));
    }
    let format = format.unwrap_or("json").parse::<Format>();
    let format = format.map_err(|error| Failure::new(format!("access-log-format: {error}")))?;
    let target = target.map(|path| match path.to_str() {
        Some("stdout") => Target::Stdout,
        _ => Target::File(path),
    });
    Ok(target.map(|target| AccessLogConfig { target, format }))
}

/// Beyond which this proxy refuses.
pub(super) fn overload(memory_mib: Option<u64>, queue: Option<Duration>) -> Result<Limits, Failure> {
    if let Some(mib) = memory_mib.filter(|mib| !(16..=1 << 20).contains(mib)) {
        return Err(Failure::new(format!("max-memory-mib: {mib} is not between 16 and 1048576")));
    }
    let range = Duration::from_millis(1)..=Duration::from_secs(10);
    if let Some(time) = queue.filter(|time| !range.contains(time)) {
        return Err(Failure::new(format!("max-queue-time: {time:?} is not between 1ms and 10s")));
    }
    Ok(Limits { memory: memory_mib.map(|mib| mib << 20), queue })
}

/// Where traces go, and how many.
pub(super) fn trace(endpoint: Option<String>, percent: Option<f64>) -> Result<Option<TraceConfig>, Failure> {
    let Some(text) = endpoint else {
        return match percent {
            None => Ok(None),
            Some(_) => {
                Err(Failure::new("trace-sample-percent needs trace-endpoint, which says where traces go"))
            }
        };
    };
    let endpoint = text.parse::<http::Uri>().ok().filter(|uri| {
        uri.scheme_str() == Some("http")
            && uri.authority().is_some()
            && uri.path_and_query().is_none_or(|p| p == "/")
    });
    let endpoint = endpoint.ok_or_else(|| {
        Failure::new(format!(
            "trace-endpoint: {text:?} is not http://HOST:PORT, such as http://127.0.0.1:4317"
        ))
    })?;
    let sample_percent = percent.unwrap_or(TRACE_SAMPLE_PERCENT);
    if !(0.0..=100.0).contains(&sample_percent) {
        return Err(Failure::new(format!("trace-sample-percent: {sample_percent} is not between 0 and 100")));
    }
    Ok(Some(TraceConfig { endpoint, sample_percent }))
}
