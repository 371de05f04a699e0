//! A disk that keeps what was synced, and of the rest what chance leaves.
//!
//! Writes are kept by sector: after a power loss each sector that was not synced holds its old or its new content,
//! whichever, so that writes are lost, kept, torn and reordered. Files removed last may be back, as [`Disk::remove`] allows.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use weft_control_plane::wal::{Disk, DiskFile, LogDisk};

use super::rng::Rng;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// Small, so that segments are changed often.
const SEGMENT_BYTES: u64 = 64 * 1024;

/// A disk. Clones share it, and it outlives the machine's crashes.
#[derive(Clone)]
pub(crate) struct SimDisk {
    state: Arc<Mutex<State>>,
}

struct State {
    files: BTreeMap<String, Content>,
    /// Removed since the last crash, in order.
    removed: Vec<(String, Content)>,
    rng: Rng,
    /// The power is gone: nothing reaches it any more.
    off: bool,
    /// Loses power in the middle of this many writes from now.
    fails_in: Option<u32>,
    /// Each sync takes up to this long.
    sync_max: Duration,
    /// At the next loss of power nothing is kept that was not synced.
    forgets: bool,
    /// There is no space for more files.
    full: bool,
    /// The next sync takes so much longer.
    stalled: Duration,
}

/// Keeps its place when its name changes.
type Content = Arc<Mutex<File>>;

#[derive(Default)]
struct File {
    durable: Vec<u8>,
    visible: Vec<u8>,
}

