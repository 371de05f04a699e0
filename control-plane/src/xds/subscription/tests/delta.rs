use super::*;

#[derive(Default)]
struct Request(DeltaDiscoveryRequest);

fn request(t: ResourceType) -> Request {
    Request(DeltaDiscoveryRequest { type_url: t.url().to_owned(), ..Default::default() })
}

impl Request {
    fn subscribe(mut self, names: &[&str]) -> Self {
        self.0.resource_names_subscribe = names.iter().map(|n| n.to_string()).collect();
        self
    }
    fn unsubscribe(mut self, names: &[&str]) -> Self {
        self.0.resource_names_unsubscribe = names.iter().map(|n| n.to_string()).collect();
        self
    }
    fn has(mut self, versions: &[(&str, &str)]) -> Self {
        self.0.initial_resource_versions =
            versions.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        self
    }
    fn answers(mut self, r: &DeltaDiscoveryResponse) -> Self {
        self.0.response_nonce.clone_from(&r.nonce);
        self
    }
    fn rejects(mut self, error: Status) -> Self {
        self.0.error_detail = Some(error);
        self
    }
    fn to(self, s: &mut Subscriptions, c: &ConfigSnapshot) -> Vec<Vec<String>> {
        s.handle_delta(self.0, c).iter().map(content).collect()
    }
    fn response(self, s: &mut Subscriptions, c: &ConfigSnapshot) -> DeltaDiscoveryResponse {
        let mut all = s.handle_delta(self.0, c);
        assert_eq!(all.len(), 1);
        all.remove(0)
    }
}

const NOTHING: Vec<Vec<String>> = Vec::new();

fn pushed(s: &mut Subscriptions, c: &ConfigSnapshot) -> Vec<(ResourceType, Vec<String>)> {
    s.push_delta(c).iter().map(|r| (ResourceType::from_url(&r.type_url).unwrap(), content(r))).collect()
}

#[test]
fn each_response_has_a_nonce_of_its_own_and_each_resource_its_version() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "7")]));
    let first = request(CDS).subscribe(&["a"]).response(&mut s, &c);
    let second = request(EDS).subscribe(&["a"]).response(&mut s, &c);
    assert!(!first.nonce.is_empty() && first.nonce != second.nonce);
    assert_eq!((content(&first), content(&second)), (vec!["a@1".to_owned()], vec!["a@7".to_owned()]));
}

#[test]
fn first_request_without_names_means_everything() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "1"), ("b", "1", "1")]));
    assert_eq!(request(CDS).to(&mut s, &c), [["a@1", "b@1"]]);
}

#[test]
fn first_request_for_endpoints_without_names_means_nothing() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "1")]));
    assert_eq!(request(EDS).to(&mut s, &c), NOTHING);
}

#[test]
fn a_star_means_everything() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "1"), ("b", "1", "1")]));
    assert_eq!(request(CDS).subscribe(&["a"]).to(&mut s, &c), [["a@1"]]);
    assert_eq!(request(CDS).subscribe(&["*"]).to(&mut s, &c), [["b@1"]]);
}

#[test]
fn a_later_explicit_name_does_not_end_the_wildcard() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "1"), ("b", "1", "1")]));
    request(CDS).to(&mut s, &c);
    request(CDS).subscribe(&["a"]).to(&mut s, &c);
    let changed = snapshot(&[("a", "1", "1"), ("b", "2", "1")]);
    assert_eq!(pushed(&mut s, &changed), [(CDS, vec!["b@2".to_owned()])]);
}

#[test]
fn names_are_always_sent_again_when_subscribed_again() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "1")]));
    for _ in 0..2 {
        assert_eq!(request(CDS).subscribe(&["a"]).to(&mut s, &c), [["a@1"]]);
    }
}

#[test]
fn unknown_names_are_answered_as_removed_with_what_is_known() {
    let c = snapshot(&[("hello", "1", "1"), ("help", "1", "1"), ("orders", "1", "1"), ("users", "1", "1")]);
    let mut s = Subscriptions::default();
    let r = request(CDS).subscribe(&["helo"]).response(&mut s, &c);
    assert_eq!(r.removed_resources, ["helo"]);
    let error = r.resource_errors[0].error_detail.as_ref().unwrap();
    assert_eq!(r.resource_errors[0].resource_name.as_ref().unwrap().name, "helo");
    assert_eq!(error.code, tonic::Code::NotFound as i32);
    assert_eq!(error.message, "no service helo; known: hello, help, users (3 of 4)");
}

