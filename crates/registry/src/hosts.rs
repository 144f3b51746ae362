// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `hosts.toml`: the hosts that serve a registry (containerd `core/remotes/docker/config/hosts.go`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::{Table, Value};

use crate::address::{is_loopback, is_registry};

/// The files and the setting of TLS for a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// Files with certificates that are trusted beside the system's.
    pub(crate) ca: Vec<PathBuf>,
    /// Files with a client certificate, and with its key unless the first file has it.
    pub(crate) client: Vec<(PathBuf, Option<PathBuf>)>,
    pub(crate) skip_verify: Option<bool>,
}

impl TlsFiles {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A host that serves a registry.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// The root of the distribution API, such as `https://a.b/v2`.
    pub(crate) root: Url,
    /// Whether plain HTTP is tried where the server does not speak TLS.
    pub(crate) may_be_plain: bool,
    pub(crate) may: Capabilities,
    pub(crate) tls: TlsFiles,
    /// Headers for this host only.
    pub(crate) headers: HeaderMap,
    pub(crate) dial_timeout: Option<Duration>,
}

/// The purposes that a host serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities {
    pub(crate) pull: bool,
    /// Whether it is asked for the targets of tags.
    pub(crate) resolve: bool,
    pub(crate) push: bool,
}

impl Capabilities {
    /// The capabilities of a registry itself.
    const ALL: Self = Self {
        pull: true,
        resolve: true,
        push: true,
    };
}

/// An error in a file: its key, and what is wrong.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    pub(crate) key: String,
    pub(crate) reason: String,
}

type Result<T> = std::result::Result<T, Invalid>;

fn invalid<T>(key: &str, reason: impl ToString) -> Result<T> {
    Err(Invalid {
        key: key.to_owned(),
        reason: reason.to_string(),
    })
}

/// Returns the hosts that are pulled from or pushed to, in order. Unknown keys are ignored. Relative paths
/// are those of `directory`. `registry` is the registry's host.
pub(crate) fn parse(text: &str, directory: &Path, registry: &str) -> Result<Vec<Endpoint>> {
    let table: Table = match text.parse() {
        Ok(table) => table,
        Err(error) => return invalid("the file", toml::de::Error::message(&error)),
    };
    let mut endpoints = Vec::new();
    match table.get("host") {
        None => {}
        Some(Value::Table(hosts)) => {
            for (address, value) in hosts {
                let key = format!("host.{address:?}");
                let Value::Table(host) = value else {
                    return invalid(&key, "is not a table");
                };
                let own = |root: &Url| is_registry(root, registry);
                endpoints.extend(endpoint(&key, host, directory, address, own)?);
            }
        }
        Some(_) => return invalid("host", "is not a table"),
    }
    match table.get("server") {
        Some(Value::String(server)) if !server.is_empty() => {
            endpoints.extend(endpoint("server", &table, directory, server, |_| true)?);
        }
        None | Some(Value::String(_)) => {
            let (tls, headers, dial_timeout) = connection("the file", &table, directory)?;
            endpoints.extend(default_endpoint(registry, tls).map(|endpoint| Endpoint {
                headers,
                dial_timeout,
                ..endpoint
            }));
        }
        Some(_) => return invalid("server", "is not a text"),
    }
    Ok(endpoints)
}

/// Returns the host that serves a registry unless a file says otherwise. On this machine, with a port
/// that tells nothing, TLS is tried first and its certificates are not verified.
pub(crate) fn default_endpoint(host: &str, tls: TlsFiles) -> Option<Endpoint> {
    let name = if host == "docker.io" {
        "registry-1.docker.io"
    } else {
        host
    };
    let mut root = Url::parse(&format!("https://{name}/v2")).ok()?;
    let mut tls = tls;
    let mut may_be_plain = false;
    if is_loopback(&root) {
        match root.port() {
            Some(80) => root = Url::parse(&format!("http://{name}/v2")).ok()?,
            port => {
                may_be_plain = port.is_some();
                tls.skip_verify = Some(true);
            }
        }
    }
    Some(Endpoint {
        root,
        may_be_plain,
        may: Capabilities::ALL,
        tls,
        headers: HeaderMap::new(),
        dial_timeout: None,
    })
}

