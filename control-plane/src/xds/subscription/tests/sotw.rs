use super::*;

fn request(t: ResourceType, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: t.url().to_owned(),
        resource_names: names.iter().map(|n| n.to_string()).collect(),
        ..Default::default()
    }
}

fn answer(r: &DiscoveryResponse, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: r.type_url.clone(),
        response_nonce: r.nonce.clone(),
        version_info: r.version_info.clone(),
        resource_names: names.iter().map(|n| n.to_string()).collect(),
        ..Default::default()
    }
}

fn pushed(s: &mut Subscriptions, c: &ConfigSnapshot) -> Vec<(ResourceType, Vec<String>)> {
    s.push_sotw(c).iter().map(|r| (ResourceType::from_url(&r.type_url).unwrap(), bodies(r))).collect()
}

#[test]
fn wildcard_clusters_come_as_the_full_set_where_absence_is_deletion() {
    let mut s = Subscriptions::default();
    let c = snapshot(&[("a", "1", "1"), ("b", "1", "1")]);
    let r = s.handle_sotw(request(CDS, &[]), &c).unwrap();
    assert_eq!(bodies(&r), ["a@1", "b@1"]);
    assert_eq!(pushed(&mut s, &snapshot(&[("b", "1", "1")])), [(CDS, vec!["b@1".to_owned()])]);
}

#[test]
fn an_ack_a_nack_and_a_stale_request_are_not_answered() {
    let mut s = Subscriptions::default();
    let c = snapshot(&[("a", "1", "1")]);
    let r = s.handle_sotw(request(CDS, &[]), &c).unwrap();
    let mut nack = answer(&r, &[]);
    nack.error_detail = Some(Status { code: 3, message: "bad".to_owned(), details: vec![] });
    assert!(s.handle_sotw(nack, &c).is_none());
    assert_eq!(status(&s, CDS, "a").error.as_deref(), Some("bad"));
    assert!(s.handle_sotw(answer(&r, &[]), &c).is_none());
    let mut stale = answer(&r, &["a"]);
    stale.response_nonce = "old".to_owned();
    assert!(s.handle_sotw(stale, &c).is_none());
}

#[test]
fn a_name_added_at_an_unchanged_version_is_sent() {
    let mut s = Subscriptions::default();
    let c = snapshot(&[("a", "1", "1"), ("b", "1", "1")]);
    let r = s.handle_sotw(request(EDS, &["a"]), &c).unwrap();
    let r = s.handle_sotw(answer(&r, &["a", "b"]), &c).unwrap();
    assert_eq!(bodies(&r), ["b@1"]);
}

#[test]
fn empty_answers_are_sent_so_that_nobody_waits() {
    let mut s = Subscriptions::default();
    for (t, names) in [(CDS, vec![]), (EDS, vec!["a"]), (LDS, vec!["a"]), (RDS, vec!["a"])] {
        assert_eq!(bodies(&s.handle_sotw(request(t, &names), &snapshot(&[])).unwrap()), [""; 0]);
    }
}

#[test]
fn a_client_that_wants_every_listener_gets_none_and_an_answer() {
    let mut s = Subscriptions::default();
    let c = snapshot(&[("a", "1", "1")]);
    assert_eq!(bodies(&s.handle_sotw(request(LDS, &[]), &c).unwrap()), [""; 0]);
    assert_eq!(pushed(&mut s, &snapshot(&[("a", "1", "1"), ("b", "1", "1")])), []);
}

#[test]
fn an_unknown_name_is_answered_when_it_appears() {
    let mut s = Subscriptions::default();
    s.handle_sotw(request(EDS, &["a"]), &snapshot(&[]));
    let appeared = snapshot(&[("a", "1", "1"), ("b", "1", "1")]);
    assert_eq!(pushed(&mut s, &appeared), [(EDS, vec!["a@1".to_owned()])]);
}

#[test]
fn an_empty_list_after_names_means_nothing_not_everything() {
    let mut s = Subscriptions::default();
    let c = snapshot(&[("a", "1", "1")]);
    let r = s.handle_sotw(request(CDS, &["a"]), &c).unwrap();
    assert!(s.handle_sotw(answer(&r, &[]), &c).is_none());
    assert_eq!(pushed(&mut s, &snapshot(&[("a", "2", "1")])), []);
}

#[test]
fn after_a_reconnect_the_first_request_is_always_answered() {
    let mut s = Subscriptions::default();
    let c = snapshot(&[("a", "1", "1")]);
    let mut again = request(EDS, &["a"]);
    again.version_info = c.of(EDS).version().to_owned();
    assert_eq!(bodies(&s.handle_sotw(again, &c).unwrap()), ["a@1"]);
}

#[test]
fn pushes_go_in_order_and_endpoints_follow_a_changed_cluster() {
    let mut s = Subscriptions::default();
    let c = snapshot(&[("a", "1", "1")]);
    for t in [RDS, LDS, EDS, CDS] {
        s.handle_sotw(request(t, &["a", "b"]), &c);
    }
    let changed = snapshot(&[("a", "2", "1"), ("b", "1", "1")]);
    let own = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    assert_eq!(
        pushed(&mut s, &changed),
        [
            (CDS, own(&["a@2", "b@1"])),
            (EDS, own(&["a@1", "b@1"])),
            (LDS, own(&["a@1", "b@1"])),
            (RDS, own(&["b@1"]))
        ]
    );
    assert_eq!(pushed(&mut s, &changed), []);
}

#[test]
fn endpoints_that_vanish_are_not_announced() {
    let mut s = Subscriptions::default();
    s.handle_sotw(request(EDS, &["a"]), &snapshot(&[("a", "1", "1")]));
    assert_eq!(pushed(&mut s, &snapshot(&[])), []);
}

#[test]
fn version_is_that_of_the_type_and_equal_on_all_streams() {
    let c = snapshot(&[("a", "1", "1"), ("b", "1", "1")]);
    let version =
        |names: &[&str]| Subscriptions::default().handle_sotw(request(EDS, names), &c).unwrap().version_info;
    assert_eq!(version(&["a"]), version(&["b"]));
}
