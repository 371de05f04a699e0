//! Which path is which call. From the `google.api.http` annotations of etcd's `rpc.proto`; the older paths of leases
//! under `/v3/kv/` included, which clients still use.

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// A method of the port, `package.Service/Method`.
    Of {
        /// The path.
        path: &'static str,
        /// The method.
        method: &'static str,
    },
    /// etcd has it, Weft has something else.
    Refused {
        /// The path.
        path: &'static str,
        /// What to use.
        text: &'static str,
    },
}

impl Call {
    /// The path, of which there are few.
    pub(super) fn path(self) -> &'static str {
        match self {
            Call::Of { path, .. } | Call::Refused { path, .. } => path,
        }
    }
}

/// Paths and methods.
const METHODS: [(&str, &str); 44] = [
    ("/v3/kv/range", "etcdserverpb.KV/Range"),
    ("/v3/kv/put", "etcdserverpb.KV/Put"),
    ("/v3/kv/deleterange", "etcdserverpb.KV/DeleteRange"),
    ("/v3/kv/txn", "etcdserverpb.KV/Txn"),
    ("/v3/kv/compaction", "etcdserverpb.KV/Compact"),
    ("/v3/watch", "etcdserverpb.Watch/Watch"),
    ("/v3/lease/grant", "etcdserverpb.Lease/LeaseGrant"),
    ("/v3/lease/revoke", "etcdserverpb.Lease/LeaseRevoke"),
    ("/v3/kv/lease/revoke", "etcdserverpb.Lease/LeaseRevoke"),
    ("/v3/lease/keepalive", "etcdserverpb.Lease/LeaseKeepAlive"),
    ("/v3/lease/timetolive", "etcdserverpb.Lease/LeaseTimeToLive"),
    ("/v3/kv/lease/timetolive", "etcdserverpb.Lease/LeaseTimeToLive"),
    ("/v3/lease/leases", "etcdserverpb.Lease/LeaseLeases"),
    ("/v3/kv/lease/leases", "etcdserverpb.Lease/LeaseLeases"),
    ("/v3/cluster/member/add", "etcdserverpb.Cluster/MemberAdd"),
    ("/v3/cluster/member/remove", "etcdserverpb.Cluster/MemberRemove"),
    ("/v3/cluster/member/update", "etcdserverpb.Cluster/MemberUpdate"),
    ("/v3/cluster/member/list", "etcdserverpb.Cluster/MemberList"),
    ("/v3/cluster/member/promote", "etcdserverpb.Cluster/MemberPromote"),
    ("/v3/maintenance/alarm", "etcdserverpb.Maintenance/Alarm"),
    ("/v3/maintenance/status", "etcdserverpb.Maintenance/Status"),
    ("/v3/maintenance/defragment", "etcdserverpb.Maintenance/Defragment"),
    ("/v3/maintenance/hash", "etcdserverpb.Maintenance/Hash"),
    ("/v3/maintenance/hashkv", "etcdserverpb.Maintenance/HashKV"),
    ("/v3/maintenance/snapshot", "etcdserverpb.Maintenance/Snapshot"),
    ("/v3/maintenance/transfer-leadership", "etcdserverpb.Maintenance/MoveLeader"),
    ("/v3/maintenance/downgrade", "etcdserverpb.Maintenance/Downgrade"),
    ("/v3/auth/enable", "etcdserverpb.Auth/AuthEnable"),
    ("/v3/auth/disable", "etcdserverpb.Auth/AuthDisable"),
    ("/v3/auth/status", "etcdserverpb.Auth/AuthStatus"),
    ("/v3/auth/authenticate", "etcdserverpb.Auth/Authenticate"),
    ("/v3/auth/user/add", "etcdserverpb.Auth/UserAdd"),
    ("/v3/auth/user/get", "etcdserverpb.Auth/UserGet"),
    ("/v3/auth/user/list", "etcdserverpb.Auth/UserList"),
    ("/v3/auth/user/delete", "etcdserverpb.Auth/UserDelete"),
    ("/v3/auth/user/changepw", "etcdserverpb.Auth/UserChangePassword"),
    ("/v3/auth/user/grant", "etcdserverpb.Auth/UserGrantRole"),
    ("/v3/auth/user/revoke", "etcdserverpb.Auth/UserRevokeRole"),
    ("/v3/auth/role/add", "etcdserverpb.Auth/RoleAdd"),
    ("/v3/auth/role/get", "etcdserverpb.Auth/RoleGet"),
    ("/v3/auth/role/list", "etcdserverpb.Auth/RoleList"),
    ("/v3/auth/role/delete", "etcdserverpb.Auth/RoleDelete"),
    ("/v3/auth/role/grant", "etcdserverpb.Auth/RoleGrantPermission"),
    ("/v3/auth/role/revoke", "etcdserverpb.Auth/RoleRevokePermission"),
];

const LOCKS: &str =
    "etcd's Lock service is not offered by weft: use `weft lock`, or weft.v1.Semaphore over gRPC";
const ELECTIONS: &str =
    "etcd's Election service is not offered by weft: use `weft elect`, or weft.v1.Election over gRPC";

/// What is not offered.
const REFUSED: [(&str, &str); 7] = [
    ("/v3/lock/lock", LOCKS),
    ("/v3/lock/unlock", LOCKS),
    ("/v3/election/campaign", ELECTIONS),
    ("/v3/election/proclaim", ELECTIONS),
    ("/v3/election/leader", ELECTIONS),
    ("/v3/election/observe", ELECTIONS),
    ("/v3/election/resign", ELECTIONS),
];

/// What this path leads to.
pub(super) fn find(path: &str) -> Option<Call> {
    let method = METHODS.iter().find(|(known, _)| *known == path);
    let refused = || REFUSED.iter().find(|(known, _)| *known == path);
    method
        .map(|&(path, method)| Call::Of { path, method })
        .or_else(|| refused().map(|&(path, text)| Call::Refused { path, text }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::transcode;
    use super::*;

    /// All methods of etcd's API have a path, but the one that etcd gives none.
    #[test]
    fn every_path_leads_to_a_method_and_every_method_has_a_path() {
        let named: BTreeSet<String> = METHODS.iter().map(|(_, name)| (*name).to_owned()).collect();
        let existing: BTreeSet<String> =
            transcode::methods("etcdserverpb").filter(|name| name != "etcdserverpb.KV/RangeStream").collect();
        assert_eq!(named, existing);
        for (path, name) in METHODS {
            assert_eq!(find(path), Some(Call::Of { path, method: name }));
            assert_eq!(transcode::method(name).name(), name.rsplit('/').next().unwrap_or_default());
        }
    }

    #[test]
    fn paths_are_taken_as_they_are() {
        for unknown in ["/v3/kv/Range", "/v3/kv/range/", "/v3/kv", "/v3beta/kv/range", "/", ""] {
            assert_eq!(find(unknown), None, "{unknown}");
        }
        assert!(matches!(find("/v3/lock/lock"), Some(Call::Refused { .. })));
    }
}
