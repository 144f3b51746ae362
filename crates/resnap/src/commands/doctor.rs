// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap doctor`.

use std::collections::BTreeMap;

use anyhow::Result;
use resnap_containerd::Client;
use resnap_core::error_chain;
use resnap_unpacker::{Engine, UnpackError};
use serde::Serialize;

use crate::args::DoctorArguments;
use crate::config::Config;
use crate::doctor::disk::Disk;
use crate::doctor::finding::{Finding, Findings, Severity};
use crate::doctor::fix::Fix;
use crate::doctor::{Examined, examine};
use crate::exit_status::ExitStatus;
use crate::output::{Output, Table, bytes};

/// The findings of one ID that are shown to people.
const SHOWN: usize = 5;

/// A fix, and what came of it.
#[derive(Serialize)]
struct Fixed {
    #[serde(flatten)]
    fix: Fix,
    /// Whether it was done; it was not if it failed, or in a dry run.
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The document of the command.
#[derive(Serialize)]
struct Document<'a> {
    /// Whether nothing has to be done, as far as could be seen.
    well: bool,
    #[serde(flatten)]
    findings: &'a Findings,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fixes: Vec<Fixed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<&'a Disk>,
}

pub(crate) async fn run(
    engine: &Engine,
    config: &Config,
    arguments: DoctorArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let client = Client::connect(&config.address.value).await;
    let client = client.map_err(UnpackError::from)?;
    let mut examined = examine(config, engine, &client, arguments.disk).await?;
    let mut fixes = Vec::new();
    if arguments.fix {
        fixes = fix(engine, &examined.findings, arguments.dry_run).await;
        if fixes.iter().any(|fixed| fixed.done) {
            examined = examine(config, engine, &client, arguments.disk).await?;
        }
    }
    let Examined { findings, disk } = &examined;
    let is_well = findings
        .findings
        .iter()
        .all(|finding| finding.severity == Severity::Note);
    let document = Document {
        well: is_well,
        findings,
        fixes,
        disk: disk.as_ref(),
    };
    output.document(&document, |table| show(&document, arguments.dry_run, table))?;
    Ok(match (is_well, findings.unknown.is_empty()) {
        (false, _) => ExitStatus::Negative,
        (true, false) => ExitStatus::Failed,
        (true, true) => ExitStatus::Done,
    })
}

/// Fixes what can be fixed, each of it once.
async fn fix(engine: &Engine, findings: &Findings, dry_run: bool) -> Vec<Fixed> {
    let mut fixes: Vec<Fixed> = Vec::new();
    for fix in findings
        .findings
        .iter()
        .filter_map(|finding| finding.fix.as_ref())
    {
        if fixes.iter().any(|fixed| fixed.fix == *fix) {
            continue;
        }
        let result = match dry_run {
            true => None,
            false => Some(fix.run(engine).await),
        };
        let error = result.as_ref().and_then(|result| result.as_ref().err());
        fixes.push(Fixed {
            done: matches!(result, Some(Ok(()))),
            error: error.map(|error| error_chain(error.as_ref())),
            fix: fix.clone(),
        });
    }
    fixes
}

fn show(document: &Document<'_>, dry_run: bool, table: &mut Table) {
    for Fixed { fix, error, .. } in &document.fixes {
        table.line(match (error, dry_run) {
            (Some(error), _) => format!("not fixed: {fix}: {error}"),
            (None, true) => format!("would {fix}"),
            (None, false) => format!("fixed: {fix}"),
        });
    }
    if !document.fixes.is_empty() {
        table.line(String::new());
    }
    let mut shown: BTreeMap<&str, usize> = BTreeMap::new();
    for finding in &document.findings.findings {
        let count = shown.entry(finding.id).or_default();
        *count += 1;
        if *count <= SHOWN {
            show_finding(finding, table);
        }
    }
    for (id, count) in shown.iter().filter(|(_, count)| **count > SHOWN) {
        table.line(format!(
            "{} more of {id}: --json has them all",
            count - SHOWN
        ));
    }
    for unknown in &document.findings.unknown {
        table.line(format!("unknown  {}: {}", unknown.id, unknown.why));
    }
    table.line(summary(document.findings));
    if let Some(disk) = document.disk {
        show_disk(disk, table);
    }
}

fn show_finding(finding: &Finding, table: &mut Table) {
    let Finding {
        id,
        severity,
        subject,
        why,
        way_out,
        fix,
    } = finding;
    table.line(format!("{:<7}  {id}: {subject}", severity.as_str()));
    table.line(format!("         {why}"));
    let mut lines = way_out.lines();
    table.line(format!("   next: {}", lines.next().unwrap_or_default()));
    for line in lines {
        table.line(format!("         {line}"));
    }
    if fix.is_some() {
        table.line("         `resnap doctor --fix` does this or the like".to_owned());
    }
}

/// Returns one line about everything.
fn summary(findings: &Findings) -> String {
    let of = |severity| {
        let all = findings.findings.iter();
        all.filter(|finding| finding.severity == severity).count()
    };
    let (faults, warnings) = (of(Severity::Fault), of(Severity::Warning));
    let (notes, unknown) = (of(Severity::Note), findings.unknown.len());
    let counted = |count: usize, one: &str| match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {one}s"),
    };
    let verdict = match (faults + warnings, unknown) {
        (0, 0) => "this node is well",
        (0, _) => "nothing was found, but not everything could be looked at",
        _ => "there is something to do",
    };
    format!(
        "{verdict}: {}, {}, {}, {} that could not look",
        counted(faults, "fault"),
        counted(warnings, "warning"),
        counted(notes, "note"),
        counted(unknown, "check")
    )
}

fn show_disk(disk: &Disk, table: &mut Table) {
    table.line(String::new());
    table.header(["IMAGE", "WHERE", "OWN", "SHARED"]);
    for row in &disk.images {
        let place = row.snapshotter.clone();
        table.row([
            row.image.clone(),
            place.unwrap_or_else(|| "blobs".to_owned()),
            bytes(row.own_bytes),
            bytes(row.shared_bytes),
        ]);
    }
    table.line(String::new());
    table.header(["WHERE", "LAYERS", "CONTAINERS"]);
    table.row(["blobs".to_owned(), bytes(disk.blob_bytes), "-".to_owned()]);
    for row in &disk.snapshotters {
        let (layers, containers) = (bytes(row.layer_bytes), bytes(row.container_bytes));
        table.row([row.snapshotter.clone(), layers, containers]);
    }
}
