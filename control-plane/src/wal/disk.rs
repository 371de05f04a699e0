//! The little that the log asks of a file system.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

#[cfg(test)]
pub mod memory;

/// A folder of files. Implemented by [`FolderDisk`], and by simulated disks in tests.
///
/// What the log relies on, and what an implementation has to promise:
/// - [`DiskFile::sync`] makes all that was written to the file before durable. Without it a crash may keep any
///   part of what was written, in any order, also parts of one write.
/// - Names are durable: after [`Disk::create`] and [`Disk::rename`] returned, a crash does not undo them. A crash
///   while they run leaves the state before or after, or for `create` a file of any content.
/// - [`Disk::remove`] may be undone by a crash, but not a later removal without an earlier one.
/// - Errors leave what was durable before untouched. One of [`out_of_space`] is waited out by the log; after any
///   other error of a write or a sync the log is not used again by this process.
pub trait Disk: Send + Sync {
    /// Names of the files in the folder, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Size of a file in bytes.
    fn len(&self, name: &str) -> io::Result<u64>;
    /// The whole content of a file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Makes a file of `bytes` zeros, with its space allocated, durable together with its name on return. Leaves
    /// none behind if there is no space for it.
    fn create(&self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file for writing.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Gives a file another name, which no file has; durable on return. Needs no space.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Need not be durable.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// What to call this file in messages.
    fn path(&self, name: &str) -> PathBuf;
}

/// A file open for writing. Keeps its content when the file is renamed.
pub trait DiskFile: Send {
    /// Writes at an offset; durable only after [`DiskFile::sync`]. Where the file has its space already, this
    /// needs no more of it.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes all that was written durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// Whether an error says that the disk, or this user's share of it, is full: it may pass.
pub fn out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A real folder.
#[derive(Debug)]
pub struct FolderDisk {
    folder: PathBuf,
}

impl FolderDisk {
    /// Opens the folder; makes it if it is absent.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        if let Some(parent) = folder.parent() {
            weft_core::fsio::sync_folder(parent)?;
        }
        Ok(Self { folder: folder.to_path_buf() })
    }

    /// A folder that exists, only to read in it.
    pub fn existing(folder: &Path) -> io::Result<Self> {
        fs::read_dir(folder)?;
        Ok(Self { folder: folder.to_path_buf() })
    }
}

impl Disk for FolderDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        Ok(fs::metadata(self.folder.join(name))?.len())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.folder.join(name))
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        let path = self.folder.join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        // Zeros rather than a reservation: a reserved block becomes a written one at its first sync, which then
        // has to write the file system's own journal too.
        let filled = (|| {
            let zeros = vec![0; 1024 * 1024];
            let mut left = bytes;
            while left > 0 {
                let part = left.min(zeros.len() as u64);
                file.write_all(&zeros[..part as usize])?;
                left -= part;
            }
            file.sync_all()
        })();
        if let Err(error) = filled {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        weft_core::fsio::sync_folder(&self.folder)?;
        Ok(Box::new(FolderFile { file }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().write(true).open(self.folder.join(name))?;
        Ok(Box::new(FolderFile { file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.folder.join(from), self.folder.join(to))?;
        weft_core::fsio::sync_folder(&self.folder)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.folder.join(name))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

struct FolderFile {
    file: File,
}

impl DiskFile for FolderFile {
    #[cfg(unix)]
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, offset)
    }

    #[cfg(not(unix))]
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        use std::io::{Seek, SeekFrom};
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}
