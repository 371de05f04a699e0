use std::path::Path;

use weft_core::tls::ClientCerts;
use weft_proxy::policy::overload::Limits;
use weft_proxy::telemetry::access_log::{AccessLogConfig, Format, Target};
use weft_proxy::tls::mesh::MeshMode;

use super::several::TRACE_SAMPLE_PERCENT;
use super::*;

fn file(text: &str) -> ProxyFlags {
    weft_core::config::parse_yaml(Path::new("weft.yaml"), text).unwrap()
}

#[test]
fn a_file_alone_is_enough_and_needs_no_mesh() {
    let file = file(
        "name: edge\nadmin: 127.0.0.1:0\nlisteners:\n  - name: web\n    address: 127.0.0.1:0\nroutes:\n  - cluster: o\nclusters:\n  - name: o\n    endpoints: [\"127.0.0.1:1\"]\n",
    );
    let config = ProxyFlags::default().over(file).into_config(Vec::new()).unwrap();
    assert_eq!((config.name.as_str(), config.outbound, config.gossip), ("edge", None, None));
    assert_eq!(config.data_dir, None);
    assert_eq!(config.static_config.unwrap().listeners.len(), 1);
}

#[test]
fn flags_win_over_the_file() {
    let flags = ProxyFlags { outbound: Some(Listen::Off), workers: Some(4), ..ProxyFlags::default() };
    let file = file("outbound: 127.0.0.1:9\nworkers: 8\ndrain-timeout: 3s\nservice: [\"a=127.0.0.1:1\"]\n");
    let config = flags.over(file).into_config(Vec::new()).unwrap();
    assert_eq!(config.services.len(), 1);
    assert_eq!((config.outbound, config.workers, config.drain_timeout), (None, 4, Duration::from_secs(3)));
    assert_eq!(config.services[0].name, "a");
}

#[test]
fn listeners_of_single_services_are_spelt_alike_in_flags_and_file() {
    let file = file(
        "upstream: [\"127.0.0.1:9191=orders\", \"unix:/run/db.sock=db,protocol=tcp\"]\ninbound-tcp: [\"10.0.0.7:1=db\"]\ninbound-accept-proxy: [10.0.0.0/8]\n",
    );
    let config = ProxyFlags::default().over(file).into_config(Vec::new()).unwrap();
    assert_eq!(config.upstreams[0], "127.0.0.1:9191=orders".parse().unwrap());
    assert_eq!(config.upstreams[1].protocol(), "tcp");
    assert_eq!((config.inbound_tcp[0].service(), config.inbound_accept_proxy.len()), ("db", 1));
    let flags = ProxyFlags { inbound_accept_proxy: Some(vec!["ten".to_owned()]), ..ProxyFlags::default() };
    assert!(flags.into_config(Vec::new()).unwrap_err().to_string().contains("IP/BITS"));
}

#[test]
fn defaults_are_the_documented_ones() {
    let config = ProxyFlags::default().into_config(Vec::new()).unwrap();
    assert_eq!((config.outbound, config.inbound, config.admin), (Some(OUTBOUND), None, ADMIN));
    assert_eq!((config.workers, config.drain_timeout), (2, Duration::from_secs(20)));
}

#[test]
fn joining_turns_gossip_on_where_others_can_reach_it() {
    let flags = ProxyFlags { join: Some(vec!["10.0.0.1:7946".to_owned()]), ..ProxyFlags::default() };
    let config = flags.clone().into_config(Vec::new()).unwrap();
    assert_eq!(config.gossip, "127.0.0.1:0".parse().ok());
    assert!(config.data_dir.is_some());
    let advertised = ProxyFlags { advertise: "10.0.0.9".parse().ok(), ..flags.clone() };
    assert_eq!(advertised.into_config(Vec::new()).unwrap().gossip, "0.0.0.0:0".parse().ok());
    let inbound = ProxyFlags { inbound: "10.0.0.9:15006".parse().ok(), ..flags };
    assert_eq!(inbound.into_config(Vec::new()).unwrap().gossip, "10.0.0.9:0".parse().ok());
}

