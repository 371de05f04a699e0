//! Who may do what, at which point of the log.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use weft_state::{
    auth::{Access, AuthChange, AuthError, Caller, Permission, PermissionKind, ROOT},
    command::{Acquire, Command, Compare, CompareOp, CompareTarget, Put, Response, Txn, TxnOp},
    error::StoreError,
    machine::Machine,
    requests::RequestId,
};

use crate::support::{Replica, b, delete, put, range};

impl Replica {
    fn change(&mut self, change: AuthChange) {
        self.run(Command::Auth(change).enclosed(Caller::Server, None)).expect("is changed");
    }

    fn add_user(&mut self, user: &str) {
        self.change(AuthChange::UserAdd { user: user.into(), password_hash: Some("hash".into()) });
    }

    fn grant_role(&mut self, user: &str, role: &str) {
        self.change(AuthChange::UserGrantRole { user: user.into(), role: role.into() });
    }

    fn grant(&mut self, role: &str, kind: PermissionKind, key: &str, end: &str) {
        let permission = Permission { kind, key: b(key), range_end: b(end) };
        self.change(AuthChange::RoleGrantPermission { role: role.into(), permission });
    }

    fn guarded() -> Self {
        let mut replica = Self::new();
        replica.add_user(ROOT);
        replica.grant_role(ROOT, ROOT);
        replica.add_user("app");
        replica.change(AuthChange::RoleAdd { role: "app".into() });
        replica.grant_role("app", "app");
        replica.change(AuthChange::Enable { token_key: b("key") });
        replica
    }

    fn caller(&self, user: &str) -> Caller {
        Caller::User { name: user.into(), since: self.machine.auth().since(user).expect("exists") }
    }

    fn run_as(&mut self, user: &str, command: Command) -> Result<Response, StoreError> {
        let caller = self.caller(user);
        self.run(command.enclosed(caller, None))
    }
}

fn denied<T>() -> Result<T, StoreError> {
    Err(AuthError::PermissionDenied.into())
}

/// A12: a command that was checked while it was allowed, and is applied after that was revoked, changes nothing.
#[test]
fn what_counts_is_what_is_allowed_where_the_command_is_applied() {
    let mut replica = Replica::guarded();
    replica.grant("app", PermissionKind::Write, "a", "");
    let (app, write) = (replica.caller("app"), put("a", "1"));
    assert_eq!(replica.machine.permits(&app, &write), Ok(()));
    replica.change(AuthChange::RoleRevokePermission { role: "app".into(), key: b("a"), range_end: b("") });
    assert_eq!(replica.run(write.clone().enclosed(app.clone(), None)), denied());
    replica.grant("app", PermissionKind::Write, "a", "");
    let changed = AuthChange::UserChangePassword { user: "app".into(), password_hash: "new".into() };
    replica.change(changed);
    assert_eq!(replica.run(write.enclosed(app, None)), Err(AuthError::OldRevision.into()));
    assert_eq!(replica.machine.revision(), 1);
}

/// A12: also one that was proposed by nobody before anybody was asked for.
#[test]
fn a_command_without_a_caller_is_refused_from_the_moment_on_that_callers_are_checked() {
    let mut replica = Replica::guarded();
    for command in [
        put("a", "1"),
        delete("a", ""),
        Command::Txn(Txn::default()),
        Command::Compact { revision: 1 },
        Command::LeaseGrant { id: 1, ttl_secs: 10 },
        Command::Auth(AuthChange::Disable),
    ] {
        let empty = matches!(&command, Command::Txn(_));
        let refused = replica.run(command);
        assert_eq!(refused.is_err(), !empty, "a transaction without operations needs nothing: {refused:?}");
    }
    assert_eq!(replica.run(Command::Noop), Ok(Response::Noop));
    let lease = replica.run_as("app", Command::LeaseGrant { id: 1, ttl_secs: 10 });
    assert!(lease.is_ok(), "any user may");
    assert_eq!(replica.expire(&[1]), 1, "time goes on whoever is checked");
    replica.run_as(ROOT, Command::Auth(AuthChange::Disable)).expect("root may");
    assert!(replica.run(put("a", "1")).is_ok());
}

