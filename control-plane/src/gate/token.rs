//! The join token: what a server of the group knows and nobody else does.
//!
//! It is in a file, or in `WEFT_JOIN_TOKEN`. A second line (after a comma in the variable) is a second token: the
//! first is what this server proves, both are what it accepts. So a token is replaced without a moment in which two
//! servers do not understand each other: on every server `old new`, then on every server `new old`, then `new`.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::rand;
use weft_core::{fsio, reload::Reloading};

/// Where a server that forms a group leaves the token it makes, in its data folder.
pub const FILE: &str = "join-token";

/// Shortest and longest token. The shortest has 128 bits as hexadecimal digits: whoever reads a handshake on the wire
/// may try tokens at home.
pub const BYTES_MIN: usize = 32;
const BYTES_MAX: usize = 256;

/// Most tokens at a time.
const TOKENS_MAX: usize = 2;

/// Random bytes of a token that is made here.
const MADE_BYTES: usize = 32;

/// One token. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The secret.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Where a server has its token from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TokenSource {
    /// The data folder: made there by a server that forms a group.
    #[default]
    DataFolder,
    /// A file, read again when it changes.
    File(PathBuf),
    /// Told at start.
    Given(Secret),
}

/// A text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Why there is no token that can be used. None of them shows it.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A server that joins was not told any.
    #[error(
        "a server that joins a group has to prove that it may: give it the group's join token with --join-token-file \
         FILE or WEFT_JOIN_TOKEN; the first server made it in its data folder, in the file {FILE}"
    )]
    Missing,
    /// The file cannot be read or made.
    #[error("join token {path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// From the system.
        source: io::Error,
    },
    /// It cannot be a token.
    #[error(
        "join token in {place}: {seen}; allowed are one or two tokens, each on a line of its own, of {BYTES_MIN} to \
         {BYTES_MAX} printable characters without spaces"
    )]
    Malformed {
        /// File or variable.
        place: String,
        /// What is wrong with it.
        seen: String,
    },
    /// Others can read it.
    #[error("join token {path}: its mode {mode:o} lets others read it; `chmod 600` it", path = path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Of the file.
        mode: u32,
    },
    /// The system gives no random bytes.
    #[error("no random bytes for a join token")]
    Random,
}

/// The tokens of now.
#[derive(Debug)]
pub struct Tokens {
    source: Source,
    /// Where it was made just now, if it was.
    made: Option<PathBuf>,
}

#[derive(Debug)]
enum Source {
    Fixed(Arc<[Token]>),
    File(Reloading<Arc<[Token]>>),
}

impl Tokens {
    /// Finds the token, or makes one if `forms_group` and there is none yet.
    ///
    /// # Errors
    /// If there is none, or it cannot be used.
    pub fn find(source: &TokenSource, data_dir: &Path, forms_group: bool) -> Result<Self, TokenError> {
        let (path, made) = match source {
            TokenSource::Given(Secret(text)) => return Self::given(text),
            TokenSource::File(path) => (path.clone(), None),
            TokenSource::DataFolder => {
                let path = data_dir.join(FILE);
                let there =
                    path.try_exists().map_err(|source| TokenError::Io { path: path.clone(), source })?;
                match there {
                    true => (path, None),
                    false if forms_group => {
                        make(&path)?;
                        (path.clone(), Some(path))
                    }
                    false => return Err(TokenError::Missing),
                }
            }
        };
        let read = path.clone();
        let file = Reloading::new("join token", vec![path], move || read_file(&read))?;
        Ok(Self { source: Source::File(file), made })
    }

    /// From a text, with commas between tokens.
    ///
    /// # Errors
    /// If it holds none, or what cannot be one.
    pub fn given(text: &str) -> Result<Self, TokenError> {
        let tokens = parse("WEFT_JOIN_TOKEN", &text.replace(',', "\n"))?;
        Ok(Self { source: Source::Fixed(tokens), made: None })
    }

