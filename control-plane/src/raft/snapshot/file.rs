//! One snapshot file.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use weft_state::machine::{ImageCheck, ImageLoader, Machine};

use super::{
    super::{
        codec::{self, SnapshotHead},
        types::SnapshotMeta,
    },
    folder::SnapshotFolder,
};

const MAGIC: [u8; 8] = *b"WEFTSNAP";
const VERSION: u32 = 1;
const PREFIX_BYTES: usize = 20;

/// Longest head that is accepted, in bytes: a group of hundreds of servers.
const HEAD_BYTES_MAX: usize = 1024 * 1024;

/// Bytes read from a file at a time.
const READ_BYTES: usize = 512 * 1024;

/// Bytes after which what was written is synced: a snapshot that reached the disk in one piece at its end
/// would hold up the log's syncs for as long as that takes.
const SYNC_EVERY_BYTES: u64 = 8 * 1024 * 1024;

/// A snapshot that is on disk whole, and open: it can be read also after a newer one took its place. Clones
/// share it.
#[derive(Debug, Clone)]
pub struct SnapshotFile {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Read at positions of its own, under this lock.
    file: Mutex<File>,
    path: Mutex<PathBuf>,
    /// Not kept yet: removed when nobody needs it.
    temporary: AtomicBool,
    meta: SnapshotMeta,
    image_at: u64,
    bytes: u64,
    /// CRC-32 (IEEE) of all bytes, once known to be whole.
    checksum: OnceLock<u32>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.temporary.load(Relaxed) {
            let _ = std::fs::remove_file(self.path.get_mut());
        }
    }
}

impl SnapshotFile {
    /// Opens one and reads its head; the image is not checked yet. Blocks, as all here does.
    ///
    /// # Errors
    /// The inner one says why it is no snapshot of ours.
    pub fn open(path: &Path) -> io::Result<Result<Self, String>> {
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        Ok(read_head(&mut file, bytes)?.map(|(meta, image_at)| {
            let (file, path) = (Mutex::new(file), Mutex::new(path.to_path_buf()));
            let (temporary, checksum) = (AtomicBool::new(false), OnceLock::new());
            Self { inner: Arc::new(Inner { file, path, temporary, meta, image_at, bytes, checksum }) }
        }))
    }

    /// Of a file that was written or received just now, whose checksum is known.
    pub(super) fn open_new(path: &Path, checksum: u32) -> io::Result<Result<Self, String>> {
        Ok(Self::open(path)?.inspect(|opened| {
            opened.inner.temporary.store(true, Relaxed);
            let _ = opened.inner.checksum.set(checksum);
        }))
    }

    /// What it covers.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.inner.meta
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.inner.bytes
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.inner.path.lock().clone()
    }

    /// Reads all of it and compares the checksums; answers the one of the whole. Remembered.
    ///
    /// # Errors
    /// The inner one says what is damaged.
    pub fn verify(&self) -> io::Result<Result<u32, String>> {
        if let Some(checksum) = self.inner.checksum.get() {
            return Ok(Ok(*checksum));
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.read_at(0, self.inner.image_at as usize)?);
        let mut check = ImageCheck::default();
        let fed = self.feed_image(|piece| {
            hasher.update(piece);
            check.feed(piece).map_err(|e| e.to_string())
        })?;
        let checksum = hasher.finalize();
        let verified = fed.and_then(|()| check.finish().map_err(|e| e.to_string()));
        Ok(verified.map(|()| *self.inner.checksum.get_or_init(|| checksum)))
    }

    /// Builds the machine from it, checking everything.
    ///
    /// # Errors
    /// The inner one says what is damaged.
    pub fn load(&self) -> io::Result<Result<Machine, String>> {
        let mut loader = ImageLoader::new();
        let fed = self.feed_image(|piece| loader.feed(piece).map_err(|e| e.to_string()))?;
        Ok(fed.and_then(|()| Machine::from_loader(loader).map_err(|e| e.to_string())))
    }

    /// At most `length` bytes from an offset; fewer only at the end.
    pub fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let mut file = self.inner.file.lock();
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::with_capacity(length);
        (&mut *file).take(length as u64).read_to_end(&mut bytes)?;
        Ok(bytes.into())
    }

    fn feed_image(
        &self,
        mut take: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> io::Result<Result<(), String>> {
        let mut offset = self.inner.image_at;
        loop {
            let piece = self.read_at(offset, READ_BYTES)?;
            if piece.is_empty() {
                return Ok(Ok(()));
            }
            offset += piece.len() as u64;
            if let Err(reason) = take(&piece) {
                return Ok(Err(reason));
            }
        }
    }

    /// Gives it its name, for good.
    pub(super) fn keep(&self, path: PathBuf) -> io::Result<()> {
        let mut own = self.inner.path.lock();
        std::fs::rename(&*own, &path)?;
        self.inner.temporary.store(false, Relaxed);
        *own = path;
        Ok(())
    }
}

