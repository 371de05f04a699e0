//! What is spoken on a connection, as rustls has it: versions, and the cipher suites of each.

use std::sync::Arc;

use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use weft_core::tls;
use weft_xds_proto::resource::cluster::tls::{CipherSuite, TlsVersion};

static TLS13_ALONE: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];

/// From this version on. `suites`, most wanted first, stand in the place of those of their version.
pub(super) fn spoken(
    min: TlsVersion,
    suites: &[CipherSuite],
) -> (Arc<CryptoProvider>, &'static [&'static SupportedProtocolVersion]) {
    let versions = match min {
        TlsVersion::Tls12 => rustls::ALL_VERSIONS,
        TlsVersion::Tls13 => &TLS13_ALONE,
    };
    let provider = tls::provider();
    if suites.is_empty() {
        return (provider, versions);
    }
    let own = |suite: CipherSuite| {
        let is_it = |known: &&rustls::SupportedCipherSuite| u16::from(known.suite()) == suite.number();
        provider.cipher_suites.iter().find(is_it).copied()
    };
    let named = suites.iter().filter_map(|suite| own(*suite));
    let is_left_alone = |version| !suites.iter().any(|suite| suite.version() == version);
    let others = provider.cipher_suites.iter().filter(|known| {
        let version = if known.tls13().is_some() { TlsVersion::Tls13 } else { TlsVersion::Tls12 };
        is_left_alone(version)
    });
    let cipher_suites = named.chain(others.copied()).collect();
    (Arc::new(CryptoProvider { cipher_suites, ..CryptoProvider::clone(&provider) }), versions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(min: TlsVersion, names: &[&str]) -> Vec<u16> {
        let suites = CipherSuite::parse_all(names.iter().copied(), min).unwrap();
        spoken(min, &suites).0.cipher_suites.iter().map(|suite| suite.suite().into()).collect()
    }

    #[test]
    fn all_suites_that_have_a_name_are_known_and_those_with_aes_128_come_first() {
        let mut all: Vec<_> = CipherSuite::all().map(CipherSuite::number).collect();
        let mut known = offered(TlsVersion::Tls12, &[]);
        assert_eq!((known[0], known[3], known[4]), (0x1301, 0xc02b, 0xc02f), "{known:x?}");
        all.sort_unstable();
        known.sort_unstable();
        assert_eq!(known, all);
    }

    #[test]
    fn a_list_orders_the_suites_of_its_version_and_leaves_the_other_one_alone() {
        let old = ["ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-RSA-AES128-GCM-SHA256"];
        let offered_old = offered(TlsVersion::Tls12, &old);
        assert_eq!(offered_old[..2], [0xcca8, 0xc02f]);
        assert_eq!(offered_old[2..], offered(TlsVersion::Tls12, &[])[..3], "TLS 1.3 as ever");
        assert_eq!(offered(TlsVersion::Tls13, &["TLS_AES_256_GCM_SHA384"])[0], 0x1302);
    }
}