/// A proxy that is told nothing would wait for it.
#[test]
fn a_secret_is_answered_as_one_that_servers_do_not_keep() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "1")]));
    let r = request(ResourceType::Secret).subscribe(&["a"]).response(&mut s, &c);
    assert_eq!(r.removed_resources, ["a"]);
    let error = r.resource_errors[0].error_detail.as_ref().unwrap();
    assert!(error.message.starts_with("no secret a; weft servers keep none"), "{}", error.message);
}

#[test]
fn an_unknown_name_is_remembered_and_sent_when_it_appears() {
    let mut s = Subscriptions::default();
    request(CDS).subscribe(&["a"]).to(&mut s, &snapshot(&[]));
    assert_eq!(pushed(&mut s, &snapshot(&[("b", "1", "1")])), []);
    let appeared = snapshot(&[("a", "1", "1"), ("b", "1", "1")]);
    assert_eq!(pushed(&mut s, &appeared), [(CDS, vec!["a@1".to_owned()])]);
}

#[test]
fn what_the_client_has_from_an_earlier_stream_is_not_sent_again() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "1"), ("b", "2", "1")]));
    let r = request(CDS).subscribe(&["a", "b", "gone"]).has(&[("a", "1"), ("b", "1"), ("gone", "1")]);
    assert_eq!(r.to(&mut s, &c), [["b@2", "-gone"]]);
    assert_eq!(status(&s, CDS, "a").version_acked, "1");
}

#[test]
fn initial_versions_count_in_the_first_request_of_the_type_only() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "1")]));
    request(CDS).subscribe(&["x"]).to(&mut s, &c);
    assert_eq!(request(CDS).subscribe(&["a"]).has(&[("a", "1")]).to(&mut s, &c), [["a@1"]]);
}

#[test]
fn subscription_changes_count_even_with_a_stale_nonce() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "1"), ("b", "1", "1")]));
    let old = request(CDS).subscribe(&["a"]).response(&mut s, &c);
    request(CDS).subscribe(&["a"]).to(&mut s, &c);
    assert_eq!(request(CDS).answers(&old).subscribe(&["b"]).to(&mut s, &c), [["b@1"]]);
    let mut unknown = request(CDS).subscribe(&["b"]);
    unknown.0.response_nonce = "of another stream".to_owned();
    assert_eq!(unknown.to(&mut s, &c), [["b@1"]]);
}

#[test]
fn unsubscribing_what_was_never_subscribed_is_ignored() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "1")]));
    request(CDS).subscribe(&["a"]).to(&mut s, &c);
    assert_eq!(request(CDS).unsubscribe(&["phantom"]).to(&mut s, &c), NOTHING);
}

#[test]
fn unsubscribing_a_name_that_the_wildcard_covers_is_answered() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "1")]));
    request(CDS).to(&mut s, &c);
    request(CDS).subscribe(&["a", "gone"]).to(&mut s, &c);
    assert_eq!(request(CDS).unsubscribe(&["a", "gone"]).to(&mut s, &c), [["a@1", "-gone"]]);
}

#[test]
fn the_first_wildcard_response_is_sent_even_when_empty() {
    let mut s = Subscriptions::default();
    assert_eq!(request(CDS).to(&mut s, &snapshot(&[])), [Vec::<String>::new()]);
}

#[test]
fn nothing_is_pushed_for_a_name_after_its_unsubscription() {
    let mut s = Subscriptions::default();
    request(CDS).subscribe(&["a", "b"]).to(&mut s, &snapshot(&[("a", "1", "1"), ("b", "1", "1")]));
    assert_eq!(
        request(CDS).unsubscribe(&["a"]).to(&mut s, &snapshot(&[("a", "1", "1"), ("b", "1", "1")])),
        NOTHING
    );
    assert_eq!(pushed(&mut s, &snapshot(&[("a", "2", "1"), ("b", "1", "1")])), []);
    assert_eq!(pushed(&mut s, &snapshot(&[])), [(CDS, vec!["-b".to_owned()])]);
}

