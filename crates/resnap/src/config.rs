// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What resnap is told: by flags, the environment and a file, in this order, or else by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::ArgMatches;
use clap::parser::ValueSource;
use resnap_applier::{ApplierSettings, Differ, MEMORY, STALL};
use resnap_containerd::DEFAULT_ADDRESS;
use resnap_core::{LabelRequirement, LabeledLayers, Profile, Profiles, Volumes};
use resnap_cri_proxy::Unlabelled;
use resnap_unpacker::Configuration;
use serde::Deserialize;

use crate::args::{Common, ServeArguments};
use crate::warm::Floor;

/// Where the file is unless told otherwise.
pub(crate) const FILE: &str = "/etc/resnap/config.toml";

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Flag,
    Environment,
    File,
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "flag",
            Self::Environment => "environment",
            Self::File => "config file",
            Self::Default => "default",
        })
    }
}

/// A value and where it comes from.
#[derive(Debug, Clone)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) source: Source,
}

impl<T> Setting<T> {
    fn or_default(file: Option<T>, default: T) -> Self {
        let source = file.as_ref().map_or(Source::Default, |_| Source::File);
        let value = file.unwrap_or(default);
        Self { value, source }
    }
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Config {
    /// The file that was read, if any was.
    pub(crate) file: Setting<Option<PathBuf>>,
    pub(crate) address: Setting<String>,
    pub(crate) namespace: Setting<String>,
    pub(crate) runtime_dir: Setting<PathBuf>,
    pub(crate) cri_socket: Setting<PathBuf>,
    pub(crate) api_socket: Setting<PathBuf>,
    /// Off if `None`.
    pub(crate) metrics_address: Setting<Option<SocketAddr>>,
    pub(crate) always: Setting<bool>,
    /// As [`resnap_cri_proxy::ProxySettings::unlabelled`].
    pub(crate) unlabelled: Setting<Option<Unlabelled>>,
    pub(crate) default_snapshotter: Option<String>,
    pub(crate) sandbox_image: Option<String>,
    pub(crate) handlers: BTreeMap<String, String>,
    pub(crate) prewarm: Vec<Rule>,
    pub(crate) prewarm_jobs: usize,
    /// What goes where.
    pub(crate) unpack: Setting<Vec<Configuration>>,
    pub(crate) profiles: Profiles,
    pub(crate) applier: ApplierSettings,
    /// Of layers: where the applier's settings of these names are from.
    pub(crate) memory: Setting<u64>,
    pub(crate) stall: Setting<Duration>,
    /// Those of the profiles that the file has changed.
    pub(crate) changed_profiles: Vec<String>,
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    address: Option<String>,
    namespace: Option<String>,
    runtime_dir: Option<PathBuf>,
    prewarm_jobs: Option<NonZeroUsize>,
    max_layer_bytes: Option<u64>,
    memory: Option<Memory>,
    stall: Option<Stall>,
    cri: CriSection,
    api: ApiSection,
    metrics: MetricsSection,
    snapshotters: BTreeMap<String, SnapshotterSection>,
    unpack: Option<Vec<UnpackSection>>,
    prewarm: Vec<Rule>,
}

/// Bytes of memory for layers, at least 16 MiB: less are not enough for a layer of a real image.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u64")]
struct Memory(u64);

impl TryFrom<u64> for Memory {
    type Error = String;

