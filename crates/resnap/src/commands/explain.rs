// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap config explain`.

use anyhow::Result;
use resnap_applier::Differ;
use resnap_core::{LabeledLayers, Volumes};
use resnap_cri_proxy::{Fact, FactSource, Unlabelled};
use serde::Serialize;

use super::{Outcome, engine};
use crate::config::{Config, Setting, Source};
use crate::daemon;
use crate::output::{Output, or_dash};

/// One row.
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

pub(crate) async fn run(config: &Config, output: &mut Output) -> Result<Outcome> {
    let mut rows = told(config);
    match facts(config).await {
        Ok(facts) => rows.extend(facts.into_iter().map(|fact| {
            let source = fact.value.as_ref().map(|told| match told.source {
                FactSource::Containerd => "containerd".to_owned(),
                FactSource::PodSandboxStatus => "PodSandboxStatus".to_owned(),
                FactSource::Settings => Source::File.to_string(),
            });
            let value = fact.value.map(|told| told.value);
            Row::new(format!("cri.{}", fact.name), value, or_dash(source))
        })),
        Err(error) => tracing::warn!(%error, "what containerd would say is missing"),
    }
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
    Ok(Outcome::Done)
}

/// What containerd says, or the operator in its place.
async fn facts(config: &Config) -> Result<Vec<Fact>> {
    let proxy = daemon::proxy(config, engine(config).await?, None);
    proxy.facts().await.map_err(anyhow::Error::msg)
}

/// What the operator says, or resnap itself.
fn told(config: &Config) -> Vec<Row> {
    let path = |path: &std::path::PathBuf| Some(path.display().to_string());
    let mut rows = vec![
        Row::of("config", &config.file, |file| file.as_ref().and_then(path)),
        Row::of("address", &config.address, |text| Some(text.clone())),
        Row::of("namespace", &config.namespace, |text| Some(text.clone())),
        Row::of("runtime_dir", &config.runtime_dir, path),
        Row::of("cri.socket", &config.cri_socket, path),
        Row::of("cri.always", &config.always, |value| {
            Some(value.to_string())
        }),
        Row::of("cri.unlabelled", &config.unlabelled, |value| {
            let word = match value {
                None => "repair where labels alone mend, else forward",
                Some(Unlabelled::Repair) => "repair",
                Some(Unlabelled::Forward) => "forward",
                Some(Unlabelled::Fail) => "fail",
            };
            Some(word.to_owned())
        }),
        Row::new(
            "max_layer_bytes",
            Some(config.applier.max_layer_bytes.map_or_else(
                || "1000 times the blob and 1 GiB".to_owned(),
                |bytes| bytes.to_string(),
            )),
            match config.applier.max_layer_bytes {
                Some(_) => Source::File,
                None => Source::Default,
            },
        ),
        Row::of("memory", &config.memory, |bytes| Some(bytes.to_string())),
        Row::of("stall", &config.stall, |stall| {
            Some(stall.as_secs().to_string())
        }),
        Row::of("api.socket", &config.api_socket, path),
        Row::of("metrics.address", &config.metrics_address, |value| {
            value.map(|address| address.to_string())
        }),
    ];
    for (index, rule) in config.prewarm.iter().enumerate() {
        let (images, snapshotters) = (rule.images.join(", "), rule.snapshotters.join(", "));
        let value = format!("{images} on {snapshotters}, {} stay free", rule.min_free);
        rows.push(Row::new(
            format!("prewarm.{index}"),
            Some(value),
            Source::File,
        ));
    }
    for (index, entry) in config.unpack.value.iter().enumerate() {
        let optional = if entry.optional {
            ", if it is there"
        } else {
            ""
        };
        let value = format!("{} on {}{optional}", entry.platform, entry.snapshotter);
        rows.push(Row::new(
            format!("unpack.{index}"),
            Some(value),
            &config.unpack.source,
        ));
    }
    for (name, profile) in config.profiles.iter() {
        let source = if config
            .changed_profiles
            .iter()
            .any(|changed| changed == name)
        {
            Source::File
        } else {
            Source::Default
        };
        let labels = profile.need.as_ref().map(|need| {
            let layers = match need.layers {
                LabeledLayers::Every => "every layer",
                LabeledLayers::Top => "the top layer",
            };
            format!("{layers}: {}", need.why)
        });
        let volumes = match profile.volumes {
            Volumes::Unknown => None,
            Volumes::Host => Some("host".to_owned()),
            Volumes::HostExcept { from, until } => Some(format!(
                "host, except with containerd {}.{} to before {}.{}",
                from.0, from.1, until.0, until.1
            )),
            Volumes::Guest => Some("guest".to_owned()),
        };
        let differ = match config.applier.differ(name) {
            Differ::Auto => "auto",
            Differ::Resnap => "resnap",
            Differ::Containerd => "containerd",
        };
        for (key, value) in [
            ("differ", differ),
            ("sync_fs", if profile.sync_fs { "true" } else { "false" }),
        ] {
            rows.push(Row::new(
                format!("snapshotters.{name}.{key}"),
                Some(value.to_owned()),
                &source,
            ));
        }
        rows.push(Row::new(
            format!("snapshotters.{name}.labels"),
            labels,
            &source,
        ));
        let features: Vec<&str> = profile.os_features.iter().map(String::as_str).collect();
        let features = Some(features.join(", ")).filter(|text| !text.is_empty());
        rows.push(Row::new(
            format!("snapshotters.{name}.os_features"),
            features,
            &source,
        ));
        rows.push(Row::new(
            format!("snapshotters.{name}.volumes"),
            volumes,
            &source,
        ));
    }
    rows
}