    /// The first is to be proved, each is to be accepted.
    pub fn current(&self) -> Arc<[Token]> {
        match &self.source {
            Source::Fixed(tokens) => tokens.clone(),
            Source::File(file) => file.current(),
        }
    }

    /// The file, if this start has made it.
    pub fn made(&self) -> Option<&Path> {
        self.made.as_deref()
    }
}

fn make(path: &Path) -> Result<(), TokenError> {
    let mut bytes = [0; MADE_BYTES];
    rand::fill(&mut bytes).map_err(|_| TokenError::Random)?;
    let mut text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    text.push('\n');
    fsio::write_atomic_private(path, text.as_bytes())
        .map_err(|source| TokenError::Io { path: path.to_path_buf(), source })
}

fn read_file(path: &Path) -> Result<Arc<[Token]>, TokenError> {
    let io = |source| TokenError::Io { path: path.to_path_buf(), source };
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(path).map_err(io)?.permissions().mode() & 0o777;
        // A group may read it: that is how secrets are mounted for a process that is not root.
        if mode & 0o007 != 0 {
            return Err(TokenError::Exposed { path: path.to_path_buf(), mode });
        }
    }
    parse(&path.display().to_string(), &fs::read_to_string(path).map_err(io)?)
}

fn parse(place: &str, text: &str) -> Result<Arc<[Token]>, TokenError> {
    let refused = |seen: String| TokenError::Malformed { place: place.to_owned(), seen };
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if !(1..=TOKENS_MAX).contains(&lines.len()) {
        return Err(refused(format!("it holds {} tokens", lines.len())));
    }
    for (number, line) in (1..).zip(&lines) {
        if !(BYTES_MIN..=BYTES_MAX).contains(&line.len()) {
            return Err(refused(format!("token {number} has {} bytes", line.len())));
        }
        if !line.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refused(format!("token {number} has other characters")));
        }
    }
    Ok(lines.into_iter().map(|line| Token(line.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_forms_a_group_makes_a_token_once_that_only_its_user_can_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = Tokens::find(&TokenSource::DataFolder, folder.path(), true).expect("made");
        let path = first.made().expect("says where").to_owned();
        let again = Tokens::find(&TokenSource::DataFolder, folder.path(), false).expect("found");
        assert_eq!((again.made(), again.current()), (None, first.current()));
        assert_eq!(first.current().len(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            assert_eq!(fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
            mode(0o644);
            let refused = Tokens::find(&TokenSource::File(path.clone()), folder.path(), false);
            assert!(refused.expect_err("refused").to_string().contains("chmod 600"));
        }
    }

    #[test]
    fn a_server_that_joins_must_be_told_the_token() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = Tokens::find(&TokenSource::DataFolder, folder.path(), false).expect_err("refused");
        let text = refused.to_string();
        assert!(text.contains("--join-token-file") && text.contains("WEFT_JOIN_TOKEN"), "{text}");
        let absent = TokenSource::File(folder.path().join("none"));
        assert!(matches!(Tokens::find(&absent, folder.path(), true), Err(TokenError::Io { .. })));
    }

    #[test]
    fn what_cannot_be_a_token_is_refused_without_showing_it() {
        let good = "g".repeat(BYTES_MIN);
        assert_eq!(Tokens::given(&format!("{good},{good}")).expect("two").current().len(), 2);
        for (bad, seen) in [
            (String::new(), "0 tokens"),
            ("short-secret".to_owned(), "has 12 bytes"),
            ("x".repeat(257), "has 257 bytes"),
            (format!("{good} {good}"), "other characters"),
            (format!("{good}\n{good}\n{good}"), "3 tokens"),
            (format!("{good}ü"), "other characters"),
        ] {
            let text = Tokens::given(&bad).expect_err("refused").to_string();
            assert!(text.contains(seen), "{text}");
            assert!(!text.contains("secret") && !text.contains("ggg") && !text.contains("xxx"), "{text}");
        }
        assert!(!format!("{:?}", Tokens::given(&good)).contains("ggg"));
    }
}
