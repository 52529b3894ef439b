//! The Unix socket.
//!
//! Invariants:
//! - Nobody can connect before mode, owner and group are right: the socket is bound
//!   inside a directory that only we can enter, and renamed to its place.
//! - Two sidecars never serve one path: whoever does holds a lock on the file
//!   `PATH.lock`, which the kernel releases when its process ends, however it ends.
//! - Nothing but a socket that nobody listens on is ever replaced.
//! - A peer whose credentials the kernel does not give is not let in.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions},
    io::{self, ErrorKind},
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown},
        net,
    },
    path::{Path, PathBuf},
};

use tokio::net::UnixStream;
use tracing::warn;

use super::{SetupError, SocketSettings, accept::Listener};
use crate::auth::Identity;

/// Longest path of a Unix socket that the kernel takes, in bytes.
const PATH_MAX_BYTES: usize = 107;

/// A bound Unix socket. Dropping it removes it and lets the next sidecar bind.
#[derive(Debug)]
pub(super) struct UnixListener {
    listener: tokio::net::UnixListener,
    // Fields are dropped in order: the path goes before the lock.
    _bound: Bound,
    _lock: File,
}

/// The path that a socket was bound to.
#[derive(Debug)]
struct Bound {
    path: PathBuf,
    /// Device and inode, so that nobody else's socket is removed.
    file: (u64, u64),
}

impl UnixListener {
    /// Binds the socket. Must be called inside a Tokio runtime.
    pub(super) fn bind(settings: &SocketSettings) -> Result<Self, SetupError> {
        let path = &settings.path;
        let lock = lock(path)?;
        make_way(path)?;
        let (listener, bound) = bind_private(settings)?;
        let listener = listener
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixListener::from_std(listener))
            .map_err(|error| cannot(path, "listen on", &error))?;
        Ok(Self { listener, _bound: bound, _lock: lock })
    }
}

fn cannot(path: &Path, verb: &str, error: &io::Error) -> SetupError {
    SetupError::new(format!("cannot {verb} the socket {}", path.display()), error)
}

/// Takes the lock of a path, or says who has it.
fn lock(path: &Path) -> Result<File, SetupError> {
    let mut name = OsString::from(path);
    name.push(".lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .map_err(|error| {
            let what = format!("cannot open the lock file {}", Path::new(&name).display());
            SetupError::new(what, error)
                .with_fix("make the socket's directory, owned by the user that the sidecar runs as")
        })?;
    file.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => SetupError::new(
            format!("cannot listen on the socket {}", path.display()),
            "another keyward serves it",
        )
        .with_fix("stop the other one, or give this one another server.socket"),
        fs::TryLockError::Error(error) => cannot(path, "lock", &error),
    })?;
    Ok(file)
}

/// Makes sure that what stands at `path`, if anything, may be replaced.
fn make_way(path: &Path) -> Result<(), SetupError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(cannot(path, "look at", &error)),
    };
    let refuse = |cause: &str| {
        SetupError::new(format!("cannot listen on the socket {}", path.display()), cause)
            .with_fix("see what it is; remove it, or give this sidecar another server.socket")
    };
    if !found.file_type().is_socket() {
        return Err(refuse("the path exists and is not a socket"));
    }
    match probe(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Ok(()) => Err(refuse("another program listens on it")),
        // A full queue, or no leave to connect: somebody may be there.
        Err(error) => Err(refuse(&format!("cannot tell whether anyone listens on it: {error}"))),
    }
}

/// Connects without ever waiting: a listener with a full queue would hold us up.
fn probe(path: &Path) -> io::Result<()> {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(connect(&socket, &SocketAddrUnix::new(path)?)?)
}

/// Binds in a directory of our own beside `settings.path`, sets what has to be set, and
/// moves the socket to its place.
fn bind_private(settings: &SocketSettings) -> Result<(net::UnixListener, Bound), SetupError> {
    let SocketSettings { path, mode, owner, group } = settings;
    let private = PrivateDir::beside(path)?;
    let temporary = private.0.join("s");
    let longest = temporary.as_os_str().len().max(path.as_os_str().len());
    if longest > PATH_MAX_BYTES {
        return Err(SetupError::new(
            format!("cannot listen on the socket {}", path.display()),
            format!("the path is longer than a socket's may be, by {}", longest - PATH_MAX_BYTES),
        )
        .with_fix("use a shorter server.socket"));
    }
    let listener =
        net::UnixListener::bind(&temporary).map_err(|error| cannot(path, "bind", &error))?;
    // Owner before mode: changing the owner may clear mode bits.
    if owner.is_some() || group.is_some() {
        chown(&temporary, *owner, *group).map_err(|error| {
            cannot(path, "set the owner of", &error)
                .with_fix("run as root, or name a group that the sidecar's user is in")
        })?;
    }
    fs::set_permissions(&temporary, Permissions::from_mode(*mode))
        .map_err(|error| cannot(path, "set the mode of", &error))?;
    let file = file_id(
        &fs::symlink_metadata(&temporary).map_err(|error| cannot(path, "look at", &error))?,
    );
    fs::rename(&temporary, path).map_err(|error| cannot(path, "put in place", &error))?;
    Ok((listener, Bound { path: path.clone(), file }))
}