/// Returns the host of one table; `None` if it is neither for pulling nor for pushing. A mirror is pushed to only if
/// the file says so, and not for want of a list of capabilities. `is_own` tells the registry from mirrors.
fn endpoint(
    key: &str,
    table: &Table,
    directory: &Path,
    address: &str,
    is_own: impl Fn(&Url) -> bool,
) -> Result<Option<Endpoint>> {
    let address = if address.contains("://") {
        address.to_owned()
    } else {
        format!("https://{address}")
    };
    let mut root = match Url::parse(&address) {
        Ok(root) if matches!(root.scheme(), "http" | "https") && root.has_host() => root,
        Ok(_) => return invalid(key, "is neither an http nor an https address"),
        Err(error) => return invalid(key, error),
    };
    if !root.username().is_empty() || root.password().is_some() {
        // The key has the user, too.
        return invalid("host", "has an address with a user");
    }
    root.set_query(None);
    root.set_fragment(None);
    let override_path = match table.get("override_path") {
        None => false,
        Some(Value::Boolean(value)) => *value,
        Some(_) => return invalid(&of(key, "override_path"), "is not a boolean"),
    };
    let path = root.path().trim_end_matches('/').to_owned();
    root.set_path(&if override_path || path.ends_with("/v2") {
        path
    } else {
        path + "/v2"
    });
    let capabilities = capabilities(&of(key, "capabilities"), table.get("capabilities"))?;
    let has = |name: &str| capabilities.iter().any(|may| may == name);
    let may = Capabilities {
        pull: capabilities.is_empty() || has("pull"),
        resolve: capabilities.is_empty() || has("resolve"),
        push: has("push") || (capabilities.is_empty() && is_own(&root)),
    };
    if !may.pull && !may.push {
        return Ok(None);
    }
    let (tls, headers, dial_timeout) = connection(key, table, directory)?;
    let may_be_plain =
        root.scheme() == "http" && !tls.is_empty() && root.port_or_known_default() != Some(80);
    if may_be_plain && root.set_scheme("https").is_err() {
        return invalid(key, "has no scheme");
    }
    Ok(Some(Endpoint {
        root,
        may_be_plain,
        may,
        tls,
        headers,
        dial_timeout,
    }))
}

fn of(key: &str, name: &str) -> String {
    match key {
        "server" | "the file" => name.to_owned(),
        _ => format!("{key}.{name}"),
    }
}

/// Returns the capabilities of a host; none stands for all.
fn capabilities(key: &str, capabilities: Option<&Value>) -> Result<Vec<String>> {
    let Some(capabilities) = capabilities else {
        return Ok(Vec::new());
    };
    let names = texts(key, capabilities)?.into_iter();
    let names: Vec<_> = names.map(|name| name.to_lowercase()).collect();
    for name in &names {
        if !matches!(&**name, "pull" | "resolve" | "push" | "referrers") {
            return invalid(key, format!("{name:?} is not a capability"));
        }
    }
    Ok(names)
}

type Connection = (TlsFiles, HeaderMap, Option<Duration>);

/// Returns the settings of a table for connections and requests.
fn connection(key: &str, table: &Table, directory: &Path) -> Result<Connection> {
    let mut tls = TlsFiles::default();
    if let Some(value) = table.get("ca") {
        let files = texts(&of(key, "ca"), value)?;
        tls.ca = files.iter().map(|file| directory.join(file)).collect();
    }
    if let Some(value) = table.get("client") {
        tls.client = clients(&of(key, "client"), value, directory)?;
    }
    tls.skip_verify = match table.get("skip_verify") {
        None => None,
        Some(Value::Boolean(value)) => Some(*value),
        Some(_) => return invalid(&of(key, "skip_verify"), "is not a boolean"),
    };
    let dial_timeout = match table.get("dial_timeout") {
        None => None,
        Some(Value::String(text)) if text.is_empty() => None,
        Some(value) => match value.as_str().and_then(duration) {
            Some(duration) => Some(duration),
            None => return invalid(&of(key, "dial_timeout"), "is not a duration such as \"3s\""),
        },
    };
    let headers = match table.get("header") {
        None => HeaderMap::new(),
        Some(Value::Table(table)) => headers(&of(key, "header"), table)?,
        Some(_) => return invalid(&of(key, "header"), "is not a table"),
    };
    Ok((tls, headers, dial_timeout))
}

fn clients(key: &str, value: &Value, directory: &Path) -> Result<Vec<(PathBuf, Option<PathBuf>)>> {
    let Value::Array(entries) = value else {
        let files = texts(key, value)?;
        return Ok(files
            .iter()
            .map(|file| (directory.join(file), None))
            .collect());
    };
    let mut clients = Vec::new();
    for entry in entries {
        match &*texts(key, entry)? {
            [file] if entry.is_str() => clients.push((directory.join(file), None)),
            [file, private] => clients.push((
                directory.join(file),
                (!private.is_empty()).then(|| directory.join(private)),
            )),
            _ => return invalid(key, "has a list that is not a pair"),
        }
    }
    Ok(clients)
}

fn headers(key: &str, table: &Table) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in table {
        let key = format!("{key}.{name}");
        for text in texts(&key, value)? {
            let (Ok(name), Ok(mut value)) = (
                HeaderName::from_bytes(name.as_bytes()),
                HeaderValue::from_str(&text),
            ) else {
                return invalid(&key, "is not a header");
            };
            value.set_sensitive(true);
            headers.append(name, value);
        }
    }
    Ok(headers)
}

/// Returns a text, or a list of texts, as a list.
fn texts(key: &str, value: &Value) -> Result<Vec<String>> {
    let found = match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(values) => values
            .iter()
            .map(|value| value.as_str().map(str::to_owned))
            .collect(),
        _ => None,
    };
    found.map_or_else(|| invalid(key, "is neither a text nor a list of texts"), Ok)
}

/// Parses a duration as Go writes it, such as `1m30s`.
fn duration(text: &str) -> Option<Duration> {
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|next: char| !next.is_ascii_digit() && next != '.')?;
        let (number, after) = rest.split_at(end);
        let end = after
            .find(|next: char| next.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = after;
    }
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| !duration.is_zero())
}

#[cfg(test)]
mod tests;