#[test]
fn the_access_log_has_a_target_and_a_format_that_is_checked() {
    let flags = |target: Option<&str>, format: Option<&str>| ProxyFlags {
        access_log: target.map(PathBuf::from),
        access_log_format: format.map(str::to_owned),
        ..ProxyFlags::default()
    };
    let config = |target, format| flags(target, format).into_config(Vec::new());
    assert_eq!(config(None, None).unwrap().access_log, None);
    let log = config(Some("stdout"), None).unwrap().access_log;
    assert_eq!(log, Some(AccessLogConfig { target: Target::Stdout, format: Format::Json }));
    let log = config(Some("/tmp/a"), Some("{status}")).unwrap().access_log.unwrap();
    assert_eq!(log.target, Target::File("/tmp/a".into()));
    for (target, format, why) in
        [(Some("a"), "{statu}", "no field \"statu\""), (None, "json", "needs access-log")]
    {
        let refused = config(target, Some(format)).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn traces_go_to_an_address_and_their_share_is_a_percentage() {
    let config = |endpoint: Option<&str>, percent: Option<f64>| {
        let endpoint = endpoint.map(str::to_owned);
        let flags =
            ProxyFlags { trace_endpoint: endpoint, trace_sample_percent: percent, ..ProxyFlags::default() };
        flags.into_config(Vec::new())
    };
    assert_eq!(config(None, None).unwrap().trace, None);
    let trace = config(Some("http://c:4317"), None).unwrap().trace.unwrap();
    assert_eq!((trace.endpoint.host(), trace.sample_percent), (Some("c"), TRACE_SAMPLE_PERCENT));
    for (endpoint, percent, why) in [
        (Some("c:4317"), None, "is not http://HOST:PORT"),
        (Some("https://c:4317"), None, "is not http://HOST:PORT"),
        (Some("http://c:4317/v1/traces"), None, "is not http://HOST:PORT"),
        (Some("http://c:4317"), Some(101.0), "101 is not between"),
        (Some("http://c:4317"), Some(f64::NAN), "NaN is not between"),
        (None, Some(1.0), "needs trace-endpoint"),
    ] {
        let refused = config(endpoint, percent).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn limits_of_the_proxy_itself_are_in_a_range() {
    let limits = |mib, millis: Option<u64>| overload(mib, millis.map(Duration::from_millis));
    assert_eq!(limits(None, None).unwrap(), Limits::default());
    assert_eq!(limits(Some(64), None).unwrap().memory, Some(64 << 20));
    assert!(limits(Some(1), None).unwrap_err().to_string().contains("16 and 1048576"));
    assert!(limits(None, Some(0)).unwrap_err().to_string().contains("1ms and 10s"));
}

#[test]
fn a_certificate_needs_its_key() {
    let config =
        |certs: &[&str], keys: &[&str], ca: Option<&str>, clients: Option<&str>, min: Option<&str>| {
            let files = |all: &[&str]| (!all.is_empty()).then(|| all.iter().map(PathBuf::from).collect());
            let flags = ProxyFlags {
                inbound: Some(Listen::At("127.0.0.1:0".parse().unwrap())),
                inbound_cert: files(certs),
                inbound_key: files(keys),
                inbound_client_ca: ca.map(PathBuf::from),
                inbound_client_certificates: clients.map(str::to_owned),
                inbound_min_version: min.map(str::to_owned),
                ..ProxyFlags::default()
            };
            flags.into_config(Vec::new()).map_err(|why| why.to_string())
        };
    let port = config(&["a", "b"], &["c", "d"], Some("ca"), Some("optional"), Some("1.3"))
        .unwrap()
        .inbound_tls
        .unwrap();
    let pair = |cert: &str, key: &str| Identity { cert: cert.into(), key: key.into() };
    assert_eq!(port.certificates, [pair("a", "c"), pair("b", "d")]);
    assert_eq!(port.clients, ClientCerts::Asked("ca".into()));
    for (certs, keys, ca, clients, min, why) in [
        (&["a"][..], &[][..], None, None, None, "inbound-cert names 1 files and inbound-key 0"),
        (&["a", "b"], &["c"], None, None, None, "each certificate needs its key, in the same order"),
        (&[], &[], Some("ca"), None, None, "inbound-client-ca needs inbound-cert and inbound-key"),
        (&[], &[], None, None, Some("1.3"), "inbound-min-version needs inbound-cert and inbound-key"),
        (&["a"], &["c"], None, Some("required"), None, "inbound-client-certificates needs inbound-client-ca"),
        (&["a"], &["c"], Some("ca"), Some("no"), None, "allowed are required and optional"),
        (&["a"], &["c"], None, None, Some("1.1"), "allowed are 1.2 and 1.3"),
    ] {
        let said = config(certs, keys, ca, clients, min).unwrap_err();
        assert!(said.contains(why), "{why}: {said}");
    }
}

#[test]
fn a_file_names_one_certificate_or_several() {
    for (yaml, expected) in [("inbound-cert: a", &["a"][..]), ("inbound-cert: [a, b]", &["a", "b"])] {
        let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
        assert_eq!(file(yaml).inbound_cert, Some(expected), "{yaml}");
    }
}

#[test]
fn an_identity_is_a_certificate_a_key_and_a_ca() {
    let flags = |cert: Option<&str>, mode: Option<&str>| ProxyFlags {
        mesh_cert: cert.map(PathBuf::from),
        mesh_key: Some("key.pem".into()),
        mesh_ca: Some("ca.pem".into()),
        mesh_mode: mode.map(str::to_owned),
        ..ProxyFlags::default()
    };
    let config = |cert, mode| flags(cert, mode).into_config(Vec::new());
    let mesh = config(Some("cert.pem"), Some("strict")).unwrap().mesh.unwrap();
    assert_eq!((mesh.mode, mesh.crl), (MeshMode::Strict, None));
    assert_eq!(config(Some("cert.pem"), None).unwrap().mesh.unwrap().mode, MeshMode::Permissive);
    for (cert, mode, why) in
        [(None, None, "all three"), (Some("cert.pem"), Some("lax"), "permissive and strict")]
    {
        let refused = config(cert, mode).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    let alone = ProxyFlags { mesh_mode: Some("strict".to_owned()), ..ProxyFlags::default() };
    assert!(alone.into_config(Vec::new()).unwrap_err().to_string().contains("all three"));
}

/// What is wrong with a file, one mistake a line.
fn mistakes(text: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edge.yaml");
    std::fs::write(&path, text).unwrap();
    let flags = ProxyFlags { config: Some(path.clone()), ..ProxyFlags::default() };
    let why = flags.layered().map(|_| String::new()).unwrap_or_else(|failure| failure.to_string());
    let named = format!("{}:", path.display());
    why.lines().map(|line| line.replace(&named, "")).collect()
}

#[test]
fn every_mistake_of_a_file_is_told_at_once_with_its_place_and_its_key() {
    let text = "name: edge
workers: many
max-memory-mib: 1
colour: red
trusted-proxies: [10.0.0.0/8, ten]
service: ['a=127.0.0.1:1', 'Orders=127.0.0.1:2', nowhere]
listeners:
  - name: web
    address: nowhere
routes:
  - cluster: ordres
clusters:
  - name: orders
    protocol: spdy
    load-balancing: random
    endpoints:
      - 127.0.0.1:1
---
apiVersion: weft.dev/v1
kind: TrafficPolicy
metadata: {name: p}
spec: {targetRef: {kind: Service, name: orders}, panic: {policy: scream}}
---
apiVersion: weft.dev/v1
kind: TrafficPolicy
metadata: {name: p}
spec: {targetRef: {kind: Service, name: other}, retryBudget: {percent: 10}}
---
kind: [
";
    let mistakes = mistakes(text);
    let expected = [
        "2:10: workers: invalid type: string \"many\", expected usize",
        "3:17: max-memory-mib: 1 is not between 16 and 1048576",
        "4:1: colour: unknown key; allowed are name, region, zone, ",
        "5:31: trusted-proxies[1]: \"ten\" is no network; expected IP or IP/BITS",
        "6:28: service[1]: \"Orders\": has 'O'",
        "6:50: service[2]: \"nowhere\"",
        "9:14: listener web: listeners[0].address: \"nowhere\"; allowed is IP:PORT",
        "11:14: route any host: routes[0].cluster: \"ordres\" is not defined; defined are: orders; did you mean orders?",
        "14:15: cluster orders: clusters[0].protocol: \"spdy\"; allowed are http1, http2",
        "15:5: cluster orders: clusters[0].load-balancing: given here, and TrafficPolicy p is for the same service",
        "22:66: TrafficPolicy p: spec.panic.policy: \"scream\"",
        "26:18: TrafficPolicy p: metadata.name: \"p\" is given twice, first at ",
        "29:7: unclosed bracket",
    ];
    assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
    for (seen, expected) in mistakes.iter().zip(expected) {
        assert!(seen.starts_with(expected), "{expected:?} is not how this begins: {seen}");
    }
    let keys = ["workers", "access-log", "listeners"];
    assert!(keys.iter().all(|key| mistakes[2].contains(key)), "{}", mistakes[2]);
}

/// A mistake of a file is one whatever flags say over it; what only does not go together is judged with them.
#[test]
fn what_goes_with_flags_that_are_not_in_the_file_is_no_mistake_of_the_file() {
    for text in [
        "server-cert: a\n",
        "inbound: 127.0.0.1:1\n",
        "max-connections: 1\n",
        "mesh-crl: a\n",
        "access-log-format: json\n",
    ] {
        assert_eq!(mistakes(text), [""; 0], "{text}");
    }
}

#[test]
fn what_yaml_takes_for_a_number_is_a_text_where_one_is_wanted() {
    let text =
        "name: 7\nworkers: x\ninbound-min-version: 1.3\nlisteners: [{name: 8, address: '127.0.0.1:0'}]\n";
    let mistakes = mistakes(text);
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
}

/// The same list as serde's, which reads the file.
#[test]
fn every_key_that_is_told_as_allowed_is_taken() {
    let refused = mistakes("colour: red\n").remove(0);
    let allowed = refused.split_once("allowed are ").unwrap().1.split("; ").next().unwrap();
    assert!(allowed.split(", ").count() > 40, "{allowed}");
    let all: String = allowed.split(", ").map(|key| format!("{key}: null\n")).collect();
    assert_eq!(mistakes(&all), [""; 0]);
}
