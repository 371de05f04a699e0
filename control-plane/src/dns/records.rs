//! The pure half of DNS: one request and what the catalogue knows in, one answer out.
//!
//! The zone is `weft.`. In it:
//!
//! | name | types | meaning |
//! |---|---|---|
//! | `NAME.service.weft`, `NAME.weft` | A, AAAA, SRV | the healthy instances of a service, rotated |
//! | `_NAME._tcp.service.weft`, `_http._tcp.NAME.weft`, `_http._tcp.NAME.service.weft` | SRV | the same with ports (RFC 2782) |
//! | `HEXIP.addr.weft` | A, AAAA | the address that the label spells: target of our SRV records |
//! | `weft` | SOA | ourselves |
//!
//! A name that does not exist is NXDOMAIN, one without records of the asked type an empty answer; both
//! carry the SOA. Everything outside the zone is REFUSED: this is no resolver.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

/// The zone, without its final dot.
pub const ZONE: &str = "weft";

/// Seconds that an answer may be cached: not at all, because the next one may have fewer instances.
pub const RECORD_TTL_SECS: u32 = 0;

/// Seconds that a "no" may be cached: not at all, because the service may register the next moment.
pub const NEGATIVE_TTL_SECS: u32 = 0;

/// Most instances in one answer. A client needs a few; the rotation lets every instance have its turn.
pub const ANSWER_INSTANCES_MAX: usize = 512;

/// Largest datagram we send, whatever the client offers: it fits one Ethernet frame over IPv6
/// (the value of DNS flag day 2020).
pub const UDP_BYTES_MAX: u16 = 1_232;

/// Largest datagram without EDNS (RFC 1035 §4.2.1).
pub const UDP_BYTES_PLAIN: u16 = 512;

/// One healthy instance, as DNS can tell of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// IP literal or host name.
    pub host: String,
    /// Port, for SRV.
    pub port: u16,
}

/// What there is to know about a service: none if it does not exist, else its healthy instances.
pub type Lookup<'a> = dyn Fn(&str) -> Found + 'a;

/// What is known of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Its healthy instances.
    Instances(Vec<Target>),
    /// There is none of this name.
    Nothing,
    /// This server has not got the group's state yet: there may be one.
    NotYet,
}

impl From<Option<Vec<Target>>> for Found {
    fn from(instances: Option<Vec<Target>>) -> Self {
        instances.map_or(Self::Nothing, Self::Instances)
    }
}

/// Answers one well-formed message. `turn` moves the first instance of the answer, so that consecutive
/// answers start with different ones.
pub fn answer(request: &Message, lookup: &Lookup<'_>, turn: usize) -> Message {
    let mut response = Message::new(request.metadata.id, MessageType::Response, request.metadata.op_code);
    response.metadata = Metadata::response_from_request(&request.metadata);
    response.add_queries(request.queries.iter().cloned());
    if let Some(asked) = &request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX).set_version(0);
        response.set_edns(edns);
        if asked.version() != 0 {
            response.metadata.response_code = ResponseCode::BADVERS;
            return response;
        }
    }
    if request.metadata.op_code != OpCode::Query {
        response.metadata.response_code = ResponseCode::NotImp;
        return response;
    }
    let [query] = request.queries.as_slice() else {
        response.metadata.response_code = ResponseCode::FormErr;
        return response;
    };
    let foreign_class = !matches!(query.query_class(), DNSClass::IN | DNSClass::ANY);
    let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    let subject = Subject::parse(query.name());
    if foreign_class || transfer || subject == Subject::Foreign {
        response.metadata.response_code = ResponseCode::Refused;
        return response;
    }
    response.metadata.authoritative = true;
    fill(&mut response, query, &subject, lookup, turn);
    if response.answers.is_empty() && response.metadata.response_code != ResponseCode::ServFail {
        response.add_authority(soa());
    }
    response
}

/// What a name in a question is about.
#[derive(Debug, PartialEq, Eq)]
enum Subject {
    /// Outside our zone.
    Foreign,
    /// The zone itself.
    Apex,
    /// A name that exists only because longer ones do: `service.weft`, `addr.weft`.
    Empty,
    /// A service; `srv_only` for names that start with underscores.
    Service { name: String, srv_only: bool },
    /// An address spelt in hex.
    Address(IpAddr),
    /// In our zone, and nothing.
    Unknown,
}

impl Subject {
    fn parse(name: &Name) -> Self {
        let labels: Vec<String> =
            name.iter().map(|l| String::from_utf8_lossy(l).to_ascii_lowercase()).collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let service = |name: &str, srv_only| Self::Service { name: name.to_owned(), srv_only };
        match labels.as_slice() {
            [ZONE] => Self::Apex,
            ["service" | "addr", ZONE] => Self::Empty,
            [hex, "addr", ZONE] => parse_hex(hex).map_or(Self::Unknown, Self::Address),
            [name, "_tcp", "service", ZONE] => {
                name.strip_prefix('_').map_or(Self::Unknown, |name| service(name, true))
            }
            [proto, "_tcp", name, "service", ZONE] | [proto, "_tcp", name, ZONE]
                if proto.starts_with('_') =>
            {
                service(name, true)
            }
            [name, "service", ZONE] | [name, ZONE] if !name.starts_with('_') => service(name, false),
            [.., ZONE] => Self::Unknown,
            _ => Self::Foreign,
        }
    }
}

