//! The part of a request by which it sticks to an endpoint.

use std::net::IpAddr;

use http::header::{COOKIE, HeaderMap, HeaderValue};
use weft_xds_proto::resource::cluster::HashOn;
use weft_xds_proto::resource::route::RouteHash;

use crate::cluster::hashed::hash;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sticky {
    /// Equal for requests that go to the same endpoint; none if the request has nothing to go by.
    pub key: Option<u64>,
    /// For the answer to a client that has no such cookie yet.
    pub set_cookie: Option<HeaderValue>,
}

impl Sticky {
    /// Of one request. `fresh` is a random number, for the cookie that the client is given.
    pub fn of(on: &HashOn, headers: &HeaderMap, client: Option<IpAddr>, fresh: u64) -> Self {
        let of = |bytes: &[u8]| Self { key: Some(hash(bytes)), set_cookie: None };
        match on {
            HashOn::Header(name) => headers.get(name).map_or_else(Self::default, |v| of(v.as_bytes())),
            HashOn::Source => client.map_or_else(Self::default, |ip| match ip.to_canonical() {
                IpAddr::V4(ip) => of(&ip.octets()),
                IpAddr::V6(ip) => of(&ip.octets()),
            }),
            HashOn::Cookie(name) => match cookie(headers, name.as_bytes()) {
                Some(value) => of(value),
                None => {
                    let value = format!("{fresh:016x}");
                    let text = format!("{name}={value}; Path=/; HttpOnly");
                    Self { key: of(value.as_bytes()).key, set_cookie: HeaderValue::try_from(text).ok() }
                }
            },
        }
    }
}

impl Sticky {
    /// By the parts that a route names, all together, up to one that is there and is the last that counts.
    pub fn of_route(parts: &[RouteHash], headers: &HeaderMap, client: Option<IpAddr>, fresh: u64) -> Self {
        let mut all = Self::default();
        for part in parts {
            let one = Self::of(&part.on, headers, client, fresh);
            let Some(key) = one.key else { continue };
            all.key = Some(all.key.map_or(key, |before| before.rotate_left(1) ^ key));
            all.set_cookie = all.set_cookie.or(one.set_cookie);
            if part.terminal {
                break;
            }
        }
        all
    }
}

/// The first cookie of that name (RFC 6265 §5.4: the most specific one stands first).
fn cookie<'a>(headers: &'a HeaderMap, name: &[u8]) -> Option<&'a [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|v| v.as_bytes().split(|b| *b == b';'));
    pairs.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect()
    }

    #[test]
    fn equal_values_have_equal_keys_and_a_missing_one_has_none() {
        let on = HashOn::Header("x-user".to_owned());
        let key = |fields: &[(&'static str, &str)]| Sticky::of(&on, &headers(fields), None, 7).key;
        assert_eq!(key(&[("x-user", "ann")]), key(&[("x-other", "1"), ("x-user", "ann")]));
        assert_ne!(key(&[("x-user", "ann")]), key(&[("x-user", "bob")]));
        assert_eq!(key(&[]), None);
    }

    #[test]
    fn a_client_without_the_cookie_is_given_one_that_leads_to_the_same_endpoint() {
        let on = HashOn::Cookie("SID".to_owned());
        let first = Sticky::of(&on, &headers(&[("cookie", "XSID=1; SIDE=2")]), None, 0xabc);
        assert_eq!(first.set_cookie.as_ref().unwrap(), "SID=0000000000000abc; Path=/; HttpOnly");
        let next = Sticky::of(&on, &headers(&[("cookie", "a=b;  SID=0000000000000abc; c=d")]), None, 1);
        assert_eq!(next, Sticky { key: first.key, set_cookie: None });
    }

    #[test]
    fn parts_of_a_route_count_together_up_to_a_last_one_that_is_there() {
        let part = |on: HashOn, terminal| RouteHash { on, terminal };
        let header = |name: &str| HashOn::Header(name.to_owned());
        let parts =
            [part(header("x-user"), true), part(header("x-team"), false), part(HashOn::Source, false)];
        let key = |fields: &[(&'static str, &str)]| {
            Sticky::of_route(&parts, &headers(fields), Some("10.0.0.1".parse().unwrap()), 7).key
        };
        let user = key(&[("x-user", "ann")]);
        assert_eq!(user, key(&[("x-user", "ann"), ("x-team", "red")]), "what follows does not count");
        assert_ne!(key(&[("x-team", "red")]), key(&[("x-team", "blue")]));
        assert_ne!(key(&[("x-team", "red")]), key(&[]));
        assert!(key(&[]).is_some());
        assert_eq!(Sticky::of_route(&[], &headers(&[]), None, 7), Sticky::default());
    }

    #[test]
    fn an_address_is_the_same_in_both_of_its_forms() {
        let of = |ip: &str| Sticky::of(&HashOn::Source, &HeaderMap::new(), Some(ip.parse().unwrap()), 0).key;
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(Sticky::of(&HashOn::Source, &HeaderMap::new(), None, 0), Sticky::default());
    }
}