/// What it covers, and where the image begins.
fn read_head(file: &mut File, bytes: u64) -> io::Result<Result<(SnapshotMeta, u64), String>> {
    let mut prefix = [0; PREFIX_BYTES];
    if bytes < PREFIX_BYTES as u64 {
        return Ok(Err(format!("is not a snapshot: it has {bytes} bytes")));
    }
    file.read_exact(&mut prefix)?;
    let u32_at = |at: usize| u32::from_le_bytes(prefix[at..at + 4].try_into().expect("4 bytes"));
    if prefix[..8] != MAGIC {
        return Ok(Err("is not a snapshot".to_owned()));
    }
    if u32_at(8) != VERSION {
        return Ok(Err(format!("has format version {}, this program reads version {VERSION}", u32_at(8))));
    }
    let head_bytes = u32_at(12) as usize;
    if head_bytes > HEAD_BYTES_MAX || (PREFIX_BYTES + head_bytes) as u64 > bytes {
        return Ok(Err(format!("is damaged: a head of {head_bytes} bytes in a file of {bytes}")));
    }
    let mut head = vec![0; head_bytes];
    file.read_exact(&mut head)?;
    if crc32fast::hash(&head) != u32_at(16) {
        return Ok(Err("is damaged: the checksum of its head does not match".to_owned()));
    }
    let meta = codec::decode::<SnapshotHead>("snapshot head", &head).and_then(SnapshotMeta::try_from);
    Ok(meta.map(|meta| (meta, (PREFIX_BYTES + head_bytes) as u64)).map_err(|e| e.to_string()))
}

/// A snapshot being written. Dropped before its end, it leaves nothing.
#[derive(Debug)]
pub struct SnapshotWriter {
    folder: SnapshotFolder,
    /// None once finished.
    temp: Option<PathBuf>,
    file: File,
    hasher: crc32fast::Hasher,
    unsynced: u64,
}

impl SnapshotWriter {
    pub(super) fn create(folder: SnapshotFolder, temp: PathBuf, meta: &SnapshotMeta) -> io::Result<Self> {
        let file = File::create(&temp)?;
        let hasher = crc32fast::Hasher::new();
        let mut writer = Self { folder, temp: Some(temp), file, hasher, unsynced: 0 };
        let head = codec::encode(&SnapshotHead::from(meta));
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + head.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(head.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&head).to_le_bytes());
        bytes.extend_from_slice(&head);
        writer.write(&bytes)?;
        Ok(writer)
    }

    /// The image's next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_EVERY_BYTES {
            self.unsynced = 0;
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// All was written: from now on it is one of the folder's.
    pub fn finish(mut self) -> io::Result<SnapshotFile> {
        self.file.sync_all()?;
        let checksum = self.hasher.clone().finalize();
        let Some(temp) = self.temp.take() else { unreachable!("it is finished once, by value") };
        let written = SnapshotFile::open_new(&temp, checksum)?.map_err(io::Error::other)?;
        self.folder.keep(&written)?;
        Ok(written)
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if let Some(temp) = &self.temp {
            let _ = std::fs::remove_file(temp);
        }
    }
}
