//! What each command needs its caller to be allowed.
//!
//! Keys of clients: as etcd has it. Locks, semaphores, elections and the registry keep their state in keys under
//! `weft/`, which only their own commands write; whoever may write those keys may use them:
//!
//! | command | needs |
//! |---|---|
//! | put, delete | write; with the previous value, read too |
//! | put with a lease | write on every key that hangs on the lease |
//! | transaction | read on every compare, and what each operation of either branch needs |
//! | revoke a lease | any user, with write on every key that hangs on it |
//! | grant a lease | any user |
//! | compact; users and roles | the role `root` |
//! | semaphore or lock NAME | write on the prefix `weft/semaphore/NAME/` |
//! | election NAME | write on the prefix `weft/election/NAME/` |
//! | register, deregister | write on `weft/registry/SERVICE/INSTANCE_ID` |
//! | balancing of a service | write on `weft/mesh/load-balancing/SERVICE` |
//! | mesh configuration | write on `weft/mesh/config/KIND/NAME` of each document |

use super::{Access, AuthError, AuthState, Caller};
use crate::{
    command::{Command, DeleteRange, LeaseId, Put, Txn, TxnOp},
    lease::table::LeaseTable,
    recipes::{election, mesh_config, registry, semaphore},
};

/// Whether the caller may have this command carried out.
pub(crate) fn check(
    auth: &AuthState,
    leases: &LeaseTable,
    caller: &Caller,
    command: &Command,
) -> Result<(), AuthError> {
    if !auth.is_enabled() || *caller == Caller::Server {
        return Ok(());
    }
    let guard = Guard { auth, leases, caller };
    match command {
        Command::Put(put) => guard.put(put),
        Command::DeleteRange(delete) => guard.delete(delete),
        Command::Txn(txn) => guard.txn(txn),
        Command::Compact { .. } | Command::Auth(_) | Command::SetQuota { .. } => auth.check_admin(caller),
        Command::LeaseGrant { .. } => auth.check_user(caller),
        Command::LeaseRevoke { id } => {
            auth.check_user(caller)?;
            check_lease_keys(auth, leases, caller, Access::Write, *id)
        }
        Command::Acquire(acquire) => guard.write_prefix(&semaphore::prefix(&acquire.name)),
        Command::Release(release) => guard.write_prefix(&semaphore::prefix(&release.name)),
        Command::Campaign(campaign) => guard.write_prefix(&election::prefix(&campaign.name)),
        Command::Proclaim(proclaim) => guard.write_prefix(&election::prefix(&proclaim.name)),
        Command::Resign(resign) => guard.write_prefix(&election::prefix(&resign.name)),
        Command::Register(register) => {
            let instance = &register.instance;
            guard.write(&registry::instance_key(&instance.service, &instance.instance_id))
        }
        Command::Deregister { service, instance_id } => {
            guard.write(&registry::instance_key(service, instance_id))
        }
        Command::SetLoadBalancing { service, .. } => guard.write(&registry::load_balancing_key(service)),
        Command::SetMeshConfig(set) => {
            set.changes.iter().try_for_each(|c| guard.write(&mesh_config::key(&c.kind, &c.name)))
        }
        // Only servers propose these.
        Command::LeaseExpire { .. }
        | Command::LeaseCheckpoint { .. }
        | Command::BeginEpoch { .. }
        | Command::Noop => Ok(()),
        // Its own caller counts; see `Machine::apply`.
        Command::Enclosed(envelope) => check(auth, leases, &envelope.caller, &envelope.command),
    }
}

/// Whether the caller may read, or write, each key that hangs on a lease. A lease that does not exist has none.
pub(crate) fn check_lease_keys(
    auth: &AuthState,
    leases: &LeaseTable,
    caller: &Caller,
    access: Access,
    id: LeaseId,
) -> Result<(), AuthError> {
    if auth.check_admin(caller).is_ok() {
        return Ok(());
    }
    let Some(lease) = leases.get(id) else { return Ok(()) };
    lease.keys.iter().try_for_each(|key| auth.check_range(caller, access, key, b""))
}

struct Guard<'a> {
    auth: &'a AuthState,
    leases: &'a LeaseTable,
    caller: &'a Caller,
}

impl Guard<'_> {
    fn write(&self, key: &[u8]) -> Result<(), AuthError> {
        self.auth.check_range(self.caller, Access::Write, key, b"")
    }

    fn write_prefix(&self, prefix: &str) -> Result<(), AuthError> {
        self.auth.check_prefix(self.caller, Access::Write, prefix)
    }

    fn put(&self, put: &Put) -> Result<(), AuthError> {
        self.write(&put.key)?;
        // Whoever could hang a key on a lease could end it early or late by that.
        check_lease_keys(self.auth, self.leases, self.caller, Access::Write, put.lease)?;
        if put.prev_kv { self.auth.check_range(self.caller, Access::Read, &put.key, b"") } else { Ok(()) }
    }

    fn delete(&self, delete: &DeleteRange) -> Result<(), AuthError> {
        self.auth.check_range(self.caller, Access::Write, &delete.key, &delete.range_end)?;
        if delete.prev_kv {
            return self.auth.check_range(self.caller, Access::Read, &delete.key, &delete.range_end);
        }
        Ok(())
    }

    fn txn(&self, txn: &Txn) -> Result<(), AuthError> {
        for compare in &txn.compare {
            self.auth.check_range(self.caller, Access::Read, &compare.key, &compare.range_end)?;
        }
        txn.success.iter().chain(&txn.failure).try_for_each(|op| match op {
            TxnOp::Range(range) => {
                self.auth.check_range(self.caller, Access::Read, &range.key, &range.range_end)
            }
            TxnOp::Put(put) => self.put(put),
            TxnOp::DeleteRange(delete) => self.delete(delete),
            TxnOp::Txn(txn) => self.txn(txn),
        })
    }
}
