//! A disk in memory for tests. What is not synced is lost in a crash, page by page, as the caller chooses.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc};

use parking_lot::Mutex;

use super::{Disk, DiskFile};
use crate::wal::segment;

/// Bytes of a page: small, so that a short group has several.
const PAGE: usize = 64;

/// The disk; clones share it.
#[derive(Default, Clone)]
pub struct MemoryDisk {
    files: Arc<Mutex<BTreeMap<String, Arc<Mutex<MemoryFile>>>>>,
    /// Bytes that all files may have together.
    capacity: Arc<Mutex<Option<u64>>>,
}

#[derive(Default, Clone)]
struct MemoryFile {
    durable: Vec<u8>,
    visible: Vec<u8>,
    fail_sync: bool,
}

struct Handle {
    disk: MemoryDisk,
    file: Arc<Mutex<MemoryFile>>,
}

impl MemoryDisk {
    /// The power fails. `keep` says for each unsynced page whether it reached the disk all the same.
    pub fn crash(&self, mut keep: impl FnMut() -> bool) -> MemoryDisk {
        let after = MemoryDisk::default();
        for (name, file) in self.files.lock().iter() {
            let file = file.lock();
            let mut bytes = file.durable.clone();
            bytes.resize(file.visible.len(), 0);
            for page in 0..bytes.len().div_ceil(PAGE) {
                let range = page * PAGE..((page + 1) * PAGE).min(bytes.len());
                if bytes[range.clone()] != file.visible[range.clone()] && keep() {
                    bytes[range.clone()].copy_from_slice(&file.visible[range]);
                }
            }
            after.put(name, bytes);
        }
        after
    }

    /// Changes what is durable in a segment.
    pub fn edit(&self, segment: u64, edit: impl FnOnce(&mut Vec<u8>)) {
        let file = self.files.lock()[&segment::file_name(segment)].clone();
        let mut file = file.lock();
        edit(&mut file.visible);
        file.durable = file.visible.clone();
    }

    /// A file, durable.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let file = MemoryFile { durable: bytes.clone(), visible: bytes, fail_sync: false };
        self.files.lock().insert(name.to_owned(), Arc::new(Mutex::new(file)));
    }

    /// Syncs of a segment fail from now on.
    pub fn fail_syncs(&self, segment: u64) {
        self.files.lock()[&segment::file_name(segment)].lock().fail_sync = true;
    }

    /// All files may have so many bytes together from now on.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        *self.capacity.lock() = bytes;
    }

    /// All files.
    pub fn names(&self) -> Vec<String> {
        self.files.lock().keys().cloned().collect()
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        self.files.lock().values().map(|f| f.lock().visible.len() as u64).sum()
    }

    /// For the log.
    pub fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    fn room_for(&self, bytes: u64) -> io::Result<()> {
        match *self.capacity.lock() {
            Some(capacity) if self.used() + bytes > capacity => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn file(&self, name: &str) -> io::Result<Arc<Mutex<MemoryFile>>> {
        self.files.lock().get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for MemoryDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }
    fn len(&self, name: &str) -> io::Result<u64> {
        Ok(self.file(name)?.lock().visible.len() as u64)
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(self.file(name)?.lock().visible.clone())
    }
    fn create(&self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        self.room_for(bytes)?;
        self.put(name, vec![0; bytes as usize]);
        self.open(name)
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(Handle { disk: self.clone(), file: self.file(name)? }))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files.lock();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        assert!(files.insert(to.to_owned(), file).is_none(), "{to} exists");
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.lock().remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn path(&self, name: &str) -> PathBuf {
        name.into()
    }
}

impl DiskFile for Handle {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset as usize + bytes.len();
        let longer = end.saturating_sub(self.file.lock().visible.len());
        if longer > 0 {
            self.disk.room_for(longer as u64)?;
        }
        let mut file = self.file.lock();
        if file.visible.len() < end {
            file.visible.resize(end, 0);
        }
        file.visible[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        let mut file = self.file.lock();
        if file.fail_sync {
            return Err(io::Error::other("the disk is gone"));
        }
        file.durable = file.visible.clone();
        Ok(())
    }
}
