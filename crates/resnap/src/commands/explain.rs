// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap config explain`.

use std::path::PathBuf;

use anyhow::Result;
use resnap_applier::Differ;
use resnap_core::{LabeledLayers, Profile, Volumes};
use resnap_cri_proxy::{Fact, FactSource, Unlabelled, When};
use serde::Serialize;

use crate::config::{Config, Setting, Source};
use crate::connect;
use crate::diff_plugin;
use crate::exit_status::ExitStatus;
use crate::output::{Output, or_dash};

/// A row of the table.
#[derive(Serialize)]
struct Row {
    name: String,
    value: Option<String>,
    source: String,
}

impl Row {
    fn new(name: impl Into<String>, value: Option<String>, source: impl ToString) -> Self {
        Self {
            name: name.into(),
            value,
            source: source.to_string(),
        }
    }

    fn of<T>(name: &str, setting: &Setting<T>, show: impl Fn(&T) -> Option<String>) -> Self {
        Self::new(name, show(&setting.value), &setting.source)
    }
}

pub(crate) async fn run(config: &Config, output: &mut Output) -> Result<ExitStatus> {
    let mut rows = configured(config);
    match facts(config).await {
        Ok(facts) => rows.extend(facts.into_iter().map(|fact| {
            let source = fact.value.as_ref().map(|value| match value.source {
                FactSource::Containerd => "containerd".to_owned(),
                FactSource::PodSandboxStatus => "PodSandboxStatus".to_owned(),
                FactSource::Settings => Source::File.to_string(),
            });
            let value = fact.value.map(|value| value.value);
            Row::new(format!("cri.{}", fact.name), value, or_dash(source))
        })),
        Err(error) => tracing::warn!(%error, "the facts of containerd are missing"),
    }
    diff_plugin::warn(config).await;
    output.document(&rows, |table| {
        table.header(["NAME", "VALUE", "SOURCE"]);
        for row in &rows {
            table.row([
                row.name.clone(),
                or_dash(row.value.clone()),
                row.source.clone(),
            ]);
        }
    })?;
    Ok(ExitStatus::Done)
}

/// Returns the facts that the proxy takes from containerd, or from the configuration in its place.
async fn facts(config: &Config) -> Result<Vec<Fact>> {
    let proxy = connect::proxy(config, connect::engine(config).await?, None, None);
    proxy.facts().await.map_err(anyhow::Error::msg)
}

/// Returns the rows of everything that does not come from containerd.
fn configured(config: &Config) -> Vec<Row> {
    let mut rows = general(config);
    rows.extend(prewarm(config));
    rows.extend(unpack(config));
    let profiles = config.profiles.iter();
    rows.extend(profiles.flat_map(|(name, profile)| snapshotter(config, name, profile)));
    rows
}

