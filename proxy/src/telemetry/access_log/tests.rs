use std::io::Read;

use weft_core::metrics::Counter;

use super::*;
use crate::telemetry::flag::Flag;

fn entry() -> Entry {
    Entry {
        direction: Direction::Outbound,
        client: "127.0.0.1:4000".parse().unwrap(),
        method: Method::GET,
        host: "orders".to_owned(),
        path: "/a?b=c".to_owned(),
        protocol: Some(Version::HTTP_11),
        status: Some(StatusCode::SERVICE_UNAVAILABLE),
        flags: Flags::default().with(Flag::Overflow),
        bytes: 17,
        took: Duration::from_micros(12_345),
        head: Some(Duration::from_millis(12)),
        service: "orders".to_owned(),
        route: String::new(),
        endpoint: "10.0.0.1:80".parse().ok(),
        tries: 2,
        trace_id: "0af7".to_owned(),
    }
}

/// 2024-02-29T23:59:59.999Z
const LEAP: Duration = Duration::from_millis(1_709_251_199_999);

#[test]
fn a_json_line_has_every_field() {
    let line = Format::Json.line(&Entry { took: Duration::ZERO, ..entry() }, LEAP);
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    let expected = serde_json::json!({
        "time": "2024-02-29T23:59:59.999Z", "direction": "outbound", "client": "127.0.0.1:4000", "method": "GET",
        "host": "orders", "path": "/a?b=c", "protocol": "HTTP/1.1", "status": 503, "flags": ["overflow"],
        "bytes": 17, "duration_ms": 0.0, "head_ms": 12.0, "service": "orders", "route": "",
        "endpoint": "10.0.0.1:80", "tries": 2, "trace_id": "0af7",
    });
    assert_eq!(json, expected);
    let gone = Format::Json.line(&Entry { status: None, head: None, endpoint: None, ..entry() }, LEAP);
    let json: serde_json::Value = serde_json::from_str(&gone).unwrap();
    assert!(json["status"].is_null() && json["head_ms"].is_null() && json["endpoint"] == "");
}

#[test]
fn a_text_line_is_as_its_format_says_with_the_time_of_the_requests_start() {
    let format: Format = "text".parse().unwrap();
    assert_eq!(
        format.line(&entry(), LEAP + Duration::from_millis(14)),
        "2024-03-01T00:00:00.000Z outbound 127.0.0.1:4000 \"GET /a?b=c HTTP/1.1\" 503 overflow 17 12.345ms orders \
         orders 10.0.0.1:80 2\n"
    );
    let format: Format = "<{status}> {route}".parse().unwrap();
    assert_eq!(format.line(&entry(), LEAP), "<503> -\n");
}

#[test]
fn a_client_cannot_write_lines_of_its_own() {
    let sly = Entry { path: "/a\n\"b\u{7f}\\".to_owned(), ..entry() };
    let text: Format = "\"{path}\"".parse().unwrap();
    assert_eq!(text.line(&sly, LEAP), "\"/a\\x0a\\\"b\\x7f\\\\\"\n");
    let json: serde_json::Value = serde_json::from_str(&Format::Json.line(&sly, LEAP)).unwrap();
    assert_eq!(json["path"], sly.path);
    let long = Entry { path: "ä".repeat(5000), ..entry() };
    assert!(Format::Json.line(&long, LEAP).len() < 2 * format::TEXT_BYTES_MAX);
}

#[test]
fn formats_with_unknown_fields_or_none_are_refused_with_what_is_allowed() {
    for (bad, why) in
        [("", "has no field"), ("plain", "has no field"), ("{statu}", "\"statu\""), ("{status", "no }")]
    {
        let error = bad.parse::<Format>().unwrap_err().to_string();
        assert!(
            error.contains(why) && error.contains("json, text") && error.contains("duration_ms"),
            "{error}"
        );
    }
}

#[test]
fn lines_are_written_before_the_writer_ends_and_a_file_that_was_moved_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let config = AccessLogConfig { target: Target::File(path.clone()), format: "{path}".parse().unwrap() };
    let (log, writer) = AccessLog::start(&config, Counter::default()).unwrap();
    log.log(&Entry { path: "/one".to_owned(), ..entry() }, LEAP);
    let moved = dir.path().join("access.log.1");
    while std::fs::read_to_string(&path).unwrap() != "/one\n" {
        std::thread::yield_now();
    }
    std::fs::rename(&path, &moved).unwrap();
    while !path.exists() {
        std::thread::yield_now();
    }
    log.log(&Entry { path: "/two".to_owned(), ..entry() }, LEAP);
    drop(log);
    writer.join();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "/two\n");
    assert_eq!(std::fs::read_to_string(&moved).unwrap(), "/one\n");
}

#[test]
fn a_reader_that_hangs_stops_nobody_and_what_is_lost_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    // Opened for both, as nobody may open a pipe for writing that nobody reads.
    let mut reader = File::options().read(true).write(true).open(&path).unwrap();
    let dropped = Counter::default();
    let config = AccessLogConfig { target: Target::File(path), format: "{path}".parse().unwrap() };
    let (log, writer) = AccessLog::start(&config, dropped.clone()).unwrap();
    let long = Entry { path: "x".repeat(format::TEXT_BYTES_MAX), ..entry() };
    let lines = 2 * LINES_WAITING_MAX as u64;
    for _ in 0..lines {
        log.log(&long, LEAP);
    }
    assert!(dropped.get() > 0, "a pipe holds 64 KiB");
    drop(log);
    let mut read = vec![0; (lines - dropped.get()) as usize * (format::TEXT_BYTES_MAX + 1)];
    reader.read_exact(&mut read).unwrap();
    writer.join();
}