#[test]
fn ending_the_wildcard_keeps_explicit_names() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "1"), ("b", "1", "1")]));
    request(CDS).subscribe(&["*", "a"]).to(&mut s, &c);
    request(CDS).unsubscribe(&["*"]).to(&mut s, &c);
    let changed = snapshot(&[("a", "2", "1"), ("b", "2", "1")]);
    assert_eq!(pushed(&mut s, &changed), [(CDS, vec!["a@2".to_owned()])]);
}

#[test]
fn only_what_changed_is_pushed() {
    let mut s = Subscriptions::default();
    let c = snapshot(&[("a", "1", "1"), ("b", "1", "1")]);
    request(CDS).to(&mut s, &c);
    request(EDS).subscribe(&["a", "b"]).to(&mut s, &c);
    assert_eq!(pushed(&mut s, &c), []);
    let changed = snapshot(&[("a", "1", "1"), ("b", "1", "2")]);
    assert_eq!(pushed(&mut s, &changed), [(EDS, vec!["b@2".to_owned()])]);
}

#[test]
fn additions_go_in_order_cds_eds_lds_rds_and_removals_in_the_opposite_one() {
    let mut s = Subscriptions::default();
    let c = snapshot(&[("old", "1", "1")]);
    for t in [RDS, LDS, EDS, CDS] {
        request(t).subscribe(&["old", "new"]).to(&mut s, &c);
    }
    let types: Vec<_> = pushed(&mut s, &snapshot(&[("new", "1", "1")])).into_iter().collect();
    let new = |t| (t, vec!["new@1".to_owned()]);
    let old = |t| (t, vec!["-old".to_owned()]);
    assert_eq!(types, [new(CDS), new(EDS), new(LDS), new(RDS), old(RDS), old(LDS), old(EDS), old(CDS)]);
}

#[test]
fn endpoints_are_sent_again_when_their_cluster_changed() {
    let mut s = Subscriptions::default();
    let c = snapshot(&[("a", "1", "1"), ("b", "1", "1")]);
    request(CDS).to(&mut s, &c);
    request(EDS).subscribe(&["a", "b"]).to(&mut s, &c);
    let changed = snapshot(&[("a", "2", "1"), ("b", "1", "1")]);
    assert_eq!(pushed(&mut s, &changed), [(CDS, vec!["a@2".to_owned()]), (EDS, vec!["a@1".to_owned()])]);
    assert_eq!(pushed(&mut s, &changed), []);
}

/// On a new stream the cluster comes changed, while the client says that its endpoints are current.
#[test]
fn endpoints_are_sent_again_when_their_cluster_changed_between_two_streams() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "2", "1")]));
    assert_eq!(request(CDS).subscribe(&["a"]).has(&[("a", "1")]).to(&mut s, &c), [["a@2"]]);
    assert_eq!(request(EDS).subscribe(&["a"]).has(&[("a", "1")]).to(&mut s, &c), [["a@1"]]);
}

#[test]
fn an_ack_is_not_answered_and_is_recorded() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "1")]));
    let r = request(CDS).subscribe(&["a"]).response(&mut s, &c);
    assert_eq!(status(&s, CDS, "a").version_acked, "");
    assert_eq!(request(CDS).answers(&r).to(&mut s, &c), NOTHING);
    let now = status(&s, CDS, "a");
    assert_eq!((now.version_sent.as_str(), now.version_acked.as_str(), now.error), ("1", "1", None));
}

/// D02: a rejected configuration is never counted as applied. P33: who rejected what, and why, can be asked.
#[test]
fn a_nack_that_names_a_resource_is_recorded_for_it_and_the_others_count_as_applied() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("bad", "1", "1"), ("good", "1", "1")]));
    let r = request(CDS).response(&mut s, &c);
    request(CDS).answers(&r).to(&mut s, &c);
    let changed = snapshot(&[("bad", "2", "1"), ("good", "2", "1")]);
    let r = s.push_delta(&changed).remove(0);
    let error = nack::rejection(&[("bad".to_owned(), "no type".to_owned())]);
    assert_eq!(request(CDS).answers(&r).rejects(error).to(&mut s, &changed), NOTHING);
    let (bad, good) = (status(&s, CDS, "bad"), status(&s, CDS, "good"));
    assert_eq!((bad.version_sent.as_str(), bad.version_acked.as_str()), ("2", "1"));
    assert_eq!(bad.error.as_deref(), Some("no type"));
    assert_eq!((good.version_acked.as_str(), good.error), ("2", None));
}

