// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The directories with the configuration of registries (containerd `hosts.go` and `hosts_unix.go`).

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use resnap_core::Kind;

use crate::failure::Failure;
use crate::hosts::{Endpoint, TlsFiles, default_endpoint, parse};

/// The limit on the size of a file of configuration or certificates.
const MAX_FILE: u64 = 4 << 20;

/// Returns the hosts that serve the registry `host`, in the order in which they are tried.
pub(crate) fn endpoints(directories: &[PathBuf], host: &str) -> Result<Vec<Endpoint>, Failure> {
    let Some(directory) = find(directories, host) else {
        return Ok(default_endpoint(host, TlsFiles::default())
            .into_iter()
            .collect());
    };
    let file = directory.join("hosts.toml");
    let text = match read(&file) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| {
            Failure::new(
                Kind::InvalidArgument,
                format!("{}: is not text", file.display()),
            )
        })?,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(unreadable(&file, &error)),
    };
    if text.is_empty() {
        let tls = certificates(&directory)?;
        return Ok(default_endpoint(host, tls).into_iter().collect());
    }
    parse(&text, &directory, host).map_err(|invalid| {
        let text = format!("{}: {}: {}", file.display(), invalid.key, invalid.reason);
        Failure::new(Kind::InvalidArgument, text)
    })
}

/// Returns the directory of a registry.
fn find(directories: &[PathBuf], host: &str) -> Option<PathBuf> {
    let underscored = host
        .rsplit_once(':')
        .map(|(name, port)| format!("{name}_{port}_"));
    let names = underscored
        .into_iter()
        .chain([host.to_owned(), "_default".to_owned()]);
    let names: Vec<String> = names.collect();
    let paths = directories
        .iter()
        .flat_map(|directory| names.iter().map(|name| directory.join(name)));
    paths.into_iter().find(|path| path.exists())
}

/// Returns the certificates in a directory of Docker's form: `*.crt`, and `*.cert` with `*.key`.
fn certificates(directory: &Path) -> Result<TlsFiles, Failure> {
    let entries = fs::read_dir(directory).map_err(|error| unreadable(directory, &error))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut tls = TlsFiles::default();
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.ca.push(path),
            Some("cert") => {
                let key = Some(path.with_extension("key")).filter(|key| key.exists());
                tls.client.push((path, key));
            }
            _ => {}
        }
    }
    Ok(tls)
}

/// Reads a file of limited size.
pub(crate) fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// Returns the failure for a file that cannot be read.
pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        Kind::FailedPrecondition,
        format!("{}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_directory_counts() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (root.path().join("1"), root.path().join("2"));
        let directories = [first.clone(), second.clone()];
        assert_eq!(find(&directories, "a.b:5000"), None);
        for (path, host) in [
            (second.join("_default"), "a.b:5000"),
            (second.join("a.b:5000"), "a.b:5000"),
            (second.join("a.b_5000_"), "a.b:5000"),
            (first.join("_default"), "a.b:5000"),
            (first.join("a.b"), "a.b"),
        ] {
            fs::create_dir_all(&path).unwrap();
            assert_eq!(find(&directories, host), Some(path));
        }
    }

    #[test]
    fn dockers_form_has_certificates_only() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("a.b");
        fs::create_dir_all(&directory).unwrap();
        for name in ["ca.crt", "c.cert", "c.key", "d.cert", "other"] {
            fs::write(directory.join(name), "").unwrap();
        }
        let found = endpoints(&[root.path().to_owned()], "a.b").unwrap();
        assert_eq!(found[0].tls.ca, [directory.join("ca.crt")]);
        let clients = [
            (directory.join("c.cert"), Some(directory.join("c.key"))),
            (directory.join("d.cert"), None),
        ];
        assert_eq!(found[0].tls.client, clients);
    }

    #[test]
    fn an_error_names_the_file_and_the_key() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a.b")).unwrap();
        fs::write(root.path().join("a.b/hosts.toml"), "server = 1").unwrap();
        let failure = endpoints(&[root.path().to_owned()], "a.b").unwrap_err();
        let text = failure.text;
        assert!(
            text.contains("a.b/hosts.toml: server: is not a text"),
            "{text}"
        );
    }
}