fn fill(response: &mut Message, query: &Query, subject: &Subject, lookup: &Lookup<'_>, turn: usize) {
    let asked = query.query_type();
    match subject {
        Subject::Foreign | Subject::Unknown => response.metadata.response_code = ResponseCode::NXDomain,
        Subject::Empty => {}
        Subject::Apex => {
            if matches!(asked, RecordType::SOA | RecordType::ANY) {
                response.add_answer(soa());
            }
        }
        Subject::Address(ip) => {
            response.add_answers(address_record(query.name(), *ip, asked));
        }
        Subject::Service { name, srv_only } => match lookup(name) {
            Found::Nothing => response.metadata.response_code = ResponseCode::NXDomain,
            // Resolvers ask another server then, and remember nothing.
            Found::NotYet => response.metadata.response_code = ResponseCode::ServFail,
            Found::Instances(mut targets) => {
                if !targets.is_empty() {
                    let first = turn % targets.len();
                    targets.rotate_left(first);
                }
                targets.truncate(ANSWER_INSTANCES_MAX);
                // ANY answers what a caller most likely wants, not everything (RFC 8482 §4.1).
                if asked == RecordType::SRV || (*srv_only && asked == RecordType::ANY) {
                    add_srv(response, query.name(), &targets);
                } else if !srv_only {
                    add_addresses(response, query.name(), &targets, asked);
                }
            }
        },
    }
}

fn add_addresses(response: &mut Message, name: &Name, targets: &[Target], asked: RecordType) {
    let mut seen = Vec::with_capacity(targets.len());
    // Instances that share an address are one A record; a host name has no address we could vouch for.
    for ip in targets.iter().filter_map(|t| t.host.parse::<IpAddr>().ok()) {
        if !seen.contains(&ip) {
            seen.push(ip);
            response.add_answers(address_record(name, ip, asked));
        }
    }
}

fn add_srv(response: &mut Message, name: &Name, targets: &[Target]) {
    let mut seen = Vec::with_capacity(targets.len());
    for target in targets {
        let ip = target.host.parse::<IpAddr>().ok();
        let Some(host) = ip.map_or_else(|| host_name(&target.host), hex_name) else {
            continue;
        };
        let srv = SRV::new(SRV_PRIORITY, SRV_WEIGHT, target.port, host.clone());
        response.add_answer(Record::from_rdata(name.clone(), RECORD_TTL_SECS, RData::SRV(srv)));
        if let Some(ip) = ip.filter(|ip| !seen.contains(ip)) {
            seen.push(ip);
            response.add_additionals(address_record(&host, ip, RecordType::ANY));
        }
    }
}

/// All instances are equal: clients spread over them by chance (RFC 2782).
const SRV_PRIORITY: u16 = 1;
const SRV_WEIGHT: u16 = 1;

fn address_record(name: &Name, ip: IpAddr, asked: RecordType) -> Option<Record> {
    let data = match (ip, asked) {
        (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => RData::A(A(ip)),
        (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => RData::AAAA(AAAA(ip)),
        _ => return None,
    };
    Some(Record::from_rdata(name.clone(), RECORD_TTL_SECS, data))
}

fn host_name(host: &str) -> Option<Name> {
    let mut name = Name::from_ascii(host).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn hex_name(ip: IpAddr) -> Option<Name> {
    let hex = match ip {
        IpAddr::V4(ip) => format!("{:08x}", u32::from(ip)),
        IpAddr::V6(ip) => format!("{:032x}", u128::from(ip)),
    };
    Name::from_ascii(format!("{hex}.addr.{ZONE}.")).ok()
}

fn parse_hex(label: &str) -> Option<IpAddr> {
    if !label.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    match label.len() {
        8 => u32::from_str_radix(label, 16).ok().map(|n| IpAddr::V4(Ipv4Addr::from(n))),
        32 => u128::from_str_radix(label, 16).ok().map(|n| IpAddr::V6(Ipv6Addr::from(n))),
        _ => None,
    }
}

fn soa() -> Record {
    // The serial does not move: there is no secondary that could transfer the zone.
    const SERIAL: u32 = 1;
    const HOUR: i32 = 3_600;
    let name = |text: String| Name::from_ascii(text).expect("a constant name is valid");
    let soa = SOA::new(
        name(format!("ns.{ZONE}.")),
        name(format!("hostmaster.{ZONE}.")),
        SERIAL,
        HOUR,
        HOUR,
        HOUR,
        NEGATIVE_TTL_SECS,
    );
    Record::from_rdata(name(format!("{ZONE}.")), NEGATIVE_TTL_SECS, RData::SOA(soa))
}

#[cfg(test)]
mod tests;