    fn try_from(bytes: u64) -> Result<Self, String> {
        match bytes >= 16 << 20 {
            true => Ok(Self(bytes)),
            false => Err(format!("memory of {bytes} bytes is less than 16777216")),
        }
    }
}

/// Seconds without progress, at least one.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(from = "NonZeroU64")]
struct Stall(Duration);

impl From<NonZeroU64> for Stall {
    fn from(seconds: NonZeroU64) -> Self {
        Self(Duration::from_secs(seconds.get()))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CriSection {
    socket: Option<PathBuf>,
    always: Option<bool>,
    unlabelled: Option<UnlabelledWord>,
    default_snapshotter: Option<String>,
    sandbox_image: Option<String>,
    handlers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ApiSection {
    socket: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MetricsSection {
    address: Option<SocketAddr>,
}

/// Which images are made ready ahead, and where.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// Names, with `*` for any text.
    #[serde(default = "all")]
    pub(crate) images: Vec<String>,
    pub(crate) snapshotters: Vec<String>,
    /// What stays free of a snapshotter's file system.
    #[serde(default)]
    pub(crate) min_free: Floor,
}

fn all() -> Vec<String> {
    vec!["*".to_owned()]
}

/// What the operator knows of a snapshotter.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SnapshotterSection {
    labels: Option<LabelsWord>,
    reason: Option<String>,
    volumes: Option<VolumesWord>,
    os_features: Option<BTreeSet<String>>,
    differ: Option<DifferWord>,
    sync_fs: Option<bool>,
}

/// What goes where if the user does not say so.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnpackSection {
    platform: String,
    snapshotter: String,
    #[serde(default)]
    optional: bool,
}

impl UnpackSection {
    fn read(self) -> Result<Configuration> {
        let platform = self.platform.parse();
        let platform =
            platform.with_context(|| format!("[[unpack]] platform {:?}", self.platform))?;
        Ok(Configuration {
            platform,
            snapshotter: self.snapshotter,
            optional: self.optional,
        })
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum UnlabelledWord {
    Repair,
    Forward,
    Fail,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LabelsWord {
    None,
    Top,
    Every,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum VolumesWord {
    Host,
    Guest,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DifferWord {
    Auto,
    Resnap,
    Containerd,
}

impl From<DifferWord> for Differ {
    fn from(word: DifferWord) -> Self {
        match word {
            DifferWord::Auto => Self::Auto,
            DifferWord::Resnap => Self::Resnap,
            DifferWord::Containerd => Self::Containerd,
        }
    }
}

impl From<UnlabelledWord> for Unlabelled {
    fn from(word: UnlabelledWord) -> Self {
        match word {
            UnlabelledWord::Repair => Self::Repair,
            UnlabelledWord::Forward => Self::Forward,
            UnlabelledWord::Fail => Self::Fail,
        }
    }
}

impl SnapshotterSection {
    fn amend(self, profile: &mut Profile) {
        let reason = self.reason.map(Into::into);
        match self.labels {
            Some(LabelsWord::None) => profile.need = None,
            Some(word) => {
                let known = profile.need.take();
                let (why, repair_label) = known
                    .map(|need| (need.why, need.repair_label))
                    .unwrap_or_else(|| ("the configuration says so".into(), None));
                profile.need = Some(LabelRequirement {
                    why: reason.unwrap_or(why),
                    layers: if word == LabelsWord::Top {
                        LabeledLayers::Top
                    } else {
                        LabeledLayers::Every
                    },
                    repair_label,
                });
            }
            None => {
                if let (Some(need), Some(reason)) = (&mut profile.need, reason) {
                    need.why = reason;
                }
            }
        }
        match self.volumes {
            Some(VolumesWord::Host) => profile.volumes = Volumes::Host,
            Some(VolumesWord::Guest) => profile.volumes = Volumes::Guest,
            None => {}
        }
        if let Some(features) = self.os_features {
            profile.os_features = features;
        }
        if let Some(sync_fs) = self.sync_fs {
            profile.sync_fs = sync_fs;
        }
    }
}

impl Config {
    /// Puts together what the arguments say, and the file that they name or that is at [`FILE`].
    pub(crate) fn load(
        common: &Common,
        serve: Option<&ServeArguments>,
        matches: &ArgMatches,
    ) -> Result<Self> {
        let (path, file) = match &common.config {
            Some(path) => (None, read(path)?),
            None => match read(Path::new(FILE)) {
                Ok(file) => (Some(PathBuf::from(FILE)), file),
                Err(error) if is_missing(&error) => (None, File::default()),
                Err(error) => return Err(error),
            },
        };
        let given = Given(matches);
        let runtime_dir = given.or(
            "runtime_dir",
            common.runtime_dir.clone(),
            Setting::or_default(file.runtime_dir, "/run/resnap".into()),
        );
        let below = |name| runtime_dir.value.join(name);
        let cri_socket = Setting::or_default(file.cri.socket, below("cri.sock"));
        let api_socket = Setting::or_default(file.api.socket, below("api.sock"));
        let metrics = Setting {
            source: file
                .metrics
                .address
                .map_or(Source::Default, |_| Source::File),
            value: file.metrics.address,
        };
        let metrics_flag = serve.and_then(|serve| serve.metrics_address);
        let unlabelled = file.cri.unlabelled.map(Unlabelled::from);
        let mut profiles = Profiles::default();
        let changed_profiles = file.snapshotters.keys().cloned().collect();
        let mut applier = ApplierSettings::default();
        applier.max_layer_bytes = file.max_layer_bytes;
        let memory = Setting::or_default(file.memory.map(|memory| memory.0), MEMORY);
        let stall = Setting::or_default(file.stall.map(|stall| stall.0), STALL);
        (applier.memory, applier.stall) = (memory.value, stall.value);
        for (name, section) in file.snapshotters {
            let differ = section.differ.map(Differ::from);
            applier
                .differs
                .extend(differ.map(|differ| (name.clone(), differ)));
            section.amend(profiles.entry(&name));
        }
        let default_snapshotter = file.cri.default_snapshotter;
        let defaults = || {
            let name = default_snapshotter.as_deref().unwrap_or("overlayfs");
            Configuration::defaults(name)
        };
        let unpack: Option<Result<Vec<_>>> = file
            .unpack
            .map(|entries| entries.into_iter().map(UnpackSection::read).collect());
        let config = Self {
            file: given.or(
                "config",
                common.config.clone().map(Some),
                Setting {
                    value: path,
                    source: Source::Default,
                },
            ),
            address: given.or(
                "address",
                common.address.clone(),
                Setting::or_default(file.address, DEFAULT_ADDRESS.to_owned()),
            ),
            namespace: given.or(
                "namespace",
                common.namespace.clone(),
                Setting::or_default(file.namespace, "k8s.io".to_owned()),
            ),
            cri_socket: given.or(
                "cri_socket",
                serve.and_then(|serve| serve.cri_socket.clone()),
                cri_socket,
            ),
            api_socket,
            metrics_address: given.or("metrics_address", metrics_flag.map(Some), metrics),
            runtime_dir,
            always: Setting::or_default(file.cri.always, false),
            unlabelled: Setting {
                source: unlabelled.map_or(Source::Default, |_| Source::File),
                value: unlabelled,
            },
            unpack: Setting {
                source: unpack.as_ref().map_or(Source::Default, |_| Source::File),
                value: unpack.unwrap_or_else(|| Ok(defaults()))?,
            },
            default_snapshotter,
            sandbox_image: file.cri.sandbox_image,
            handlers: file.cri.handlers,
            prewarm: file.prewarm,
            prewarm_jobs: file.prewarm_jobs.map_or(1, NonZeroUsize::get),
            profiles,
            applier,
            memory,
            stall,
            changed_profiles,
        };
        if let Some(address) = config
            .metrics_address
            .value
            .filter(|at| !at.ip().is_loopback())
        {
            bail!("metrics address {address} is not on the loopback device; take 127.0.0.1 or ::1");
        }
        Ok(config)
    }

    /// containerd's socket.
    pub(crate) fn backend(&self) -> &Path {
        Path::new(self.address.value.trim_start_matches("unix://"))
    }
}

/// What is given on the command line or by the environment.
struct Given<'a>(&'a ArgMatches);

impl Given<'_> {
    fn or<T>(&self, id: &str, given: Option<T>, otherwise: Setting<T>) -> Setting<T> {
        let Some(value) = given else {
            return otherwise;
        };
        let mut matches = Some(self.0);
        let mut environment = false;
        while let Some(level) = matches {
            // Arguments of one level are not known to the next.
            if matches!(level.try_contains_id(id), Ok(true)) {
                environment = level.value_source(id) == Some(ValueSource::EnvVariable);
            }
            matches = level.subcommand().map(|(_, level)| level);
        }
        let source = if environment {
            Source::Environment
        } else {
            Source::Flag
        };
        Setting { value, source }
    }
}

fn read(path: &Path) -> Result<File> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path:?}"))?;
    toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        anyhow!(
            "configuration file {path:?}, line {line}: {}",
            error.message()
        )
    })
}

fn is_missing(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, FromArgMatches as _};

