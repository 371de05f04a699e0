//! Which numbers a server shows, read from their owners at each scrape.

use std::sync::Arc;

use weft_core::process::resident_bytes;
use weft_gossip::driver::GossipHandle;
use weft_gossip::member::MemberState;

use crate::api::weft::WeftApi;
use crate::backup::BackupStats;
use crate::catalog::Catalog;
use crate::dns::server::DnsCounters;
use crate::listener::ListenerMetrics;
use crate::raft::Coordinator;
use crate::telemetry::{Telemetry, raise, set};
use crate::watch_driver::Watches;
use crate::xds::XdsServer;

/// Counters of a port.
pub(super) fn listener(telemetry: &Telemetry, port: &str) -> ListenerMetrics {
    let r = telemetry.registry();
    ListenerMetrics {
        accepted: r
            .counters("weft_connections_accepted", "Connections accepted, by port", &["port"])
            .with(&[port]),
        shed: r
            .counters("weft_connections_shed", "Connections closed because the port had too many", &["port"])
            .with(&[port]),
        open: r.gauges("weft_connections_open", "Connections open now, by port", &["port"]).with(&[port]),
    }
}

/// Counters of DNS.
pub(super) fn dns(telemetry: &Telemetry) -> DnsCounters {
    let r = telemetry.registry();
    DnsCounters {
        queries: r.counter("weft_dns_queries", "DNS packets received"),
        dropped: r.counter("weft_dns_dropped", "DNS packets that deserved no answer"),
        shed: r.counter("weft_dns_connections_shed", "DNS connections closed because there were too many"),
    }
}

/// The Raft group as this server sees it.
pub(super) fn raft(telemetry: &Telemetry, coordinator: Coordinator) {
    let r = telemetry.registry();
    let leads = r.gauge("weft_raft_is_leader", "1 while this server leads the group");
    let has_leader = r.gauge("weft_raft_has_leader", "1 while this server knows of a leader");
    let term = r.gauge("weft_raft_term", "Current term");
    let last = r.gauge("weft_raft_last_log_index", "Last entry in the log of this server");
    let committed = r.gauge("weft_raft_commit_index", "Last entry known to be committed");
    let applied = r.gauge("weft_raft_applied_index", "Last entry applied on this server");
    let snapshot = r.gauge("weft_raft_snapshot_index", "Last entry in the newest snapshot");
    let wal = r.gauge("weft_raft_wal_bytes", "Bytes of the log on disk");
    let fsyncs = r.counter("weft_raft_fsyncs", "Syncs of the log since start");
    let quorum = r.gauge(
        "weft_raft_quorum_age_milliseconds",
        "On the leader: time since a majority last confirmed it; -1 elsewhere",
    );
    let lag = r.gauge(
        "weft_raft_replication_lag_entries",
        "On the leader: entries that the slowest server of the group does not have yet; 0 elsewhere",
    );
    let agreed = r.gauge(
        "weft_raft_agreed_index",
        "On the leader: last entry after which the servers' states were found to be the same; 0: not compared yet",
    );
    let slowest = r.gauge("weft_raft_fsync_slowest_microseconds", "The slowest sync of the log since start");
    let peers = r.gauges("weft_raft_peers", "Servers of the group, by part", &["role"]);
    telemetry.on_scrape(move || {
        let s = coordinator.status();
        leads.set(i64::from(coordinator.is_leader()));
        has_leader.set(i64::from(coordinator.has_leader()));
        set(&term, s.term);
        set(&last, s.last_log);
        set(&committed, s.committed);
        set(&applied, s.applied);
        set(&snapshot, s.snapshot);
        set(&wal, s.wal_bytes);
        set(&agreed, s.agreed);
        raise(&fsyncs, s.fsyncs);
        set(&slowest, u64::try_from(s.fsync_slowest.as_micros()).unwrap_or(u64::MAX));
        let age = s.quorum_ack_age.map_or(-1, |age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        quorum.set(age);
        let behind = s.peers.iter().filter_map(|p| p.matched).map(|m| s.last_log.saturating_sub(m)).max();
        set(&lag, behind.unwrap_or(0));
        let voters = s.peers.iter().filter(|p| p.voter).count();
        set(&peers.with(&["voter"]), voters as u64);
        set(&peers.with(&["learner"]), (s.peers.len() - voters) as u64);
    });
}

/// The replicated state.
pub(super) fn store(telemetry: &Telemetry, coordinator: Coordinator) {
    let r = telemetry.registry();
    let revision = r.gauge("weft_store_revision", "Current revision");
    let compacted = r.gauge("weft_store_compacted_revision", "Oldest readable revision; 0: all of them");
    let keys = r.gauge("weft_store_keys", "Keys that exist now");
    let bytes = r.gauge("weft_store_bytes", "Bytes of keys and values, old versions included");
    let changes = r.gauge("weft_store_history_changes", "Changes that can be read and watched from");
    let past = r.gauge("weft_store_history_bytes", "Bytes of values that were replaced or deleted");
    let backlog =
        r.gauge("weft_store_scrub_backlog_changes", "Compacted changes whose memory is not given back yet");
    let quotas = r.gauges("weft_store_quotas", "Quotas by how full they are", &["state"]);
    let leases = r.gauge("weft_leases", "Leases that are alive");
    telemetry.on_scrape(move || {
        coordinator.read(|m| {
            revision.set(m.revision());
            compacted.set(m.compacted());
            set(&keys, m.key_count());
            set(&bytes, m.data_bytes());
            let held = m.history_held();
            set(&changes, held.changes);
            set(&past, held.bytes);
            set(&backlog, held.backlog);
            let (mut over_soft, mut full, mut other) = (0, 0, 0);
            for view in m.quotas() {
                match view.used_bytes {
                    used if used >= view.quota.hard_bytes => full += 1,
                    used if used > view.quota.soft_bytes => over_soft += 1,
                    _ => other += 1,
                }
            }
            set(&quotas.with(&["full"]), full);
            set(&quotas.with(&["over_soft"]), over_soft);
            set(&quotas.with(&["ok"]), other);
            set(&leases, m.all_lease_terms().len() as u64);
        });
    });
}

/// This process.
pub(super) fn process(telemetry: &Telemetry) {
    let r = telemetry.registry();
    let memory = r.gauge(
        "process_resident_memory_bytes",
        "Resident memory of this process, under the name that it has everywhere",
    );
    telemetry.on_scrape(move || set(&memory, resident_bytes().unwrap_or(0)));
}

/// Backups.
pub(super) fn backups(telemetry: &Telemetry, stats: BackupStats) {
    let r = telemetry.registry();
    let done = r.counter("weft_backups", "Backups made since start");
    let failed =
        r.counter("weft_backup_failures", "Attempts to make a backup that failed; they are repeated");
    let bytes = r.gauge("weft_backup_last_bytes", "Bytes of the last backup");
    let revision = r.gauge("weft_backup_last_revision", "Revision of the last backup");
    let age =
        r.gauge("weft_backup_last_age_seconds", "Time since the last backup was made; -1: none since start");
    telemetry.on_scrape(move || {
        raise(&done, stats.done());
        raise(&failed, stats.failed());
        set(&bytes, stats.bytes());
        set(&revision, stats.revision());
        age.set(stats.age().map_or(-1, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX)));
    });
}

