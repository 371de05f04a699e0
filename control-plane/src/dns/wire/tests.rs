use hickory_proto::op::{Edns, Query};
use hickory_proto::rr::{Name, RecordType};

use super::super::records::{Found, Target};
use super::*;

fn query(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut m = Message::new(0xBEEF, MessageType::Query, OpCode::Query);
    m.metadata.recursion_desired = true;
    m.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        m.set_edns(edns);
    }
    m.to_vec().unwrap()
}

/// Any service has 100 instances.
fn hundred(_: &str) -> Found {
    Found::Instances((1..=100).map(|n| Target { host: format!("10.0.0.{n}"), port: 80 }).collect())
}

fn ask(packet: &[u8], transport: Transport) -> (usize, Message) {
    let bytes = respond(packet, transport, &hundred, 0).expect("an answer");
    (bytes.len(), Message::from_vec(&bytes).expect("we write what can be read"))
}

#[test]
fn datagrams_are_cut_to_what_the_client_takes_and_say_so() {
    for (payload, limit) in
        [(None, 512), (Some(100), 512), (Some(900), 900), (Some(1_232), 1_232), (Some(65_535), 1_232)]
    {
        let (len, m) = ask(&query("web.weft.", RecordType::A, payload), Transport::Udp);
        assert!(len <= limit, "{len} > {limit}");
        assert!(len + 16 > limit, "as much as fits: {len} of {limit}");
        assert!(m.metadata.truncation);
        assert_eq!(m.edns.is_some(), payload.is_some());
        assert_eq!(m.metadata.id, 0xBEEF);
    }
}

#[test]
fn tcp_answers_are_complete() {
    let (_, m) = ask(&query("web.weft.", RecordType::A, None), Transport::Tcp);
    assert!(!m.metadata.truncation);
    assert_eq!(m.answers.len(), 100);
    let (_, srv) = ask(&query("web.weft.", RecordType::SRV, None), Transport::Tcp);
    assert_eq!((srv.answers.len(), srv.additionals.len()), (100, 100));
}

#[test]
fn additional_records_are_left_out_before_answers_are() {
    let ten = |_: &str| {
        Found::Instances((1..=10).map(|n| Target { host: format!("10.0.0.{n}"), port: 80 }).collect())
    };
    let packet = query("web.weft.", RecordType::SRV, None);
    let m = Message::from_vec(&respond(&packet, Transport::Udp, &ten, 0).unwrap()).unwrap();
    assert_eq!((m.answers.len(), m.additionals.len()), (10, 0));
    assert!(!m.metadata.truncation);
}

#[test]
fn what_cannot_be_read_is_dropped_or_answered_with_formerr() {
    for short in [&b""[..], b"\x00", &[0; 11]] {
        assert_eq!(respond(short, Transport::Udp, &hundred, 0), None);
    }
    let mut cut = query("web.weft.", RecordType::A, None);
    cut.truncate(20);
    assert_eq!(ask(&cut, Transport::Udp).1.metadata.response_code, ResponseCode::FormErr);
    // A name that points at itself.
    let mut loops = query("web.weft.", RecordType::A, None);
    loops[12..14].copy_from_slice(&[0xC0, 0x0C]);
    assert_eq!(ask(&loops, Transport::Udp).1.metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn responses_are_never_answered() {
    let mut packet = query("web.weft.", RecordType::A, None);
    packet[2] |= 0x80;
    assert_eq!(respond(&packet, Transport::Udp, &hundred, 0), None);
}

#[test]
fn other_operations_are_not_implemented() {
    for op_code in 1..16u8 {
        let mut packet = query("web.weft.", RecordType::A, None);
        packet[2] = (packet[2] & 0x87) | (op_code << 3);
        let m = ask(&packet, Transport::Udp).1;
        assert_eq!(m.metadata.response_code, ResponseCode::NotImp, "{op_code}");
        assert_eq!(u8::from(m.metadata.op_code), op_code);
    }
}

proptest::proptest! {
    #[test]
    fn no_packet_makes_it_panic(packet in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = respond(&packet, Transport::Udp, &hundred, 3);
    }

    #[test]
    fn no_damage_to_a_query_makes_it_panic(at in 0usize..40, value in proptest::prelude::any::<u8>()) {
        let mut packet = query("web.service.weft.", RecordType::SRV, Some(4_096));
        let at = at % packet.len();
        packet[at] = value;
        if let Some(answer) = respond(&packet, Transport::Udp, &hundred, 3) {
            proptest::prop_assert!(answer.len() <= usize::from(UDP_BYTES_MAX));
        }
    }
}