    use super::*;
    use crate::args::Arguments;

    const EXAMPLE: &str = include_str!("../../../examples/config.toml");

    /// By this file alone.
    fn load(path: &str) -> Result<Config> {
        let words = ["resnap", "--config", path, "images"];
        let matches = Arguments::command().get_matches_from(words);
        let arguments = Arguments::from_arg_matches(&matches)?;
        Config::load(&arguments.common, None, &matches)
    }

    /// What is told by this file alone, without where it is from.
    fn told(path: &str) -> String {
        let mut config = load(path).unwrap();
        config.file.value = None;
        format!("{config:#?}").replace("source: File", "source: Default")
    }

    #[test]
    fn the_example_is_the_defaults() {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/config.toml");
        assert_eq!(told(example), told("/dev/null"));
    }

    /// By a file with this text alone.
    fn of(text: &str) -> Result<Config> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("config.toml");
        fs::write(&path, text)?;
        load(&path.display().to_string())
    }

    /// What of it goes where.
    fn unpack(text: &str) -> Result<Vec<(String, String, bool)>> {
        let config = of(text)?;
        let entries = config.unpack.value.into_iter();
        Ok(entries
            .map(|entry| {
                (
                    entry.platform.to_string(),
                    entry.snapshotter,
                    entry.optional,
                )
            })
            .collect())
    }

    #[test]
    fn what_goes_where_is_read() {
        let host = resnap_unpacker::Configuration::defaults("")[0]
            .platform
            .to_string();
        let erofs = host.replacen('/', "(+erofs)/", 1);
        let entry = |platform: &str, snapshotter: &str, optional| {
            (platform.to_owned(), snapshotter.to_owned(), optional)
        };
        for (text, want) in [
            (
                "",
                vec![
                    entry(&host, "overlayfs", false),
                    entry(&erofs, "erofs", true),
                ],
            ),
            (
                "cri.default_snapshotter = 'native'",
                vec![entry(&host, "native", false), entry(&erofs, "erofs", true)],
            ),
            (
                "[[unpack]]\nplatform = 'linux(+b+a)/arm64'\nsnapshotter = 'mine'\noptional = true\n\
                 [[unpack]]\nplatform = 'Linux/x86_64'\nsnapshotter = 'other'",
                vec![
                    entry("linux(+a+b)/arm64", "mine", true),
                    entry("linux/amd64", "other", false),
                ],
            ),
            ("unpack = []", Vec::new()),
        ] {
            assert_eq!(unpack(text).unwrap(), want, "{text}");
        }
        for (text, says) in [
            (
                "[[unpack]]\nsnapshotter = 'erofs'",
                "missing field `platform`",
            ),
            (
                "[[unpack]]\nplatform = 'linux/amd64'",
                "missing field `snapshotter`",
            ),
            (
                "[[unpack]]\nplatform = 'linux(erofs/amd64'\nsnapshotter = 'erofs'",
                "[[unpack]] platform \"linux(erofs/amd64\"",
            ),
        ] {
            let error = format!("{:#}", unpack(text).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn who_writes_layers_is_read() {
        let text = "[snapshotters.mine]\ndiffer = 'resnap'\nsync_fs = true\n[snapshotters.other]";
        let config = of(text).unwrap();
        let differs = ["mine", "other"].map(|name| config.applier.differ(name));
        assert_eq!(differs, [Differ::Resnap, Differ::Auto]);
        let syncs = ["mine", "other"].map(|name| config.profiles.get(name).sync_fs);
        assert_eq!(syncs, [true, false]);
    }

    #[test]
    fn what_layers_may_take_is_read() {
        let applier = of("").unwrap().applier;
        assert_eq!((applier.memory, applier.stall.as_secs()), (256 << 20, 600));
        let applier = of("memory = 16777216\nstall = 1").unwrap().applier;
        assert_eq!((applier.memory, applier.stall.as_secs()), (16 << 20, 1));
        for (text, says) in [
            (
                "memory = 16777215",
                "memory of 16777215 bytes is less than 16777216",
            ),
            ("stall = 0", "expected a nonzero u64"),
        ] {
            let error = format!("{:#}", of(text).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_example_has_every_key() {
        // Prose has a blank after its hash.
        let uncommented = |line: &str| match line.strip_prefix('#') {
            Some(key) if !key.is_empty() && !key.starts_with(' ') => format!("{key}\n"),
            _ => format!("{line}\n"),
        };
        let whole: String = EXAMPLE.lines().map(uncommented).collect();
        let file: File = toml::from_str(&whole).unwrap();
        assert!(file.snapshotters["mine"].volumes.is_some());

        for section in [
            "",
            "[cri]",
            "[api]",
            "[metrics]",
            "[snapshotters.mine]",
            "[[unpack]]",
            "[[prewarm]]",
        ] {
            let wrong = format!("{section}\nno_such_key = 1");
            let error = toml::from_str::<File>(&wrong).unwrap_err();
            let (_, keys) = error.message().split_once("expected ").unwrap();
            for key in keys.split('`').skip(1).step_by(2) {
                let is_there = whole.lines().any(|line| {
                    line.strip_prefix(key)
                        .is_some_and(|rest| rest.starts_with(" = "))
                        || line.starts_with(&format!("[{key}"))
                        || line.starts_with(&format!("[[{key}"))
                        || line.ends_with(&format!(".{key}]"))
                });
                assert!(is_there, "{section} {key}");
            }
        }
    }
}