/// The log on disk.
pub(super) fn wal(telemetry: &Telemetry, coordinator: &Coordinator) {
    let r = telemetry.registry();
    let stats = coordinator.wal_stats().clone();
    let segments = r.gauge("weft_wal_segments", "Segment files of the log, spares left out");
    let entries = r.counter("weft_wal_entries", "Entries written to the log since start");
    let bytes = r.counter("weft_wal_written_bytes", "Bytes written to the log since start");
    let fsync = r.counter("weft_wal_fsync_microseconds", "Time spent in syncs of the log since start");
    let made = r.counter("weft_wal_files_made", "Segment files made since start");
    let reused = r.counter("weft_wal_files_reused", "Segment files kept for another use since start");
    let full =
        r.gauge("weft_wal_disk_full", "1 while there is no space for the next segment: writes are refused");
    let stalled = r.gauge("weft_wal_stalled", "1 while the log waits for space with something in hand");
    telemetry.on_scrape(move || {
        set(&segments, stats.segments());
        raise(&entries, stats.appended_entries());
        raise(&bytes, stats.appended_bytes());
        raise(&fsync, u64::try_from(stats.fsync_total().as_micros()).unwrap_or(u64::MAX));
        let (files_made, files_reused) = stats.files_made_and_reused();
        raise(&made, files_made);
        raise(&reused, files_reused);
        full.set(i64::from(stats.is_full()));
        stalled.set(i64::from(stats.is_stalled()));
    });
}

/// Watches, waits and proxies.
pub(super) fn clients(telemetry: &Telemetry, watches: Arc<Watches>, weft: Arc<WeftApi>, xds: Arc<XdsServer>) {
    let r = telemetry.registry();
    let open = r.gauge("weft_watches_open", "Watchers open on this server");
    let waiting = r.gauge("weft_waits_open", "Acquire and campaign calls under way on this server");
    let proxies = r.gauge("weft_xds_proxies", "Proxies connected to this server");
    telemetry.on_scrape(move || {
        set(&open, watches.count() as u64);
        set(&waiting, weft.waiting() as u64);
        set(&proxies, xds.connected() as u64);
    });
}

/// Members and services.
pub(super) fn mesh(telemetry: &Telemetry, gossip: GossipHandle, catalog: Catalog) {
    let r = telemetry.registry();
    gossip.register_metrics(r);
    let members = r.gauges("weft_gossip_members", "Members of the pool as this server sees them", &["state"]);
    let services = r.gauge("weft_catalog_services", "Services with at least one instance");
    let instances = r.gauges("weft_catalog_instances", "Instances of all services", &["health"]);
    telemetry.on_scrape(move || {
        let all = gossip.members();
        let states =
            [("alive", MemberState::Alive), ("suspect", MemberState::Suspect), ("down", MemberState::Down)];
        for (label, state) in states {
            set(&members.with(&[label]), all.iter().filter(|m| m.state == state).count() as u64);
        }
        let known = catalog.services();
        set(&services, known.len() as u64);
        let healthy: usize = known.iter().map(|s| s.healthy).sum();
        let total: usize = known.iter().map(|s| s.total).sum();
        set(&instances.with(&["passing"]), healthy as u64);
        set(&instances.with(&["other"]), (total - healthy) as u64);
    });
}
