//! The state machine: the only place where replicated state changes.
//!
//! The write flow ends here: the API parses to one [`Command`], the log commits it, and every replica
//! applies it to its own [`Machine`]. `apply` reads no clock, no randomness and no configuration, and
//! either carries a command out whole or answers an error and has changed nothing.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    auth::{Access, AuthError, AuthState, Caller, guard},
    command::{Applied, Command, Event, KeyValue, LeaseId, Range, RangeResponse, Response, Revision},
    defect::{Defect, planted},
    error::StoreError,
    lease::{self, LeaseTerms},
    recipes::{Recipes, mesh_config, registry},
    requests::{Requests, Seen},
    store::{
        HistoryChunk, HistoryQuery, KeyRange, Store,
        compaction::SCRUB_PER_COMMAND,
        digest::Digest,
        image::{Beside, LogPosition},
        key::Key,
        txn,
    },
    watch::SharedEvent,
};
pub use crate::{
    recipes::{
        election::{ElectionCandidate, ElectionView},
        mesh_config::MeshDocument,
        registry::Registered,
        semaphore::{SemaphoreHolder, SemaphoreView, SemaphoreWaiter},
    },
    store::{
        compaction::HistoryHeld,
        image::{ImageCheck, ImageError, ImageLoader, ImageWalk, WalkLost},
        quota::{QUOTAS_MAX, QuotaView},
        range::RangeCursor,
    },
};

/// All replicated state.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    store: Store,
    recipes: Recipes,
    auth: Arc<AuthState>,
    requests: Arc<Requests>,
    applied_index: u64,
    applied_term: u64,
}

/// A lease as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseView {
    /// Its id.
    pub id: LeaseId,
    /// Granted time to live.
    pub ttl_secs: i64,
    /// Keys attached to it, sorted.
    pub keys: Vec<Bytes>,
}

impl Machine {
    /// The empty state: revision 1, applied index 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Carries out one committed command; its index and term become the applied ones in the same step.
    ///
    /// # Panics
    /// If `index` is not above every earlier one: applying a command twice would make replicas differ.
    pub fn apply(&mut self, index: u64, term: u64, command: &Command) -> Applied {
        self.advance(index, term);
        self.apply_one(term, command)
    }

    /// Carries out the commands of one log entry, in order; otherwise as [`Machine::apply`].
    pub fn apply_batch(&mut self, index: u64, term: u64, commands: &[Command]) -> Vec<Applied> {
        self.advance(index, term);
        commands.iter().map(|command| self.apply_one(term, command)).collect()
    }

    fn advance(&mut self, index: u64, term: u64) {
        assert!(
            index > self.applied_index,
            "log index {index} applied after {}: commands are applied once and in order",
            self.applied_index
        );
        self.applied_index = index;
        self.applied_term = term;
    }

    fn apply_one(&mut self, term: u64, command: &Command) -> Applied {
        let before = self.store.revision();
        let mut events = Vec::new();
        let mut replayed = None;
        let response = match command {
            Command::Enclosed(_) => self.open(term, command, &mut events).map(|(response, revision)| {
                replayed = revision;
                response
            }),
            bare => self
                .permits(&Caller::Anonymous, bare)
                .map_err(StoreError::from)
                .and_then(|()| self.carry_out(term, bare, &mut events)),
        };
        let revision = self.store.revision();
        assert!(
            (response.is_ok() && replayed.is_none()) || (events.is_empty() && revision == before),
            "a refused or repeated command changes nothing"
        );
        self.store.scrub(SCRUB_PER_COMMAND + 2 * events.len());
        Applied { revision: replayed.unwrap_or(revision), response, events }
    }

    /// Carries out what is in an envelope, unless the caller may not, or it was carried out before: then it is
    /// answered as it was then, with the revision as it was then.
    fn open(
        &mut self,
        term: u64,
        enclosed: &Command,
        events: &mut Vec<Event>,
    ) -> Result<(Response, Option<Revision>), StoreError> {
        let Command::Enclosed(envelope) = enclosed else { return Err(StoreError::NestedEnvelope) };
        let command = &envelope.command;
        if matches!(command, Command::Enclosed(_)) {
            return Err(StoreError::NestedEnvelope);
        }
        self.permits(&envelope.caller, command)?;
        let Some(request) = envelope.request else {
            return Ok((self.carry_out(term, command, events)?, None));
        };
        if let Seen::Before(revision, response) = self.requests.look_up(request, command)? {
            return Ok((response, Some(revision)));
        }
        let response = self.carry_out(term, command, events)?;
        let revision = self.store.revision();
        Arc::make_mut(&mut self.requests).keep(self.applied_index, request, command, revision, &response);
        Ok((response, None))
    }

