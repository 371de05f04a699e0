//! Each parser of ours takes an input or refuses it, whatever it is, and what it takes means one thing. Known inputs are in
//! `tests/corpus`.

use bytes::Bytes;
use weft_client::kv::TxnOp;
use weft_core::config::format_duration;
use weft_corpus::feed_text;
use weft_proxy::proxy_protocol::Network;

use crate::cli::{redirect::InboundPort, txn_format};
use crate::flags::{Listen, ServiceSpec};

macro_rules! corpus {
    ($parser:literal) => {
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/", $parser)
    };
}

/// What was taken, or nothing; a refusal is one line, whatever was in the input.
fn taken<T, E: ToString>(parsed: Result<T, E>) -> Option<T> {
    parsed
        .map_err(|why| {
            let said = why.to_string();
            assert!(!said.is_empty() && !said.contains(char::is_control), "{said:?}");
        })
        .ok()
}

#[test]
fn a_service_is_the_same_when_it_is_written_and_read_again() {
    let near = "[a-z]{1,4}=(127\\.0\\.0\\.1|\\[::1\\]):[0-9]{1,5}\
                (,(check=/[a-z?=]{0,4}|rate-limit=[0-9]{1,3}/[0-9]{1,2}(s|m|h)|[a-z]{1,3}=[a-z0-9.=]{0,4})){0,3}";
    feed_text(corpus!("service"), near, |text| {
        let Some(service) = taken(text.parse::<ServiceSpec>()) else { return false };
        let mut again = format!("{}={}", service.name, service.address);
        if let Some(check) = &service.check {
            again += &format!(",check={check}");
        }
        if let Some(limit) = &service.rate_limit {
            again += &format!(",rate-limit={}/{}", limit.requests, format_duration(limit.per));
        }
        for (key, value) in &service.labels {
            again += &format!(",{key}={value}");
        }
        assert_eq!(again.parse(), Ok(service));
        true
    });
}

#[test]
fn a_listener_is_the_same_when_it_is_written_and_read_again() {
    feed_text(corpus!("listen"), "(off|[0-9.]{0,12}|\\[[0-9a-f:]{0,8}\\]):?[0-9]{0,6}", |text| {
        let Some(listen) = taken(text.parse::<Listen>()) else { return false };
        let again = listen.address().map_or("off".to_owned(), |address| address.to_string());
        assert_eq!(again.parse(), Ok(listen));
        true
    });
}

#[test]
fn a_port_to_be_redirected_is_written_as_a_number_or_a_star() {
    feed_text(corpus!("inbound_port"), "[*+-]?[0-9]{0,6}", |text| {
        let Some(port) = taken(text.parse::<InboundPort>()) else { return false };
        match port {
            InboundPort::All => assert_eq!(text, "*"),
            InboundPort::One(port) => {
                assert_eq!(text.trim_start_matches('0'), port.to_string());
                assert_ne!(port, 0);
            }
        }
        true
    });
}

/// Rules of the kernel are made of them.
#[test]
fn a_network_is_the_same_when_it_is_written_and_read_again() {
    feed_text(
        corpus!("network"),
        "([0-9]{1,3}\\.){3}[0-9]{1,3}(/[+0-9]{0,3})?|[0-9a-f:]{2,12}/[0-9]{0,3}",
        |text| {
            let Some(network) = taken(text.parse::<Network>()) else { return false };
            let again = network.to_string();
            assert!(again.bytes().all(|b| b.is_ascii_hexdigit() || b".:/".contains(&b)), "{again:?}");
            assert_eq!(again.parse(), Ok(network));
            let address = text.split('/').next().and_then(|ip| ip.parse().ok()).expect("it was one");
            assert!(network.contains(address));
            true
        },
    );
}

#[test]
fn a_transaction_is_the_same_with_comments_spaces_and_other_line_ends() {
    let near = "(#[a-z]{0,4}\n)?((value|mod|lease|c)\\([\"a-z)]{0,5}\\) ?(=|!=|<|>) ?[\"a-z0-9]{0,4}\n){0,2}\n\
                ((put|get|del) [\"a-z\\\\x0-9]{0,6}( [a-z\"]{0,4})?( --(prefix|prev-kv|limit=[0-9-]{0,3}|lease=[0-9a-f]{0,3}))?\n){0,3}";
    feed_text(corpus!("txn"), near, |text| {
        // Whatever it is, it is a word between quotes.
        let quoted: String = text.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
        let put = txn_format::parse(&format!("\nput \"{quoted}\" \"{quoted}\""));
        let word = || Bytes::copy_from_slice(text.as_bytes());
        assert_eq!(put.map(|txn| txn.success), Ok(vec![TxnOp::Put(word(), word(), Default::default())]));

        let parsed = txn_format::parse(text);
        if let Err(error) = &parsed {
            assert!((1..=text.lines().count()).contains(&error.line), "{error}");
        }
        let Some(txn) = taken(parsed) else { return false };
        let said = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with('#');
        let all = txn.compares.len() + txn.success.len() + txn.failure.len();
        assert_eq!(text.lines().filter(said).count(), all);
        for end in ["  \n", "\n# and\n", "\r\n"] {
            let other: String = text.lines().map(|line| format!("{line}{end}")).collect();
            assert_eq!(txn_format::parse(&other), Ok(txn.clone()), "{other:?}");
        }
        true
    });
}