fn file_id(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Drop for Bound {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| file_id(&found) == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            warn!("cannot remove the socket {}: {error}", self.path.display());
        }
    }
}

/// A directory of mode 0700 that is removed, with what is in it, when dropped.
struct PrivateDir(PathBuf);

impl PrivateDir {
    /// The name is short, because a socket's path is.
    fn beside(path: &Path) -> Result<Self, SetupError> {
        for attempt in 0..64_u32 {
            let name = format!(".kw{:x}", std::process::id().wrapping_add(attempt << 24));
            let dir = path.with_file_name(name);
            match DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => return Ok(Self(dir)),
                // Left behind by a sidecar that was killed, or another one's.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(cannot(path, "make a directory for", &error)),
            }
        }
        Err(SetupError::new(
            format!("cannot make a directory for the socket {}", path.display()),
            "every name is taken",
        )
        .with_fix("remove the directories .kw* beside it"))
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(self.0.join("s"));
        let _kept = fs::remove_dir(&self.0);
    }
}

impl Listener for UnixListener {
    type Raw = UnixStream;
    type Io = UnixStream;

    fn name(&self) -> &'static str {
        "unix"
    }

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }

    async fn identify(&self, raw: UnixStream) -> Result<(UnixStream, Identity), String> {
        let peer = raw
            .peer_cred()
            .map_err(|error| format!("the kernel does not say who connected: {error}"))?;
        let who = Identity::Unix { uid: peer.uid(), gid: peer.gid() };
        Ok((raw, who))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn settings(dir: &TempDir) -> SocketSettings {
        SocketSettings { path: dir.path().join("k.sock"), mode: 0o660, owner: None, group: None }
    }

    fn cause(settings: &SocketSettings) -> String {
        UnixListener::bind(settings).unwrap_err().cause().to_owned()
    }

    #[tokio::test]
    async fn the_mode_is_right_and_nothing_else_is_left() {
        let dir = TempDir::new().unwrap();
        let settings = SocketSettings { mode: 0o600, ..settings(&dir) };
        let listener = UnixListener::bind(&settings).unwrap();
        let mode = fs::metadata(&settings.path).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let names = || {
            let mut names: Vec<_> = fs::read_dir(&dir)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["k.sock", "k.sock.lock"]);
        drop(listener);
        assert_eq!(names(), ["k.sock.lock"]);
    }

    #[test]
    fn nobody_else_can_enter_the_directory_that_the_socket_is_bound_in() {
        let dir = TempDir::new().unwrap();
        let private = PrivateDir::beside(&dir.path().join("k.sock")).unwrap();
        assert_eq!(fs::metadata(&private.0).unwrap().mode() & 0o7777, 0o700);
        let second = PrivateDir::beside(&dir.path().join("k.sock")).unwrap();
        assert_ne!(private.0, second.0);
    }

    #[tokio::test]
    async fn a_second_instance_refuses_and_the_first_goes_on() {
        let dir = TempDir::new().unwrap();
        let settings = settings(&dir);
        let first = UnixListener::bind(&settings).unwrap();
        assert_eq!(cause(&settings), "another keyward serves it");
        let client = UnixStream::connect(&settings.path).await.unwrap();
        let (_, who) = first.identify(first.accept().await.unwrap()).await.unwrap();
        let own = rustix::process::getuid().as_raw();
        assert!(matches!(who, Identity::Unix { uid, .. } if uid == own));
        drop((client, first));
        UnixListener::bind(&settings).unwrap();
    }

    #[tokio::test]
    async fn a_stale_socket_is_taken_over_and_a_live_one_is_not() {
        let dir = TempDir::new().unwrap();
        let settings = settings(&dir);
        let live = net::UnixListener::bind(&settings.path).unwrap();
        assert_eq!(cause(&settings), "another program listens on it");
        drop(live);
        assert!(settings.path.exists(), "std leaves the file behind");
        let listener = UnixListener::bind(&settings).unwrap();
        let (client, accepted) =
            tokio::join!(UnixStream::connect(&settings.path), listener.accept());
        client.unwrap();
        accepted.unwrap();
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_left_alone() {
        let dir = TempDir::new().unwrap();
        let settings = settings(&dir);
        fs::write(&settings.path, "precious").unwrap();
        assert_eq!(cause(&settings), "the path exists and is not a socket");
        assert_eq!(fs::read(&settings.path).unwrap(), b"precious");
        fs::remove_file(&settings.path).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &settings.path).unwrap();
        assert_eq!(cause(&settings), "the path exists and is not a socket");
    }

    #[tokio::test]
    async fn a_successors_socket_is_not_removed() {
        let dir = TempDir::new().unwrap();
        let settings = settings(&dir);
        let listener = UnixListener::bind(&settings).unwrap();
        fs::remove_file(&settings.path).unwrap();
        fs::write(&settings.path, "of another").unwrap();
        drop(listener);
        assert!(settings.path.exists());
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_refused_with_a_fix() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("x".repeat(100));
        let error = UnixListener::bind(&SocketSettings { path, ..settings(&dir) }).unwrap_err();
        assert!(error.cause().contains("longer than a socket's may be"), "{error}");
        assert!(error.fix().is_some());
    }
}