    fn carry_out(
        &mut self,
        term: u64,
        command: &Command,
        events: &mut Vec<Event>,
    ) -> Result<Response, StoreError> {
        let Self { store, recipes, auth, .. } = self;
        match command {
            Command::Put(put) => {
                txn::check_put(put)?;
                let prev_kv = store.write(events, |writer| writer.put(put))?;
                Ok(Response::Put { prev_kv })
            }
            Command::DeleteRange(delete) => {
                txn::check_delete(delete)?;
                let (deleted, prev_kvs) = store.revise(events, |writer| writer.delete_range(delete));
                Ok(Response::DeleteRange { deleted, prev_kvs })
            }
            Command::Txn(txn) => {
                txn::check_txn(txn)?;
                store.write(events, |writer| writer.txn(txn)).map(Response::Txn)
            }
            Command::Compact { revision } => store.compact(*revision).map(|()| Response::Compact),
            Command::LeaseGrant { id, ttl_secs } => {
                lease::check_ttl(*ttl_secs)?;
                if *id == 0 {
                    return Err(StoreError::LeaseNotFound { id: 0 });
                }
                if store.leases.contains(*id) {
                    return Err(StoreError::LeaseExists { id: *id });
                }
                store.leases.set(*id, *ttl_secs);
                Ok(Response::LeaseGrant { id: *id, ttl_secs: *ttl_secs })
            }
            Command::LeaseRevoke { id } => {
                store.revoke(events, *id)?;
                recipes.sessions_ended(store, events, 0);
                Ok(Response::LeaseRevoke)
            }
            Command::LeaseExpire { term: seen_in, leases } => {
                let mut expired = 0;
                // An entry that a former leader's driver sent through the present leader carries the old
                // term: what it saw may have been renewed since.
                if *seen_in == term {
                    for (id, grant) in leases {
                        let same = store.leases.get(*id).is_some_and(|lease| lease.grant == *grant);
                        if same && planted(Defect::KeyOutlivesLease) {
                            store.leases.remove(*id);
                            continue;
                        }
                        expired += u64::from(same && store.revoke(events, *id).is_ok());
                    }
                    // After all of them, so that nothing is granted to a session that ends in this batch.
                    recipes.sessions_ended(store, events, 0);
                }
                Ok(Response::LeaseExpire { expired })
            }
            Command::LeaseCheckpoint { term: seen_in, leases } => {
                // As for an expiry: it may have been renewed in a later term.
                let current = leases.iter().filter(|_| *seen_in == term);
                let noted = current.filter(|lease| store.leases.note_remaining(lease)).count() as u64;
                Ok(Response::LeaseCheckpoint { noted })
            }
            Command::Acquire(acquire) => {
                recipes.semaphores.acquire(store, events, acquire).map(Response::Acquire)
            }
            Command::Release(release) => {
                let released = recipes.semaphores.release(store, events, release)?;
                Ok(Response::Release { released })
            }
            Command::Campaign(campaign) => {
                recipes.elections.campaign(store, events, campaign).map(Response::Campaign)
            }
            Command::Proclaim(proclaim) => {
                recipes.elections.proclaim(store, events, proclaim).map(|()| Response::Proclaim)
            }
            Command::Resign(resign) => {
                let resigned = recipes.elections.resign(store, events, resign)?;
                Ok(Response::Resign { resigned })
            }
            Command::Register(register) => {
                let lease = recipes.registry.register(store, events, register)?;
                Ok(Response::Register { lease })
            }
            Command::Deregister { service, instance_id } => {
                let Some(lease) = recipes.registry.get(service, instance_id).map(|found| found.lease) else {
                    return Ok(Response::Deregister { lease: None });
                };
                store.revoke(events, lease)?;
                recipes.sessions_ended(store, events, 0);
                Ok(Response::Deregister { lease: Some(lease) })
            }
            Command::SetLoadBalancing { service, policy } => {
                registry::set_load_balancing(store, events, service, policy)?;
                Ok(Response::SetLoadBalancing)
            }
            Command::SetMeshConfig(set) => {
                mesh_config::set(store, events, set)?;
                Ok(Response::SetMeshConfig)
            }
            Command::Noop => Ok(Response::Noop),
            Command::BeginEpoch { revisions } => {
                let current = store.revision();
                let begun = *revisions > 0 && store.begin_epoch(*revisions);
                let requested = current.saturating_add(*revisions);
                begun.then_some(Response::Noop).ok_or(StoreError::FutureRevision { requested, current })
            }
            Command::Auth(change) => auth.change(change).map(|()| Response::Auth),
            Command::Enclosed(_) => Err(StoreError::NestedEnvelope),
            Command::SetQuota { prefix, quota } => {
                store.set_quota(prefix, *quota).map(|()| Response::SetQuota)
            }
        }
    }

