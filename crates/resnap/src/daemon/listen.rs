// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The daemon's sockets.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as Given;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tokio::net::{UnixListener, UnixStream};

/// A socket that is listened at, and its path if we made it; it is removed with the value.
pub(super) struct Socket(Option<PathBuf>);

impl Socket {
    /// Listens at the socket that was given, or else at `path`; what a dead process left there is
    /// removed, a living one's is not.
    pub(super) async fn listen(
        given: Option<Given>,
        path: &Path,
        mode: u32,
    ) -> Result<(UnixListener, Self)> {
        if let Some(given) = given {
            given.set_nonblocking(true)?;
            return Ok((UnixListener::from_std(given)?, Self(None)));
        }
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| format!("create {dir:?}"))?;
        }
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                bail!("{path:?} is there, and no socket")
            }
            Ok(_) => {
                if UnixStream::connect(path).await.is_ok() {
                    bail!("another process serves at {path:?}");
                }
                fs::remove_file(path).with_context(|| format!("remove {path:?}"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("look at {path:?}")),
        }
        let listener = UnixListener::bind(path).with_context(|| format!("listen at {path:?}"))?;
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(path, permissions).with_context(|| format!("protect {path:?}"))?;
        let socket = Socket(Some(path.to_owned()));
        Ok((listener, socket))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(%error, "{path:?} could not be removed");
        }
    }
}