#[test]
fn a_nack_of_another_client_concerns_those_its_message_mentions_or_all() {
    for (message, rejected) in [(r#"Cluster "bad": no type"#, 1), ("cannot parse", 2)] {
        let (mut s, c) = (Subscriptions::default(), snapshot(&[("bad", "1", "1"), ("good", "1", "1")]));
        let r = request(CDS).response(&mut s, &c);
        let error = Status { code: 3, message: message.to_owned(), details: vec![] };
        request(CDS).answers(&r).rejects(error).to(&mut s, &c);
        assert_eq!(s.status().iter().filter(|r| r.error.is_some()).count(), rejected, "{message}");
    }
}

#[test]
fn a_rejected_version_is_not_sent_again_until_it_changes() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "1")]));
    let r = request(CDS).response(&mut s, &c);
    let error = Status { code: 3, message: "bad".to_owned(), details: vec![] };
    assert_eq!(request(CDS).answers(&r).rejects(error).to(&mut s, &c), NOTHING);
    assert_eq!(
        pushed(&mut s, &snapshot(&[("a", "1", "1"), ("b", "1", "1")])),
        [(CDS, vec!["b@1".to_owned()])]
    );
    let repaired = s.push_delta(&snapshot(&[("a", "2", "1"), ("b", "1", "1")])).remove(0);
    request(CDS).answers(&repaired).to(&mut s, &c);
    assert_eq!(status(&s, CDS, "a").error, None);
}

#[test]
fn a_type_that_is_not_served_is_ignored() {
    let mut s = Subscriptions::default();
    let mut r = request(CDS).subscribe(&["a"]);
    r.0.type_url = "type.googleapis.com/envoy.service.runtime.v3.Runtime".to_owned();
    assert_eq!(r.to(&mut s, &snapshot(&[("a", "1", "1")])), NOTHING);
}

#[test]
fn names_over_the_limit_are_refused_and_not_remembered() {
    let mut s = Subscriptions::default();
    let names: Vec<String> = (0..=NAMES_PER_TYPE_MAX).map(|i| format!("n{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let r = request(CDS).subscribe(&names).response(&mut s, &snapshot(&[]));
    let refused: Vec<_> = r
        .resource_errors
        .iter()
        .map(|e| e.error_detail.as_ref().unwrap())
        .filter(|e| e.code == tonic::Code::ResourceExhausted as i32)
        .collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].message, "stream has 10000 subscriptions, allowed 10000");
    assert_eq!(s.types[CDS as usize].names.len(), NAMES_PER_TYPE_MAX);
    assert_eq!(s.types[CDS as usize].known.len(), NAMES_PER_TYPE_MAX);
}

#[test]
fn a_client_that_never_answers_does_not_grow_memory() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "1")]));
    for _ in 0..3 * OUTSTANDING_MAX {
        request(CDS).subscribe(&["a"]).to(&mut s, &c);
    }
    assert_eq!(s.types[CDS as usize].outstanding.len(), OUTSTANDING_MAX);
}

#[test]
fn a_large_answer_is_split_into_several_responses() {
    let services: Vec<String> = (0..4).map(|i| format!("s{i}")).collect();
    let c = ConfigSnapshot::new(services.iter().flat_map(|name| {
        ResourceType::PUSH_ORDER.map(|t| {
            let body = Any { type_url: t.url().to_owned(), value: vec![0; 400_000] };
            (t, Arc::new(Resource { name: name.clone(), version: "1".to_owned(), body }))
        })
    }));
    let mut s = Subscriptions::default();
    assert_eq!(request(CDS).to(&mut s, &c), [["s0@1", "s1@1"], ["s2@1", "s3@1"]]);
}

#[test]
fn a_client_that_wants_every_listener_gets_none_and_an_answer() {
    let (mut s, c) = (Subscriptions::default(), snapshot(&[("a", "1", "1")]));
    assert_eq!(request(LDS).to(&mut s, &c), [Vec::<String>::new()]);
    assert_eq!(request(LDS).subscribe(&["a"]).to(&mut s, &c), [["a@1"]]);
    assert_eq!(pushed(&mut s, &snapshot(&[("a", "1", "1"), ("b", "1", "1")])), []);
}