    /// Users, roles and whether they count. Cheap to clone.
    pub fn auth(&self) -> &Arc<AuthState> {
        &self.auth
    }

    /// Whether the caller may have this command carried out: what `apply` will check as well, at its own
    /// point of the log.
    ///
    /// # Errors
    /// Always none while authentication is off.
    pub fn permits(&self, caller: &Caller, command: &Command) -> Result<(), AuthError> {
        guard::check(&self.auth, &self.store.leases, caller, command)
    }

    /// Whether the caller may read, or write, all keys of a lease, which is what it takes to see them, or to
    /// renew it. A lease that does not exist has none.
    ///
    /// # Errors
    /// Always none while authentication is off.
    pub fn permits_lease(&self, caller: &Caller, access: Access, id: LeaseId) -> Result<(), AuthError> {
        self.auth.check_user(caller)?;
        guard::check_lease_keys(&self.auth, &self.store.leases, caller, access, id)
    }

    /// Clients whose requests are remembered, and the bytes that takes.
    pub fn remembered_clients(&self) -> (usize, usize) {
        (self.requests.len(), self.requests.bytes())
    }

    /// Index of the last applied log entry; 0 if none.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// Term of the last applied log entry; 0 if none.
    pub fn applied_term(&self) -> u64 {
        self.applied_term
    }

    /// Current revision; 1 when empty.
    pub fn revision(&self) -> Revision {
        self.store.revision()
    }

    /// Oldest readable revision; 0 if nothing was ever compacted. A watch may start at it.
    pub fn compacted(&self) -> Revision {
        self.store.compacted()
    }

    /// Reads keys, those under `weft/` too.
    ///
    /// # Errors
    /// `EmptyKey`; `Compacted` and `FutureRevision` for a revision that cannot be read.
    pub fn range(&self, r: &Range) -> Result<RangeResponse, StoreError> {
        self.store.range(r)
    }

    /// Begins to read a range chunk by chunk, in key order: its sort is not looked at. All chunks are of one
    /// revision, and no more is in memory than one of them (P11).
    ///
    /// # Errors
    /// As [`Machine::range`].
    pub fn range_cursor(&self, r: &Range) -> Result<RangeCursor, StoreError> {
        self.store.range_cursor(r)
    }

    /// The next key-values of a cursor, at most `keys_max` and of about `bytes_max` bytes in all, and at least
    /// one if there is one near; none when that was all. A chunk may be empty where few of many keys match.
    ///
    /// # Errors
    /// `Compacted` if the cursor's revision was compacted meanwhile: part of an answer never passes for the
    /// whole (A10).
    pub fn range_chunk(
        &self,
        cursor: &mut RangeCursor,
        keys_max: usize,
        bytes_max: usize,
    ) -> Result<Option<Vec<KeyValue>>, StoreError> {
        self.store.range_chunk(cursor, keys_max.max(1), bytes_max.max(1))
    }