fn general(config: &Config) -> Vec<Row> {
    let path = |path: &PathBuf| Some(path.display().to_string());
    let paths =
        |paths: &Vec<PathBuf>| Some(paths.iter().filter_map(path).collect::<Vec<_>>().join(", "));
    let text = |text: &String| Some(text.clone());
    let unlabelled = |value: &Option<Unlabelled>| {
        let word = match value {
            None => "repair where labels alone mend, else forward",
            Some(Unlabelled::Repair) => "repair",
            Some(Unlabelled::Forward) => "forward",
            Some(Unlabelled::Fail) => "fail",
        };
        Some(word.to_owned())
    };
    let when = |value: &When| {
        let word = match value {
            When::Safe => "when-safe",
            When::Always => "always",
            When::Never => "never",
        };
        Some(word.to_owned())
    };
    let max_layer_bytes = |value: &Option<u64>| match value {
        None => Some("1000 times the blob and 1 GiB".to_owned()),
        Some(bytes) => Some(bytes.to_string()),
    };
    vec![
        Row::of("config", &config.file, |file| file.as_ref().and_then(path)),
        Row::of("address", &config.address, text),
        Row::of("namespace", &config.namespace, text),
        Row::of("runtime_dir", &config.runtime_dir, path),
        Row::of("cri.socket", &config.cri_socket, path),
        Row::of("cri.always", &config.always, |value| {
            Some(value.to_string())
        }),
        Row::of("cri.unlabelled", &config.unlabelled, unlabelled),
        Row::of("cri.steer_pulls", &config.steer_pulls, when),
        Row::of("cri.image_status", &config.image_status, when),
        Row::of("cri.kubelet_root", &config.kubelet_root, path),
        Row::of("max_layer_bytes", &config.max_layer_bytes, max_layer_bytes),
        Row::of("memory", &config.memory, |bytes| Some(bytes.to_string())),
        Row::of("stall", &config.stall, |stall| {
            Some(stall.as_secs().to_string())
        }),
        Row::of("sources.order", &config.sources, |sources| {
            let names = sources.iter().map(|source| source.as_str());
            Some(names.collect::<Vec<_>>().join(", "))
        }),
        Row::of("sources.sibling", &config.sibling, |word| {
            Some(word.as_str().to_owned())
        }),
        Row::of("sources.keep_fetched", &config.keep_fetched, |word| {
            Some(word.as_str().to_owned())
        }),
        Row::of("sources.archives", &config.archives, paths),
        Row::of("sources.hosts_dir", &config.hosts_dir, paths),
        Row::of("integrity.authorities", &config.authorities, paths),
        Row::of("integrity.signers", &config.signers, paths),
        Row::of("api.socket", &config.api_socket, path),
        Row::of("diff.socket", &config.diff_socket, |socket| {
            socket.as_ref().and_then(path)
        }),
        Row::of("metrics.address", &config.metrics_address, |value| {
            value.map(|address| address.to_string())
        }),
        Row::of("prewarm_jobs", &config.prewarm_jobs, |jobs| {
            Some(jobs.to_string())
        }),
    ]
}

fn prewarm(config: &Config) -> impl Iterator<Item = Row> {
    config.prewarm.iter().enumerate().map(|(index, rule)| {
        let (images, snapshotters) = (rule.images.join(", "), rule.snapshotters.join(", "));
        let value = format!("{images} on {snapshotters}, {} stay free", rule.min_free);
        Row::new(format!("prewarm.{index}"), Some(value), Source::File)
    })
}

fn unpack(config: &Config) -> impl Iterator<Item = Row> {
    let entries = config.unpack.value.iter().enumerate();
    entries.map(|(index, entry)| {
        let optional = match entry.optional {
            true => ", if it is there",
            false => "",
        };
        let value = format!("{} on {}{optional}", entry.platform, entry.snapshotter);
        Row::new(
            format!("unpack.{index}"),
            Some(value),
            &config.unpack.source,
        )
    })
}

fn snapshotter(config: &Config, name: &str, profile: &Profile) -> [Row; 7] {
    let source = config.profile_source(name);
    let differ = match config.applier.differ(name) {
        Differ::Auto => "auto",
        Differ::Resnap => "resnap",
        Differ::Containerd => "containerd",
    };
    let labels = profile.need.as_ref().map(|need| {
        let layers = match need.layers {
            LabeledLayers::Every => "every layer",
            LabeledLayers::Top => "the top layer",
        };
        format!("{layers}: {}", need.why)
    });
    let features: Vec<&str> = profile.os_features.iter().map(String::as_str).collect();
    let features = Some(features.join(", ")).filter(|text| !text.is_empty());
    let volumes = match profile.volumes {
        Volumes::Unknown => None,
        Volumes::Host => Some("host".to_owned()),
        Volumes::HostExcept { from, until } => Some(format!(
            "host, except with containerd {}.{} to before {}.{}",
            from.0, from.1, until.0, until.1
        )),
        Volumes::Guest => Some("guest".to_owned()),
    };
    [
        ("differ", Some(differ.to_owned())),
        ("sync_fs", Some(profile.sync_fs.to_string())),
        ("labels", labels),
        ("os_features", features),
        ("volumes", volumes),
        (
            "erofs_mode",
            Some(config.applier.erofs_mode(name).as_str().to_owned()),
        ),
        ("integrity", Some(profile.integrity.as_str().to_owned())),
    ]
    .map(|(key, value)| Row::new(format!("snapshotters.{name}.{key}"), value, &source))
}
