//! One backup file.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use weft_state::machine::{ImageCheck, ImageError, ImageLoader, Machine};

/// Bytes of the SHA-256 behind an image that came over etcd's API.
pub const TRAILER_BYTES: usize = 32;

/// Most bytes behind an image: zeros up to a multiple of 512, as etcd's clients want it, and the SHA-256.
const BEHIND_BYTES_MAX: usize = 511 + TRAILER_BYTES;

/// Bytes read at a time.
const READ_BYTES: usize = 512 * 1024;

/// A file that was read, and the state in it.
pub struct Backup {
    /// The state.
    pub machine: Machine,
    /// Bytes of the file.
    pub bytes: u64,
    /// The file has a SHA-256 at its end, and it is right.
    pub has_sha256: bool,
}

/// Why a file is no backup that can be restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// It is no image, or a damaged one, or of a newer version.
    #[error("{path}: {source}", path = path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ImageError,
    },
    /// The image is whole and the SHA-256 behind it is not its.
    #[error("{path}: the SHA-256 at its end is not that of the {bytes} bytes before it", path = path.display())]
    Sha256 {
        /// The file.
        path: PathBuf,
        /// Bytes in front of it.
        bytes: u64,
    },
}

impl Backup {
    /// Reads a file and builds the state in it: a real restore, into memory. Blocks.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub fn read(path: &Path) -> Result<Self, BackupError> {
        let io_error = |source| BackupError::Io { path: path.to_path_buf(), source };
        let image_error = |source| BackupError::Image { path: path.to_path_buf(), source };
        let mut file = File::open(path).map_err(io_error)?;
        let mut loader = ImageLoader::new();
        let mut hasher = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        // The last bytes are held back: only what comes before them tells whether they belong to the image.
        let mut held: Vec<u8> = Vec::new();
        let mut piece = vec![0; READ_BYTES];
        let mut bytes = 0;
        loop {
            let read = match file.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(io_error(error)),
            };
            bytes += read as u64;
            held.extend_from_slice(&piece[..read]);
            let ready = held.len().saturating_sub(BEHIND_BYTES_MAX);
            hasher.update(&held[..ready]);
            loader.feed(&held[..ready]).map_err(image_error)?;
            held.drain(..ready);
        }
        // The image itself says where it ends.
        let mut own = 0;
        while own < held.len() && !loader.is_complete() {
            loader.feed(&held[own..=own]).map_err(image_error)?;
            own += 1;
        }
        let has_sha256 = loader.is_complete() && held.len() >= own + TRAILER_BYTES;
        if !has_sha256 {
            loader.feed(&held[own..]).map_err(image_error)?;
        } else {
            let (hashed, sha256) = held.split_at(held.len() - TRAILER_BYTES);
            hasher.update(hashed);
            let padded = hashed[own..].iter().all(|byte| *byte == 0);
            if !padded || hasher.finish().as_ref() != sha256 {
                let bytes = bytes - TRAILER_BYTES as u64;
                return Err(BackupError::Sha256 { path: path.to_path_buf(), bytes });
            }
        }
        let machine = Machine::from_loader(loader).map_err(image_error)?;
        Ok(Self { machine, bytes, has_sha256 })
    }
}

/// Checks the framing and the checksums of an image, one piece in memory at a time. Blocks.
///
/// # Errors
/// See [`BackupError`].
pub fn check(path: &Path) -> Result<(), BackupError> {
    let io_error = |source| BackupError::Io { path: path.to_path_buf(), source };
    let image_error = |source| BackupError::Image { path: path.to_path_buf(), source };
    let mut file = File::open(path).map_err(io_error)?;
    let mut check = ImageCheck::default();
    let mut piece = vec![0; READ_BYTES];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return check.finish().map_err(image_error),
            Ok(read) => check.feed(&piece[..read]).map_err(image_error)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error(error)),
        }
    }
}

/// A file being written beside its place. Dropped before [`BackupWriter::finish`], it leaves nothing.
#[derive(Debug)]
pub struct BackupWriter {
    path: PathBuf,
    /// None once finished.
    unfinished: Option<PathBuf>,
    file: File,
    bytes: u64,
}

