//! Unix sockets: files that are made, replaced if nobody answers on them, and taken away at the end.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A socket's file. Dropping it removes the file, unless another has taken its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
    /// Not yet, or not any more, if another process has it.
    ours: bool,
}

/// Listens on a path, with `workers` handles on one socket. The file appears with its permissions, and in place of one
/// that a process has left behind.
///
/// # Errors
/// If somebody answers there, or something other than a socket is there.
pub(crate) fn bind(path: &Path, mode: u32, workers: usize) -> io::Result<(SocketFile, Vec<UnixListener>)> {
    refuse_what_is_in_use(path)?;
    // Under another name first: nobody may connect before the permissions are right.
    let made = path.with_extension(format!("{}.new", std::process::id()));
    let _ = std::fs::remove_file(&made);
    let first = UnixListener::bind(&made)?;
    let placed = place(&made, path, mode);
    if placed.is_err() {
        let _ = std::fs::remove_file(&made);
    }
    let file = placed?;
    first.set_nonblocking(true)?;
    let mut handles = Vec::with_capacity(workers);
    for _ in 1..workers {
        handles.push(first.try_clone()?);
    }
    handles.push(first);
    Ok((file, handles))
}

fn place(made: &Path, path: &Path, mode: u32) -> io::Result<SocketFile> {
    std::fs::set_permissions(made, Permissions::from_mode(mode))?;
    let meta = std::fs::symlink_metadata(made)?;
    std::fs::rename(made, path)?;
    Ok(SocketFile { path: path.to_owned(), id: (meta.dev(), meta.ino()), ours: true })
}

fn refuse_what_is_in_use(path: &Path) -> io::Result<()> {
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !meta.file_type().is_socket() {
        let text = "there is something other than a socket; it is not replaced";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::other("another process answers there")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error),
    }
}

impl SocketFile {
    /// The file of a socket that another process has made. It is not removed before [`Self::take`].
    ///
    /// # Errors
    /// If it is not there.
    pub fn inherit(path: &Path) -> io::Result<Self> {
        let meta = std::fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), id: (meta.dev(), meta.ino()), ours: false })
    }

    /// From now on we remove it.
    pub fn take(&mut self) {
        self.ours = true;
    }

    /// Leaves the file to another process.
    pub fn leave(&mut self) {
        self.ours = false;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let same = |meta: std::fs::Metadata| (meta.dev(), meta.ino()) == self.id;
        if self.ours && std::fs::symlink_metadata(&self.path).is_ok_and(same) {
            // Gone either way.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_its_permissions_and_is_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (file, handles) = bind(&path, 0o600, 3).unwrap();
        assert_eq!(handles.len(), 3);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
        UnixStream::connect(&path).unwrap();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_was_left_behind_is_replaced_and_its_end_does_not_take_the_new_one_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (old, handles) = bind(&path, 0o600, 1).unwrap();
        drop(handles);
        let (_new, _handles) = bind(&path, 0o600, 1).unwrap();
        drop(old);
        UnixStream::connect(&path).unwrap();
    }

    /// P47: a process that wanted to take over and did not must leave no trace.
    #[test]
    fn a_file_of_another_process_is_removed_by_the_one_that_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (mut old, _handles) = bind(&path, 0o600, 1).unwrap();
        drop(SocketFile::inherit(&path).unwrap());
        assert!(path.exists());
        let mut new = SocketFile::inherit(&path).unwrap();
        new.take();
        old.leave();
        drop(old);
        assert!(path.exists());
        drop(new);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_in_use_or_no_socket_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (_file, _handles) = bind(&path, 0o600, 1).unwrap();
        assert!(bind(&path, 0o600, 1).unwrap_err().to_string().contains("answers there"));
        let file = dir.path().join("data");
        std::fs::write(&file, "precious").unwrap();
        assert!(bind(&file, 0o600, 1).unwrap_err().to_string().contains("other than a socket"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
        assert!(bind(&dir.path().join("no/such/folder"), 0o600, 1).is_err());
    }
}
