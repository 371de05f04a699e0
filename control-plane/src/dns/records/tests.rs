use super::*;

fn ask(name: &str, kind: RecordType) -> Message {
    let mut m = Message::new(7, MessageType::Query, OpCode::Query);
    m.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    m
}

fn target(host: &str, port: u16) -> Target {
    Target { host: host.into(), port }
}

/// `web` has three instances, `six` one by IPv6, `named` one by host name, `sick` none that is healthy.
fn known(name: &str) -> Found {
    let known = match name {
        "web" => Some(vec![target("10.0.0.1", 80), target("10.0.0.2", 81), target("10.0.0.3", 82)]),
        "six" => Some(vec![target("fd00::1", 80)]),
        "named" => Some(vec![target("db.example.com", 5432)]),
        "sick" => Some(vec![]),
        _ => None,
    };
    known.into()
}

fn answer_to(name: &str, kind: RecordType) -> Message {
    answer(&ask(name, kind), &known, 0)
}

fn data(m: &Message) -> Vec<String> {
    m.answers.iter().map(|r| r.data.to_string()).collect()
}

fn code(m: &Message) -> ResponseCode {
    m.metadata.response_code
}

#[test]
fn both_names_of_a_service_answer_its_addresses() {
    for name in ["web.weft.", "web.service.weft.", "WEB.Service.WEFT."] {
        let m = answer_to(name, RecordType::A);
        assert_eq!(code(&m), ResponseCode::NoError);
        assert_eq!(data(&m), ["10.0.0.1", "10.0.0.2", "10.0.0.3"], "{name}");
        assert!(m.metadata.authoritative && !m.metadata.recursion_available);
        // Resolvers that randomise case compare what comes back (0x20).
        assert!(m.answers[0].name.eq_case(m.queries[0].name()));
        assert_eq!(m.answers[0].ttl, RECORD_TTL_SECS);
    }
}