    /// What changed in a range of keys (etcd's conventions) from revision `from` to `to_inclusive`, in
    /// order, previous values included. Whole revisions: it stops after the one that reaches `max_events`.
    ///
    /// # Errors
    /// `Compacted` if `from` is below [`Machine::compacted`].
    pub fn events(
        &self,
        key: &[u8],
        range_end: &[u8],
        from: Revision,
        to_inclusive: Revision,
        max_events: usize,
    ) -> Result<Vec<Arc<SharedEvent>>, StoreError> {
        let query = HistoryQuery {
            range: KeyRange::new(key, range_end),
            from,
            to: to_inclusive,
            events_max: max_events.max(1),
            bytes_max: usize::MAX,
            prev_kv: true,
            no_put: false,
            no_delete: false,
        };
        self.history(&query).map(|chunk| chunk.events)
    }

    pub(crate) fn history(&self, query: &HistoryQuery<'_>) -> Result<HistoryChunk, StoreError> {
        self.store.history(query)
    }

    /// Keys that exist now, those under `weft/` included.
    pub fn key_count(&self) -> u64 {
        self.store.key_count()
    }

    /// Bytes of all keys and values held, old versions included.
    pub fn data_bytes(&self) -> u64 {
        self.store.data_bytes()
    }

    /// All quotas, sorted by prefix.
    pub fn quotas(&self) -> Vec<QuotaView> {
        self.store.quotas().collect()
    }

    /// What is held of the past.
    pub fn history_held(&self) -> HistoryHeld {
        self.store.history_held()
    }

    /// The newest revision that leaves at least `changes` changes readable if compacted to; none if there
    /// are not more than that.
    pub fn revision_keeping(&self, changes: u64) -> Option<Revision> {
        self.store.revision_keeping(changes)
    }

    /// A lease with its keys; none if there is no such lease.
    pub fn lease(&self, id: LeaseId) -> Option<LeaseView> {
        let lease = self.store.leases.get(id)?;
        Some(LeaseView { id, ttl_secs: lease.ttl_secs, keys: lease.keys.iter().map(Key::to_bytes).collect() })
    }

    /// A lease's granted time to live, without its keys.
    pub fn lease_ttl_secs(&self, id: LeaseId) -> Option<i64> {
        self.store.leases.get(id).map(|lease| lease.ttl_secs)
    }

    /// All leases, by id.
    pub fn leases(&self) -> Vec<LeaseId> {
        self.store.leases.iter().map(|(id, _)| id).collect()
    }

    /// What a leader's clock needs to know of a lease; none if there is no such lease.
    pub fn lease_terms(&self, id: LeaseId) -> Option<LeaseTerms> {
        self.store.leases.get(id).map(|lease| lease.terms(id))
    }

    /// [`Machine::lease_terms`] of all leases, by id: what a new leader's clock starts from.
    pub fn all_lease_terms(&self) -> impl ExactSizeIterator<Item = LeaseTerms> {
        self.store.leases.iter().map(|(id, lease)| lease.terms(id))
    }

    /// A semaphore; none if it has no holder, no waiter and no limit of its own.
    pub fn semaphore(&self, name: &str) -> Option<SemaphoreView> {
        self.recipes.semaphores.view(name)
    }

    /// Names of all semaphores, sorted.
    pub fn semaphores(&self) -> Vec<String> {
        self.recipes.semaphores.names().cloned().collect()
    }

    /// An election; none if nobody leads or waits.
    pub fn election(&self, name: &str) -> Option<ElectionView> {
        self.recipes.elections.view(name)
    }

    /// Names of all elections, sorted.
    pub fn elections(&self) -> Vec<String> {
        self.recipes.elections.names().cloned().collect()
    }

    /// Registered instances of one service or of all, sorted by service and instance id.
    pub fn registered(&self, service: Option<&str>) -> Vec<Registered> {
        self.recipes.registry.iter(service).cloned().collect()
    }

    /// One registered instance.
    pub fn registered_instance(&self, service: &str, instance_id: &str) -> Option<Registered> {
        self.recipes.registry.get(service, instance_id).cloned()
    }

    /// The load-balancing policy set for a service.
    pub fn load_balancing(&self, service: &str) -> Option<String> {
        registry::load_balancing(&self.store, service)
    }

    /// The revision of the last change of the mesh's configuration (0: none yet), and all its documents.
    pub fn mesh_config(&self) -> (Revision, Vec<MeshDocument>) {
        (mesh_config::generation(&self.store), mesh_config::documents(&self.store))
    }

