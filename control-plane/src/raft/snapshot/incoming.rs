//! A snapshot on its way from the leader.

use std::{
    fs::File,
    io::{self, Write},
    path::PathBuf,
};

use super::{super::codec::SnapshotOffer, file::SnapshotFile, folder::SnapshotFolder};

/// A snapshot while its chunks come. Dropped before its end, what came is set aside in the folder, so that
/// the sender can go on where the connection broke.
#[derive(Debug)]
pub struct Incoming {
    folder: SnapshotFolder,
    /// None once it ended or was set aside.
    partial: Option<Partial>,
}

/// The part of a snapshot that has come. Its file goes with it.
#[derive(Debug)]
pub struct Partial {
    temp: PathBuf,
    file: File,
    pub(super) offer: SnapshotOffer,
    pub(super) received: u64,
    hasher: crc32fast::Hasher,
    /// The file became a snapshot.
    complete: bool,
}

impl Partial {
    pub(super) fn create(temp: PathBuf, offer: SnapshotOffer) -> io::Result<Self> {
        let (file, hasher) = (File::create(&temp)?, crc32fast::Hasher::new());
        Ok(Self { temp, file, offer, received: 0, hasher, complete: false })
    }

    fn finish(mut self) -> io::Result<Result<SnapshotFile, String>> {
        self.file.sync_all()?;
        let checksum = self.hasher.clone().finalize();
        if (self.received, checksum) != (self.offer.bytes, self.offer.checksum) {
            return Ok(Err("the snapshot's checksum does not match".to_owned()));
        }
        let opened = SnapshotFile::open_new(&self.temp, checksum)?;
        self.complete = opened.is_ok();
        Ok(opened)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.complete {
            let _ = std::fs::remove_file(&self.temp);
        }
    }
}

impl Incoming {
    pub(super) fn new(folder: SnapshotFolder, partial: Partial) -> Self {
        Self { folder, partial: Some(partial) }
    }

    /// Takes the next bytes. Blocks for no longer than writing to the page cache takes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let partial = self.partial.as_mut().ok_or_else(|| io::Error::other("an earlier write failed"))?;
        if let Err(error) = partial.file.write_all(bytes) {
            // How much of it was written is not known, so nobody can go on from here.
            self.partial = None;
            return Err(error);
        }
        partial.hasher.update(bytes);
        partial.received += bytes.len() as u64;
        Ok(())
    }

    /// All has come. Not one of the folder's yet: see [`SnapshotFolder::keep`].
    ///
    /// # Errors
    /// The inner one says that it is not what was offered.
    pub fn finish(mut self) -> io::Result<Result<SnapshotFile, String>> {
        let partial = self.partial.take().ok_or_else(|| io::Error::other("an earlier write failed"))?;
        partial.finish()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(partial) = self.partial.take() {
            self.folder.set_aside(partial);
        }
    }
}