impl SimDisk {
    pub(crate) fn new(mut rng: Rng) -> Self {
        // A good one, a common one, a bad one.
        let sync_max = Duration::from_millis(*rng.pick(&[2, 10, 60]));
        let state = State {
            files: BTreeMap::new(),
            removed: Vec::new(),
            rng,
            off: false,
            fails_in: None,
            sync_max,
            forgets: false,
            full: false,
            stalled: Duration::ZERO,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// As the log wants it.
    pub(crate) fn for_log(&self) -> LogDisk {
        let (pausing, failing) = (self.clone(), self.clone());
        LogDisk {
            disk: Arc::new(self.clone()),
            pause: Arc::new(move || pausing.pause()),
            failed: Arc::new(move |_, _| failing.state.lock().off = true),
            segment_bytes: SEGMENT_BYTES,
        }
    }

    /// Whether it has lost power by itself, as it was told to.
    pub(crate) fn is_off(&self) -> bool {
        self.state.lock().off
    }

    /// Nothing reaches it any more.
    pub(crate) fn switch_off(&self) {
        self.state.lock().off = true;
    }

    /// Power is back; says how many sectors were lost.
    pub(crate) fn switch_on(&self) -> u64 {
        let mut state = self.state.lock();
        let State { files, removed, rng, forgets, .. } = &mut *state;
        let forgets = std::mem::take(forgets);
        // Folders keep the order of what is done to them: what was removed last is back first.
        let kept = rng.below(removed.len() as u64 + 1) as usize;
        for (name, file) in std::mem::take(removed).into_iter().skip(kept) {
            files.entry(name).or_insert(file);
        }
        let mut lost = 0;
        for file in files.values() {
            let file = &mut *file.lock();
            file.durable.resize(file.visible.len(), 0);
            for (old, new) in file.durable.chunks_mut(SECTOR_BYTES).zip(file.visible.chunks(SECTOR_BYTES)) {
                if old == new {
                    continue;
                }
                if !forgets && rng.chance(500) {
                    old.copy_from_slice(new);
                } else {
                    lost += 1;
                }
            }
            file.visible.clone_from(&file.durable);
        }
        state.off = false;
        state.fails_in = None;
        state.stalled = Duration::ZERO;
        state.full = false;
        lost
    }

    /// Loses power in the middle of a write soon.
    pub(crate) fn fail_in(&self, writes: u32) {
        self.state.lock().fails_in = Some(writes);
    }

    /// Loses for sure what it will not have synced when power is lost next.
    pub(crate) fn forget(&self) {
        self.state.lock().forgets = true;
    }

    /// Does not lose power by itself after all.
    pub(crate) fn spare(&self) {
        self.state.lock().fails_in = None;
    }

    /// The next sync takes this long.
    pub(crate) fn stall(&self, time: Duration) {
        self.state.lock().stalled = time;
    }

    /// There is no space for more files, or there is again.
    pub(crate) fn set_full(&self, full: bool) {
        self.state.lock().full = full;
    }

    fn pause(&self) -> Duration {
        let mut state = self.state.lock();
        let stalled = std::mem::take(&mut state.stalled);
        let most = state.sync_max.as_millis() as u64;
        stalled + Duration::from_millis(state.rng.below(most + 1))
    }
}

fn no_power() -> io::Error {
    io::Error::other("the power is gone")
}

impl State {
    fn powered(&self) -> io::Result<()> {
        if self.off { Err(no_power()) } else { Ok(()) }
    }

    fn file(&self, name: &str) -> io::Result<Content> {
        self.powered()?;
        self.files.get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        state.powered()?;
        Ok(state.files.keys().cloned().collect())
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        Ok(self.state.lock().file(name)?.lock().visible.len() as u64)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(self.state.lock().file(name)?.lock().visible.clone())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        let file = state.file(from)?;
        state.files.remove(from);
        state.removed.retain(|(removed, _)| removed != to);
        state.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        let zeros = vec![0; bytes as usize];
        let mut state = self.state.lock();
        state.powered()?;
        if state.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.removed.retain(|(removed, _)| removed != name);
        let file = Arc::new(Mutex::new(File { durable: zeros.clone(), visible: zeros }));
        state.files.insert(name.to_owned(), file);
        drop(state);
        self.open(name)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = self.state.lock().file(name)?;
        Ok(Box::new(Handle { disk: self.clone(), file }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.powered()?;
        if let Some(file) = state.files.remove(name) {
            state.removed.push((name.to_owned(), file));
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new("wal").join(name)
    }
}

struct Handle {
    disk: SimDisk,
    file: Content,
}

impl DiskFile for Handle {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.powered()?;
        let fails = match &mut state.fails_in {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        let written = if fails { state.rng.below(bytes.len() as u64 + 1) as usize } else { bytes.len() };
        let mut file = self.file.lock();
        let start = offset as usize;
        if file.visible.len() < start + written {
            file.visible.resize(start + written, 0);
        }
        file.visible[start..start + written].copy_from_slice(&bytes[..written]);
        drop(file);
        if fails {
            state.off = true;
            return Err(no_power());
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.state.lock().powered()?;
        let file = &mut *self.file.lock();
        file.durable.clone_from(&file.visible);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "one";

    fn disk(seed: u64) -> (SimDisk, Box<dyn DiskFile>) {
        let disk = SimDisk::new(Rng::new(seed, "disk"));
        let file = disk.create(NAME, 4096).expect("made");
        (disk, file)
    }

    fn after_power_loss(disk: &SimDisk) -> Vec<u8> {
        disk.switch_off();
        disk.switch_on();
        disk.read(NAME).expect("is there")
    }

    #[test]
    fn what_was_synced_is_kept_and_of_the_rest_each_sector_is_old_or_new() {
        let mut kept = [0; 2];
        for seed in 0..50 {
            let (disk, mut file) = disk(seed);
            file.write_at(0, &[1; 1024]).expect("written");
            file.sync().expect("synced");
            file.write_at(512, &[2; 1024]).expect("written");
            let found = after_power_loss(&disk);
            assert_eq!(found[..512], [1; 512]);
            for (sector, old) in [(512, 1), (1024, 0)] {
                let bytes = &found[sector..sector + 512];
                assert!(bytes == [old; 512] || bytes == [2; 512]);
                kept[usize::from(bytes[0] == 2)] += 1;
            }
        }
        assert!(kept[0] > 20 && kept[1] > 20, "{kept:?}");
    }

    #[test]
    fn a_disk_that_forgets_keeps_only_what_was_synced() {
        for seed in 0..20 {
            let (disk, mut file) = disk(seed);
            file.write_at(0, &[1; 512]).expect("written");
            file.sync().expect("synced");
            file.write_at(0, &[2; 512]).expect("written");
            disk.forget();
            assert_eq!(after_power_loss(&disk)[..512], [1; 512]);
        }
    }

    #[test]
    fn a_write_in_the_middle_of_which_power_is_lost_fails_and_all_that_follow() {
        let (disk, mut file) = disk(1);
        disk.fail_in(1);
        file.write_at(0, &[1; 512]).expect("the first is written");
        file.write_at(512, &[1; 512]).expect_err("no power");
        file.sync().expect_err("no power");
        assert!(disk.is_off());
        disk.read(NAME).expect_err("no power");
        disk.switch_on();
        disk.read(NAME).expect("power is back");
    }

    #[test]
    fn what_was_removed_last_may_be_back_and_nothing_before_it_alone() {
        let mut back = 0;
        for seed in 0..50 {
            let (disk, _) = disk(seed);
            disk.create("two", 512).expect("made");
            disk.remove(NAME).expect("removed");
            disk.remove("two").expect("removed");
            disk.switch_off();
            disk.switch_on();
            let found = disk.list().expect("lists");
            assert!(found != [NAME], "the first removal was undone, and not the second");
            back += found.len();
        }
        assert!(back > 0);
    }
}