/// What the name of an unfinished file ends with.
pub(super) const UNFINISHED: &str = ".unfinished";

impl BackupWriter {
    /// Begins to write what will be at `path`. Blocks, as all here does.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(UNFINISHED);
        let unfinished = PathBuf::from(unfinished);
        let file = File::create(&unfinished)?;
        Ok(Self { path: path.to_path_buf(), unfinished: Some(unfinished), file, bytes: 0 })
    }

    /// The next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    /// Where it is until it is finished.
    pub fn unfinished(&self) -> &Path {
        self.unfinished.as_deref().unwrap_or(&self.path)
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes what was written durable, without giving it its name yet.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// All was written: puts it in its place, durably, over what was there.
    pub fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        if let Some(unfinished) = self.unfinished.take() {
            fs::rename(unfinished, &self.path)?;
        }
        let parent = self.path.parent().filter(|p| !p.as_os_str().is_empty());
        weft_core::fsio::sync_folder(parent.unwrap_or(Path::new(".")))
    }
}

impl Drop for BackupWriter {
    fn drop(&mut self) {
        if let Some(unfinished) = &self.unfinished {
            let _ = fs::remove_file(unfinished);
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_state::command::{Command, Put};

    use super::*;

    fn machine() -> Machine {
        let mut machine = Machine::new();
        for index in 1..40u64 {
            let (key, value) = (format!("key-{}", index % 7).into(), vec![index as u8; 20].into());
            machine.apply(index, 3, &Command::Put(Put { key, value, ..Put::default() }));
        }
        machine.apply(40, 3, &Command::LeaseGrant { id: 9, ttl_secs: 60 });
        machine
    }

    fn with_sha256(image: &[u8]) -> Vec<u8> {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, image);
        [image, digest.as_ref()].concat()
    }

    fn padded(image: &[u8]) -> Vec<u8> {
        let mut padded = image.to_vec();
        padded.resize(image.len().next_multiple_of(512), 0);
        padded
    }

    fn read(bytes: &[u8]) -> Result<Backup, BackupError> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("b");
        let mut writer = BackupWriter::create(&path).expect("creates");
        writer.write(bytes).expect("writes");
        writer.finish().expect("finishes");
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 1);
        Backup::read(&path)
    }

    #[test]
    fn a_backup_reads_back_with_and_without_a_sha256() {
        let machine = machine();
        let image = machine.image();
        let padded = with_sha256(&padded(&image));
        assert_eq!(padded.len() % 512, TRAILER_BYTES, "what etcd's clients look at");
        for (bytes, has_sha256) in [(image.clone(), false), (with_sha256(&image), true), (padded, true)] {
            let backup = read(&bytes).expect("reads");
            assert_eq!(backup.machine.hash(), machine.hash());
            assert_eq!((backup.bytes, backup.has_sha256), (bytes.len() as u64, has_sha256));
        }
    }

    #[test]
    fn a_backup_that_is_cut_at_any_byte_is_refused() {
        let image = machine().image();
        for bytes in [with_sha256(&image), with_sha256(&padded(&image))] {
            for cut in (0..bytes.len()).filter(|cut| *cut != image.len()) {
                assert!(read(&bytes[..cut]).is_err(), "cut at {cut} of {}", bytes.len());
            }
        }
    }

    #[test]
    fn a_backup_with_any_bit_flipped_is_refused() {
        let bytes = with_sha256(&padded(&machine().image()));
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            assert!(read(&flipped).is_err(), "byte {at}");
        }
    }

    #[test]
    fn other_files_are_refused_by_what_they_are() {
        let mut newer = machine().image();
        newer[8] = 9;
        for (bytes, expected) in [
            (b"SQLite format 3\0 and so on".to_vec(), "not a weft state image"),
            (newer, "upgrade weft"),
            (Vec::new(), "truncated after 0 bytes"),
        ] {
            let error = read(&bytes).err().expect("is refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_backup_that_was_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = BackupWriter::create(&folder.path().join("b")).expect("creates");
        writer.write(b"half").expect("writes");
        drop(writer);
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 0);
    }
}