#[test]
fn locks_are_for_those_who_may_write_their_keys() {
    let mut replica = Replica::guarded();
    replica.grant(
        "app",
        PermissionKind::Write,
        "weft/semaphore/lock%3Adeploy/",
        "weft/semaphore/lock%3Adeploy0",
    );
    replica.run_as("app", Command::LeaseGrant { id: 1, ttl_secs: 10 }).expect("is granted");
    let acquire = |name: &str| {
        let (name, request_id) = (name.to_owned(), 1);
        let (permits, limit, try_only, attempt) = (1, 0, false, 1);
        Command::Acquire(Acquire { name, lease: 1, permits, limit, request_id, try_only, attempt })
    };
    assert!(replica.run_as("app", acquire("lock:deploy")).is_ok());
    assert_eq!(replica.run_as("app", acquire("lock:other")), denied());
    assert_eq!(
        replica.run_as("app", put("weft/semaphore/lock%3Adeploy/x", "1")),
        Err(StoreError::ReservedKey)
    );
}

/// P14: who may not, may not hear the answer either; and who may again, gets it.
#[test]
fn a_repeated_request_is_checked_before_it_is_answered() {
    let mut replica = Replica::guarded();
    replica.grant("app", PermissionKind::Write, "a", "");
    let name = Some(RequestId { client: 1, seq: 1, after: 0, answered: 0 });
    let write = put("a", "1").enclosed(replica.caller("app"), name);
    let first = replica.apply(&write);
    replica.change(AuthChange::UserRevokeRole { user: "app".into(), role: "app".into() });
    assert_eq!(replica.run(write.clone()), denied());
    replica.grant_role("app", "app");
    let again = replica.apply(&write);
    assert_eq!((again.revision, &again.response), (first.revision, &first.response));
    assert!(again.events.is_empty());
    assert_eq!(replica.machine.revision(), first.revision, "it was not done again");
}

/// What passes where space is short passes in an envelope too.
#[test]
fn an_envelope_needs_the_space_of_what_is_in_it() {
    let name = Some(RequestId { client: 1, seq: 1, after: 0, answered: 0 });
    let enclosed = |command: Command| command.enclosed(Caller::Server, name);
    assert!(enclosed(put("a", "1")).needs_space());
    assert!(
        !enclosed(delete("a", "")).needs_space() && !enclosed(Command::Compact { revision: 1 }).needs_space()
    );
}

/// Also by a replica that took the state over as an image.
#[test]
fn users_and_remembered_requests_are_part_of_an_image() {
    let mut replica = Replica::guarded();
    replica.grant("app", PermissionKind::ReadWrite, "a", "c");
    let name = Some(RequestId { client: 1, seq: 1, after: 0, answered: 0 });
    let write = put("b", "1").enclosed(replica.caller("app"), name);
    let first = replica.apply(&write);
    let image = replica.machine.image();
    let machine = Machine::from_image(&image).expect("is readable");
    assert_eq!((machine.hash(), machine.image()), (replica.machine.hash(), image));
    let mut other = Replica { machine, ..replica.clone() };
    assert_eq!(other.apply(&write), replica.apply(&write));
    assert_eq!(other.apply(&write).revision, first.revision);
    assert_eq!(other.run_as("app", put("c", "1")), denied());
    other.change(AuthChange::RoleAdd { role: "more".into() });
    assert_ne!(other.machine.hash(), replica.machine.hash(), "a difference in users shows in the hash");
}

/// Keys over which the model and the machine are compared.
const KEYS: [&str; 5] = ["a", "a0", "b", "c", "d"];

#[derive(Debug, Clone)]
enum Step {
    Grant(usize, PermissionKind, usize, usize),
    Revoke(usize, usize, usize),
    GrantRole(usize, usize),
    RevokeRole(usize, usize),
    DeleteRole(usize),
    AddRole(usize),
}

/// The naive model: which user has which roles, and which role allows what, looked up one by one.
#[derive(Default)]
struct Model {
    roles: BTreeMap<usize, BTreeMap<(usize, usize), PermissionKind>>,
    users: BTreeMap<usize, BTreeSet<usize>>,
}

/// Ends of ranges by number: the key itself alone, up to another key, or open.
fn end(at: usize) -> &'static str {
    match at {
        0 => "",
        1 => "\0",
        at => KEYS[at - 2],
    }
}

fn in_range(key: &str, first: &str, end: &str) -> bool {
    match end {
        "" => key == first,
        "\0" => first <= key,
        end => first <= key && key < end,
    }
}

impl Model {
    fn may(&self, user: usize, access: Access, key: &str) -> bool {
        let allows = |kind: PermissionKind| {
            kind == PermissionKind::ReadWrite
                || kind == if access == Access::Read { PermissionKind::Read } else { PermissionKind::Write }
        };
        let roles = self.users.get(&user).into_iter().flatten().filter_map(|role| self.roles.get(role));
        roles.flatten().any(|((first, last), kind)| allows(*kind) && in_range(key, KEYS[*first], end(*last)))
    }
}

