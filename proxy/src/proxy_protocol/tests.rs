use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

/// Reads a header from bytes that come in pieces. Answers it with what is left behind it.
fn parsed(bytes: &[u8], piece: usize) -> (Result<Header, ProxyHeaderError>, Vec<u8>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (mut near, mut far) = duplex(piece);
        let writer = async move { far.write_all(bytes).await.unwrap() };
        let reader = async {
            let header = read(&mut near).await;
            let mut rest = Vec::new();
            near.read_to_end(&mut rest).await.unwrap();
            (header, rest)
        };
        tokio::join!(writer, reader).1
    })
}

fn client(source: &str, destination: &str) -> Header {
    Header::Client { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [&SIGNATURE[..], &[command, family], &len, rest].concat()
}

const IPV4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 0x04, 0x01, 0xbb];

#[test]
fn both_versions_say_who_the_client_is_and_nothing_behind_them_is_read() {
    let expected = client("192.0.2.1:56324", "198.51.100.2:443");
    let mut v6 = [0; 36];
    v6[15] = 1;
    v6[31] = 2;
    v6[32..].copy_from_slice(&[0, 7, 0, 8]);
    let tlv = [&IPV4[..], &[0x04, 0, 3, 1, 2, 3], &[0x20, 0, 5, 1, 0, 0, 0, 0]].concat();
    for (header, expected) in [
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n".to_vec(), expected),
        (b"PROXY TCP6 2001:db8::1 ::2 1 0\r\n".to_vec(), client("[2001:db8::1]:1", "[::2]:0")),
        (b"PROXY UNKNOWN\r\n".to_vec(), Header::Local),
        (b"PROXY UNKNOWN ffff:f...f:ffff 65535 whatever\r\n".to_vec(), Header::Local),
        (v2(0x21, 0x11, &IPV4), expected),
        (v2(0x21, 0x11, &tlv), expected),
        (v2(0x21, 0x21, &v6), client("[::1]:7", "[::2]:8")),
        (v2(0x20, 0x00, &[]), Header::Local),
        (v2(0x20, 0x11, &IPV4), Header::Local),
        (v2(0x20, 0xff, &[9; 40]), Header::Local),
        (v2(0x21, 0x00, &[]), Header::Local),
        (v2(0x21, 0x31, &[0; 216]), Header::Local),
    ] {
        for piece in [1, 3, 1000] {
            let (seen, rest) = parsed(&[&header[..], b"GET / HTTP/1.1\r\n"].concat(), piece);
            assert_eq!(seen.unwrap(), expected, "{header:?}");
            assert_eq!(rest, b"GET / HTTP/1.1\r\n", "{header:?}");
        }
    }
}

