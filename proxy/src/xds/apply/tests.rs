use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::Resource as WireResource;

use super::super::subscription::tests::{cluster, endpoints, response};
use super::*;

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::Endpoint;

struct Fixture {
    client: Client,
    pairs: Pairs,
    now: Instant,
}

impl Fixture {
    fn new() -> Self {
        let mut client = Client::new(Default::default());
        client.want(&["a".to_owned()]);
        Self { client, pairs: Pairs::default(), now: Instant::now() }
    }

    fn receive(&mut self, t: ResourceType, resource: WireResource) -> bool {
        let handled = self.client.handle(response(t, vec![resource], &[]));
        !self.pairs.update(&handled.changes, &self.client, self.now).is_empty()
    }

    fn remove(&mut self, t: ResourceType) -> bool {
        let handled = self.client.handle(response(t, vec![], &["a"]));
        !self.pairs.update(&handled.changes, &self.client, self.now).is_empty()
    }

    fn in_use(&self) -> Option<&str> {
        self.pairs.get("a").map(|p| p.version.as_str())
    }
}

#[test]
fn a_cluster_appears_when_both_halves_are_there_in_either_order() {
    for first in [CDS, EDS] {
        let mut f = Fixture::new();
        let (one, other) = if first == CDS {
            ((CDS, cluster("a", "1")), (EDS, endpoints("a", "1", &[80])))
        } else {
            ((EDS, endpoints("a", "1", &[80])), (CDS, cluster("a", "1")))
        };
        assert!(!f.receive(one.0, one.1));
        assert_eq!(f.in_use(), None);
        assert!(f.receive(other.0, other.1));
        assert_eq!(f.in_use(), Some("cluster 1 endpoints 1"));
    }
}

fn ready() -> Fixture {
    let mut f = Fixture::new();
    f.receive(CDS, cluster("a", "1"));
    f.receive(EDS, endpoints("a", "1", &[80]));
    f
}

/// D01: no request sees the new cluster with the old endpoints.
#[test]
fn a_changed_cluster_is_used_together_with_the_endpoints_that_follow_it() {
    let mut f = ready();
    assert!(!f.receive(CDS, cluster("a", "2")));
    assert_eq!(f.in_use(), Some("cluster 1 endpoints 1"));
    assert!(f.receive(EDS, endpoints("a", "2", &[80, 81])));
    assert_eq!(f.in_use(), Some("cluster 2 endpoints 2"));
}

#[test]
fn a_changed_cluster_is_used_when_the_same_endpoints_are_sent_again() {
    let mut f = ready();
    f.receive(CDS, cluster("a", "2"));
    assert!(f.receive(EDS, endpoints("a", "1", &[80])));
    assert_eq!(f.in_use(), Some("cluster 2 endpoints 1"));
}

#[test]
fn bad_endpoints_do_not_hold_a_changed_cluster_back() {
    let mut f = ready();
    f.receive(CDS, cluster("a", "2"));
    let mut bad = endpoints("a", "2", &[80]);
    bad.resource = None;
    assert!(f.receive(EDS, bad));
    assert_eq!(f.in_use(), Some("cluster 2 endpoints 1"));
}

/// P34: no warming without end.
#[test]
fn a_changed_cluster_is_used_after_a_while_even_if_no_endpoints_follow() {
    let mut f = ready();
    f.receive(CDS, cluster("a", "2"));
    let start = f.now;
    assert!(f.pairs.expire(&f.client, start + WARMING_MAX - Duration::from_millis(1)).is_empty());
    assert_eq!(f.pairs.expire(&f.client, start + WARMING_MAX), ["a".to_owned()].into());
    assert_eq!(f.in_use(), Some("cluster 2 endpoints 1"));
}

#[test]
fn endpoints_alone_change_at_once() {
    let mut f = ready();
    assert!(f.receive(EDS, endpoints("a", "2", &[])));
    assert_eq!(f.in_use(), Some("cluster 1 endpoints 2"));
}

#[test]
fn a_deleted_cluster_is_gone_at_once() {
    let mut f = ready();
    assert!(f.remove(EDS));
    assert_eq!(f.in_use(), None);
    assert!(!f.remove(CDS));
    let mut f = ready();
    assert!(f.remove(CDS));
    assert_eq!(f.in_use(), None);
}

#[test]
fn a_resource_sent_again_unchanged_changes_nothing() {
    let mut f = ready();
    assert!(!f.receive(CDS, cluster("a", "1")));
    assert!(!f.receive(EDS, endpoints("a", "1", &[80])));
    assert!(f.receive(EDS, endpoints("a", "2", &[81])));
}

#[test]
fn what_is_forgotten_is_out_of_use() {
    let mut f = ready();
    f.pairs.forget(&["a".to_owned()]);
    assert_eq!(f.in_use(), None);
}