    /// A hash of what a read at the current revision can find, of leases, of the two revisions, of users and roles and
    /// of the requests that are remembered; equal on replicas that applied the same commands (A09, A12). Costs next to
    /// nothing: most of it is kept up to date with each change.
    pub fn hash(&self) -> u64 {
        Digest::new(DIGEST_DOMAIN)
            .word(self.store.hash())
            .word(self.auth.digest())
            .word(self.requests.digest())
            .finish()
    }

    /// The whole state as bytes: history that is not compacted, leases and the applied index included.
    /// Equal states have equal images. Everything at once; a server uses [`Machine::begin_image`].
    pub fn image(&self) -> Vec<u8> {
        let mut walk = ImageWalk::of(&self.store, self.beside(), self.position());
        let mut image = Vec::with_capacity(self.store.data_bytes() as usize);
        while walk.step(&self.store, &mut image).expect("the machine is borrowed, so that nobody replaces it")
        {
        }
        image
    }

    /// The same, piece by piece.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn write_image<E>(&self, mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut walk = ImageWalk::of(&self.store, self.beside(), self.position());
        let mut piece = Vec::new();
        let mut more = true;
        while more {
            more = walk
                .step(&self.store, &mut piece)
                .expect("the machine is borrowed, so that nobody replaces it");
            write(&piece)?;
            piece.clear();
        }
        Ok(())
    }

    /// Moves on to a new life of the same keys: the revision grows by `revisions`, all history before that is
    /// compacted, and the state stands at one log entry further on. If `revisions` is larger than the number of
    /// changes that this state has not seen, no revision and no fencing token that was ever answered is answered
    /// again (P17, L11), and whoever watched the former life hears `Compacted`. False, and nothing happens, if
    /// `revisions` is not positive or the sum is out of range.
    ///
    /// For a state that was saved and starts again elsewhere. In a log it is [`Command::BeginEpoch`].
    pub fn begin_epoch(&mut self, revisions: Revision) -> bool {
        if revisions <= 0 || !self.store.begin_epoch(revisions) {
            return false;
        }
        self.applied_index += 1;
        self.applied_term = self.applied_term.max(1);
        true
    }

    /// Begins an image of this moment, in constant time. While it is written, commands may be applied; what
    /// it needs is kept until it is dropped.
    pub fn begin_image(&mut self) -> ImageWalk {
        let position = self.position();
        let beside = self.beside();
        ImageWalk::begin(&mut self.store, beside, position)
    }

    /// Appends the next bytes of an image, some tens of KiB at most but for larger values; false when that was
    /// all. All of them are what [`Machine::image`] would have answered at its begin (P19).
    ///
    /// # Errors
    /// If the walk was not begun on this machine.
    pub fn image_step(&self, walk: &mut ImageWalk, out: &mut Vec<u8>) -> Result<bool, WalkLost> {
        walk.step(&self.store, out)
    }

    fn position(&self) -> LogPosition {
        LogPosition { index: self.applied_index, term: self.applied_term }
    }

    fn beside(&self) -> Beside {
        Beside { auth: self.auth.clone(), requests: self.requests.clone() }
    }

    /// Undoes [`Machine::image`].
    ///
    /// # Errors
    /// If the bytes are cut, changed, or written by a newer build.
    pub fn from_image(bytes: &[u8]) -> Result<Machine, ImageError> {
        let mut loader = ImageLoader::new();
        loader.feed(bytes)?;
        Self::from_loader(loader)
    }

    /// The machine whose image a loader was fed with.
    ///
    /// # Errors
    /// If the image is not complete or does not fit together.
    pub fn from_loader(loader: ImageLoader) -> Result<Machine, ImageError> {
        let (store, Beside { auth, requests }, position) = loader.finish()?;
        let recipes = Recipes::load(&store).map_err(|what| ImageError::Inconsistent { what })?;
        Ok(Self {
            store,
            recipes,
            auth,
            requests,
            applied_index: position.index,
            applied_term: position.term,
        })
    }

    /// Gives back memory of at most `max` compacted changes; false if there is nothing left to give back.
    /// Each `apply` gives back some; this is for a server that has nothing else to do. Changes nothing that
    /// can be seen, so replicas may do it at different times.
    pub fn scrub(&mut self, max: usize) -> bool {
        self.store.scrub(max)
    }
}

const DIGEST_DOMAIN: u64 = 13;