#[test]
fn what_the_specification_does_not_allow_is_refused() {
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
    for (bytes, part) in [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), "does not begin"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00".to_vec(), "does not begin"),
        (b"PROXYTCP4 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), "does not begin"),
        (b"\r\n\r\n\0\r\nQUIX\n1234".to_vec(), "does not begin"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n".to_vec(), "fewer"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n".to_vec(), "more"),
        (b"PROXY TCP4  1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), "more"),
        (b"PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n".to_vec(), "IPv4"),
        (b"PROXY TCP4 ::1 2.2.2.2 1 2\r\n".to_vec(), "IPv4"),
        (b"PROXY TCP6 1.1.1.1 ::1 1 2\r\n".to_vec(), "IPv6"),
        (b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), "family"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n".to_vec(), "port"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n".to_vec(), "port"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n".to_vec(), "port"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2  2\r\n".to_vec(), "port"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n\r\n".to_vec(), "port"),
        (b"PROXY TCP4 \xff.1.1.1 2.2.2.2 1 2\r\n".to_vec(), "no text"),
        (long.into_bytes(), "107"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2".to_vec(), "ended"),
        (v2(0x31, 0x11, &IPV4), "version"),
        (v2(0x11, 0x11, &IPV4), "version"),
        (v2(0x22, 0x11, &IPV4), "command"),
        (v2(0x21, 0x12, &IPV4), "datagrams"),
        (v2(0x21, 0x41, &IPV4), "family"),
        (v2(0x21, 0x11, &IPV4[..11]), "too short"),
        (v2(0x21, 0x21, &IPV4), "too short"),
        (v2(0x21, 0x11, &IPV4)[..20].to_vec(), "ended"),
        (v2(0x21, 0x11, &IPV4)[..14].to_vec(), "ended"),
        (v2(0x21, 0x11, &[0; 60_000]), "at most"),
        (Vec::new(), "ended"),
    ] {
        let error = parsed(&bytes, 1000).0.expect_err(part).to_string();
        assert!(error.contains(part), "{bytes:?}: {error}");
    }
}

/// As Envoy and HAProxy write it for their own connections (`proxy-protocol.txt`, §2.1 and §2.2).
#[test]
fn a_connection_of_the_proxy_itself_is_unknown_or_local() {
    let own = |version| Announced { version, client: None }.header();
    assert_eq!(own(Version::V1), b"PROXY UNKNOWN\r\n");
    assert_eq!(own(Version::V2), v2(0x20, 0, &[]));
    for version in [Version::V1, Version::V2] {
        let (header, rest) = parsed(&[&own(version)[..], b"GET"].concat(), 1);
        assert_eq!((header.unwrap(), &rest[..]), (Header::Local, &b"GET"[..]));
    }
}

#[test]
fn addresses_of_two_families_are_written_as_one() {
    let header = write(Version::V1, "10.0.0.1:1".parse().unwrap(), "[2001:db8::2]:2".parse().unwrap());
    assert_eq!(header, b"PROXY TCP6 ::ffff:10.0.0.1 2001:db8::2 1 2\r\n");
    let mapped = write(Version::V1, "[::ffff:10.0.0.1]:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
    assert_eq!(mapped, b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n");
}

#[test]
fn networks_contain_their_addresses() {
    let within = |net: &str, ip: &str| net.parse::<Network>().unwrap().contains(ip.parse().unwrap());
    assert!(within("10.0.0.0/8", "10.9.9.9") && !within("10.0.0.0/8", "11.0.0.1"));
    assert!(within("10.0.0.1", "10.0.0.1") && !within("10.0.0.1", "10.0.0.2"));
    assert!(within("0.0.0.0/0", "1.2.3.4") && !within("0.0.0.0/0", "::1"));
    assert!(within("10.0.0.0/8", "::ffff:10.1.1.1"));
    assert!(within("fd00::/8", "fd12::1") && !within("fd00::/8", "fe80::1") && within("::/0", "::1"));
    assert!(within("::ffff:10.0.0.0/104", "10.9.9.9") && !within("::ffff:10.0.0.0/104", "11.0.0.1"));
    for bad in
        ["", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/", "10.0.0.0/+8", "a/8", "::ffff:10.0.0.0/95"]
    {
        assert!(bad.parse::<Network>().unwrap_err().contains("IP/BITS"), "{bad}");
    }
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        from in any_ip(), to in any_ip(), ports in any::<(u16, u16)>(), v1 in any::<bool>(), piece in 1usize..40,
    ) {
        let (source, destination) = (SocketAddr::new(from, ports.0), SocketAddr::new(to, ports.1));
        let version = if v1 { Version::V1 } else { Version::V2 };
        let (seen, rest) = parsed(&[&write(version, source, destination)[..], b"rest"].concat(), piece);
        let Header::Client { source: s, destination: d } = seen.unwrap() else { panic!("no client") };
        prop_assert_eq!((s.ip().to_canonical(), s.port()), (from.to_canonical(), ports.0));
        prop_assert_eq!((d.ip().to_canonical(), d.port()), (to.to_canonical(), ports.1));
        prop_assert_eq!(rest, b"rest");
    }

    /// Whatever comes, there is an answer, the same for all pieces that it comes in.
    #[test]
    fn any_bytes_are_a_header_or_refused(
        start in prop_oneof![Just(&b""[..]), Just(&b"PROXY "[..]), Just(&b"PROXY TCP4 "[..]), Just(&SIGNATURE[..])],
        rest in proptest::collection::vec(any::<u8>(), 0..300),
        piece in 1usize..50,
    ) {
        let bytes = [start, &rest].concat();
        let (one, left) = parsed(&bytes, piece);
        let (other, _) = parsed(&bytes, 1000);
        prop_assert_eq!(one.as_ref().ok(), other.as_ref().ok());
        prop_assert_eq!(one.as_ref().map_err(ToString::to_string), other.as_ref().map_err(ToString::to_string));
        prop_assert!(bytes.ends_with(&left));
    }
}