#[test]
fn consecutive_answers_start_with_different_instances() {
    let first = |turn| data(&answer(&ask("web.weft.", RecordType::A), &known, turn))[0].clone();
    let firsts: Vec<String> = (0..6).map(first).collect();
    assert_eq!(firsts, ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.1", "10.0.0.2", "10.0.0.3"]);
}

#[test]
fn srv_names_answer_ports_and_carry_the_addresses() {
    for name in [
        "_web._tcp.service.weft.",
        "_http._tcp.web.weft.",
        "_grpc._tcp.web.service.weft.",
        "web.service.weft.",
    ] {
        let m = answer_to(name, RecordType::SRV);
        assert_eq!(data(&m)[1], "1 1 81 0a000002.addr.weft.", "{name}");
        assert_eq!(m.answers.len(), 3);
        assert_eq!(m.additionals.len(), 3);
        assert_eq!(m.additionals[1].name.to_string(), "0a000002.addr.weft.");
        assert_eq!(m.additionals[1].data.to_string(), "10.0.0.2");
    }
}

#[test]
fn srv_targets_resolve() {
    assert_eq!(data(&answer_to("0a000002.addr.weft.", RecordType::A)), ["10.0.0.2"]);
    let six = data(&answer_to("six.weft.", RecordType::SRV))[0].split(' ').next_back().unwrap().to_owned();
    assert_eq!(data(&answer_to(&six, RecordType::AAAA)), ["fd00::1"]);
}

#[test]
fn instances_with_host_names_are_srv_targets_only() {
    assert_eq!(data(&answer_to("named.weft.", RecordType::SRV)), ["1 1 5432 db.example.com."]);
    let m = answer_to("named.weft.", RecordType::A);
    assert_eq!((code(&m), m.answers.len()), (ResponseCode::NoError, 0));
}

#[test]
fn a_wrong_type_is_an_empty_answer_with_the_soa() {
    for (name, kind) in [
        ("web.weft.", RecordType::AAAA),
        ("six.weft.", RecordType::A),
        ("web.weft.", RecordType::TXT),
        ("sick.weft.", RecordType::A),
        ("_web._tcp.service.weft.", RecordType::A),
        ("service.weft.", RecordType::A),
        ("weft.", RecordType::A),
        ("0a000002.addr.weft.", RecordType::AAAA),
    ] {
        let m = answer_to(name, kind);
        assert_eq!((code(&m), m.answers.len()), (ResponseCode::NoError, 0), "{name}");
        assert_eq!(m.authorities[0].record_type(), RecordType::SOA, "{name}");
    }
}

#[test]
fn unknown_names_do_not_exist_and_say_so_with_the_soa() {
    for name in [
        "nobody.weft.",
        "nobody.service.weft.",
        "_nobody._tcp.service.weft.",
        "_web._udp.service.weft.",
        "web._tcp.service.weft.",
        "a.b.c.weft.",
        "_web.weft.",
        "zz.addr.weft.",
        "0a00.addr.weft.",
    ] {
        let m = answer_to(name, RecordType::SRV);
        assert_eq!(code(&m), ResponseCode::NXDomain, "{name}");
        assert_eq!(m.authorities.len(), 1, "{name}");
        assert!(m.metadata.authoritative);
    }
}

#[test]
fn what_is_not_ours_is_refused() {
    for name in ["example.com.", "web.local.", ".", "weft.example.com.", "notweft."] {
        let m = answer_to(name, RecordType::A);
        assert_eq!(code(&m), ResponseCode::Refused, "{name}");
        assert!(!m.metadata.authoritative && m.authorities.is_empty());
    }
    assert_eq!(code(&answer_to("weft.", RecordType::AXFR)), ResponseCode::Refused);
    let mut chaos = ask("web.weft.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&answer(&chaos, &known, 0)), ResponseCode::Refused);
}

#[test]
fn edns_is_answered_only_to_those_who_asked() {
    assert!(answer_to("web.weft.", RecordType::A).edns.is_none());
    let mut m = ask("web.weft.", RecordType::A);
    m.set_edns(Edns::new());
    assert!(answer(&m, &known, 0).edns.is_some());
    m.edns.as_mut().unwrap().set_version(1);
    let refused = answer(&m, &known, 0);
    assert_eq!(code(&refused), ResponseCode::BADVERS);
    assert_eq!(refused.edns.unwrap().version(), 0);
}

#[test]
fn there_is_exactly_one_question() {
    let mut none = ask("web.weft.", RecordType::A);
    none.queries.clear();
    assert_eq!(code(&answer(&none, &known, 0)), ResponseCode::FormErr);
    let mut two = ask("web.weft.", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&answer(&two, &known, 0)), ResponseCode::FormErr);
}

/// A negative answer would be remembered, and is not known to be true (RFC 2308 §7.1).
#[test]
fn a_server_that_has_not_got_the_state_yet_fails_instead_of_denying() {
    let m = answer(&ask("web.weft.", RecordType::A), &|_: &str| Found::NotYet, 0);
    assert_eq!((code(&m), m.answers.len(), m.authorities.len()), (ResponseCode::ServFail, 0, 0));
}

#[test]
fn instances_that_share_an_address_are_one_record() {
    let same = |_: &str| Found::Instances(vec![target("10.0.0.1", 80), target("10.0.0.1", 81)]);
    assert_eq!(data(&answer(&ask("web.weft.", RecordType::A), &same, 0)), ["10.0.0.1"]);
    let srv = answer(&ask("web.weft.", RecordType::SRV), &same, 0);
    assert_eq!((srv.answers.len(), srv.additionals.len()), (2, 1));
}

#[test]
fn the_number_of_records_is_bounded() {
    let many = |_: &str| {
        Found::Instances((0..5_000u32).map(|n| target(&Ipv4Addr::from(n).to_string(), 1)).collect())
    };
    let m = answer(&ask("web.weft.", RecordType::A), &many, 17);
    assert_eq!(m.answers.len(), ANSWER_INSTANCES_MAX);
}

#[test]
fn the_zone_has_a_soa() {
    let m = answer_to("weft.", RecordType::SOA);
    assert_eq!(m.answers.len(), 1);
    assert!(m.authorities.is_empty());
}