fn kind() -> impl Strategy<Value = PermissionKind> {
    prop::sample::select(vec![PermissionKind::Read, PermissionKind::Write, PermissionKind::ReadWrite])
}

fn step() -> impl Strategy<Value = Step> {
    let (key, end) = (0..KEYS.len(), 0..KEYS.len() + 2);
    prop_oneof![
        4 => (0..3usize, kind(), key.clone(), end.clone()).prop_map(|(r, k, a, z)| Step::Grant(r, k, a, z)),
        2 => (0..3usize, key, end).prop_map(|(r, a, z)| Step::Revoke(r, a, z)),
        3 => (0..2usize, 0..3usize).prop_map(|(u, r)| Step::GrantRole(u, r)),
        1 => (0..2usize, 0..3usize).prop_map(|(u, r)| Step::RevokeRole(u, r)),
        1 => (0..3usize).prop_map(Step::DeleteRole),
        2 => (0..3usize).prop_map(Step::AddRole),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// After any changes, what is allowed for each key is what the naive model says; for a transaction, what it says for
    /// all of its parts; and a refused command leaves no trace.
    #[test]
    fn permissions_equal_the_naive_model(steps in prop::collection::vec(step(), 1..40)) {
        let mut replica = Replica::guarded();
        let mut model = Model::default();
        let user = |at: usize| format!("u{at}");
        let role = |at: usize| format!("r{at}");
        for at in 0..2 {
            replica.add_user(&user(at));
        }
        for step in steps {
            let change = match step.clone() {
                Step::Grant(r, kind, a, z) => AuthChange::RoleGrantPermission {
                    role: role(r),
                    permission: Permission { kind, key: b(KEYS[a]), range_end: b(end(z)) },
                },
                Step::Revoke(r, a, z) => {
                    AuthChange::RoleRevokePermission { role: role(r), key: b(KEYS[a]), range_end: b(end(z)) }
                }
                Step::GrantRole(u, r) => AuthChange::UserGrantRole { user: user(u), role: role(r) },
                Step::RevokeRole(u, r) => AuthChange::UserRevokeRole { user: user(u), role: role(r) },
                Step::DeleteRole(r) => AuthChange::RoleDelete { role: role(r) },
                Step::AddRole(r) => AuthChange::RoleAdd { role: role(r) },
            };
            let before = replica.machine.hash();
            let done = replica.run(Command::Auth(change).enclosed(Caller::Server, None)).is_ok();
            let expected = match step {
                Step::Grant(r, kind, a, z) => {
                    let valid = z < 2 || KEYS[a] < end(z);
                    valid && model.roles.get_mut(&r).is_some_and(|role| { role.insert((a, z), kind); true })
                }
                Step::Revoke(r, a, z) => model.roles.get_mut(&r).is_some_and(|role| role.remove(&(a, z)).is_some()),
                Step::GrantRole(u, r) => model.roles.contains_key(&r) && { model.users.entry(u).or_default().insert(r); true },
                Step::RevokeRole(u, r) => model.users.get_mut(&u).is_some_and(|roles| roles.remove(&r)),
                Step::DeleteRole(r) => model.roles.remove(&r).is_some() && {
                    model.users.values_mut().for_each(|roles| { roles.remove(&r); });
                    true
                },
                Step::AddRole(r) => !model.roles.contains_key(&r) && { model.roles.insert(r, BTreeMap::new()); true },
            };
            prop_assert_eq!(done, expected, "{:?}", step);
            prop_assert!(done || replica.machine.hash() == before, "a refusal changed something");
            for u in 0..2 {
                let caller = replica.caller(&user(u));
                for key in KEYS {
                    for access in [Access::Read, Access::Write] {
                        let may = replica.machine.auth().check_range(&caller, access, key.as_bytes(), b"").is_ok();
                        prop_assert_eq!(may, model.may(u, access, key), "{:?} of {} by {}", access, key, u);
                    }
                }
                let compare = |key: &str| Compare {
                    key: b(key),
                    range_end: b(""),
                    op: CompareOp::Equal,
                    target: CompareTarget::Version(0),
                };
                let txn = Command::Txn(Txn {
                    compare: vec![compare("a")],
                    success: vec![TxnOp::Put(Put { key: b("b"), ..Put::default() })],
                    failure: vec![TxnOp::Txn(Txn { success: vec![TxnOp::Range(range("c", ""))], ..Txn::default() })],
                });
                let all = model.may(u, Access::Read, "a") && model.may(u, Access::Write, "b") && model.may(u, Access::Read, "c");
                prop_assert_eq!(replica.machine.permits(&caller, &txn).is_ok(), all);
            }
        }
    }
}
