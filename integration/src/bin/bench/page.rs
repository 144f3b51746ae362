// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The tables of a run as one page, to be read without anything else.

use std::fs;

use anyhow::{Context as _, Result};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::plot;
use crate::table::{COLUMNS, Load, Row, Table, dir};

const STYLE: &str = "\
body { font: 14px sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #222 } \
table { border-collapse: collapse; font-variant-numeric: tabular-nums } \
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd } \
th:first-child, td:first-child { text-align: left } \
svg { max-width: 100%; height: auto; margin: 1em 0 } \
.load { color: #666 }";

/// Writes `index.html`.
pub(crate) fn write(tables: &[(Table, Load)]) -> Result<()> {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { "resnap: measurements" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "resnap: measurements" }
                ul {
                    @for (table, _) in tables {
                        li { a href={ "#" (table.name) } { (table.name) } ": " (table.about) }
                    }
                }
                @for (table, load) in tables { (section(table, *load)) }
            }
        }
    };
    let path = dir()?.join("index.html");
    fs::write(&path, page.into_string()).with_context(|| format!("write {path:?}"))
}

fn section(table: &Table, load: Load) -> Markup {
    html! {
        section id=(table.name) {
            h2 { (table.name) }
            p { (table.about) }
            p.load {
                (table.containerd) " on " (table.cores) " cores. " (load)
            }
            @match plot::curves(&table.rows) {
                Some(curves) => (curves),
                None => (plot::bars(&table.rows)),
            }
            table {
                tr {
                    th {}
                    @for column in COLUMNS { th { (column) } }
                }
                @for row in &table.rows { (line(row)) }
            }
        }
    }
}

fn line(row: &Row) -> Markup {
    html! {
        tr {
            td { (row.variant) }
            @for cell in row.cells() { td { (cell) } }
        }
    }
}
