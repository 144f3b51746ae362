// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Standard output: tables for people, JSON for programs.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Result;
use comfy_table::{ContentArrangement, presets};
use indicatif::DecimalBytes;
use resnap_api::Failure;
use resnap_core::error_chain;
use resnap_unpacker::UnpackError;
use serde::Serialize;
use serde_json::json;

use crate::config::Config;
use crate::exit_status::ExitStatus;
use crate::local_step;
use crate::logging::LogFormat;

/// The output of a command.
pub(crate) struct Output {
    json: bool,
    log_format: LogFormat,
    closed: bool,
    namespace: String,
    is_local: bool,
}

impl Output {
    pub(crate) fn new(json: bool, log_format: LogFormat) -> Self {
        Self {
            json,
            log_format,
            closed: false,
            namespace: String::new(),
            is_local: false,
        }
    }

    /// Sets what next steps mention: the namespace, or the local engine.
    pub(crate) fn set_engine(&mut self, config: &Config) {
        self.namespace.clone_from(&config.namespace.value);
        self.is_local = config.local.is_some();
    }

    /// Returns whether standard output was closed when something was last printed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints one document: as JSON, or with the layout of `show`.
    pub(crate) fn document<T: Serialize>(
        &mut self,
        document: &T,
        show: impl FnOnce(&mut Table),
    ) -> Result<()> {
        if self.json {
            let text = serde_json::to_string_pretty(document)?;
            return self.print(&text);
        }
        let mut table = Table::new(io::stdout().is_terminal());
        show(&mut table);
        self.print(&table.finish())
    }

    /// Prints several documents: as a JSON array, or one after the other.
    pub(crate) fn documents<T: Serialize>(
        &mut self,
        documents: &[T],
        show: impl Fn(&T, &mut Table),
    ) -> Result<()> {
        self.document(&documents, |table| {
            for (index, document) in documents.iter().enumerate() {
                if index > 0 {
                    table.line(String::new());
                }
                show(document, table);
            }
        })
    }

    pub(crate) fn json_line<T: Serialize>(&mut self, value: &T) -> Result<()> {
        self.print(&serde_json::to_string(value)?)
    }

    /// Prints text that resnap generated for a program, unescaped.
    pub(crate) fn verbatim(&mut self, text: &str) -> Result<()> {
        self.print(text)
    }

    /// Prints one line for people.
    pub(crate) fn line(&mut self, text: &str) -> Result<()> {
        self.print(&printable(text))
    }

    /// Reports an error, of `image` if it concerns one: on standard error, and with `--json` on standard
    /// output too.
    pub(crate) fn error(&mut self, error: &anyhow::Error, image: Option<&str>) -> ExitStatus {
        let here = error.downcast_ref::<UnpackError>();
        let here = here.map(|error| Failure::new(error, &self.namespace));
        let failure = here.or_else(|| error.downcast_ref::<Failure>().cloned());
        let message = error_chain(error.as_ref());
        let next_step = failure.as_ref().and_then(|failure| match self.is_local {
            true => local_step::next_step(failure),
            false => failure.next_step.clone(),
        });
        if self.json {
            let kind = failure
                .as_ref()
                .map(|failure| format!("{:?}", failure.kind));
            let mut value = json!({ "kind": kind, "message": message, "next_step": next_step });
            if let Some(image) = image {
                value["image"] = json!(image);
            }
            let value = json!({ "error": value });
            // Standard error has the error in any case.
            let _ = self.json_line(&value);
        }
        match self.log_format {
            LogFormat::Json => tracing::error!(next_step, "{message}"),
            LogFormat::Text => {
                let mut stderr = io::stderr();
                let _ = writeln!(stderr, "resnap: {}", printable(&message));
                if let Some(next_step) = next_step {
                    let _ = writeln!(stderr, "  next: {}", printable(&next_step));
                }
            }
        }
        match failure {
            Some(failure) if failure.is_cancelled() => ExitStatus::Cancelled,
            _ => ExitStatus::Failed,
        }
    }

    fn print(&mut self, text: &str) -> Result<()> {
        match writeln!(io::stdout(), "{text}") {
            // The reader has enough (`resnap images | head`).
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            result => Ok(result?),
        }
    }
}

/// Escapes a text for a terminal, on one line. Names, platforms and messages are untrusted: a control
/// character could move the cursor over other output, and a line break or a change of direction could
/// forge some.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut printable = String::with_capacity(text.len());
    for char in text.chars() {
        if is_unprintable(char) {
            printable.extend(char.escape_default());
        } else {
            printable.push(char);
        }
    }
    Cow::Owned(printable)
}

fn is_unprintable(char: char) -> bool {
    // Besides control characters: line and paragraph separators, direction marks and overrides, and
    // zero-width characters.
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(char, '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Text for people: lines and tables with aligned columns, as `kubectl` and `ctr` print them.
pub(crate) struct Table {
    done: String,
    table: Option<comfy_table::Table>,
    on_terminal: bool,
}

impl Table {
    fn new(on_terminal: bool) -> Self {
        Self {
            done: String::new(),
            table: None,
            on_terminal,
        }
    }

    /// Returns a text for a cell: on a terminal only its beginning, on one line.
    pub(crate) fn cut(&self, text: &str, most: usize) -> String {
        match self.on_terminal {
            true => one_line(text, most),
            false => text.to_owned(),
        }
    }

    /// Starts a table.
    pub(crate) fn header<const N: usize>(&mut self, names: [&str; N]) {
        self.end_table();
        let mut table = comfy_table::Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(names);
        for column in table.column_iter_mut() {
            column.set_padding((0, 3));
        }
        self.table = Some(table);
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        if let Some(table) = &mut self.table {
            table.add_row(cells.each_ref().map(|cell| printable(cell)));
        }
    }

    /// Adds a line outside any table.
    pub(crate) fn line(&mut self, text: String) {
        self.end_table();
        self.done.push_str(&printable(&text));
        self.done.push('\n');
    }

    fn end_table(&mut self) {
        if let Some(table) = self.table.take() {
            self.done.push_str(&table.trim_fmt());
            self.done.push('\n');
        }
    }

    fn finish(mut self) -> String {
        self.end_table();
        self.done.truncate(self.done.trim_end().len());
        self.done
    }
}

/// Returns the text of a cell, or a dash if it is empty.
pub(crate) fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty())
        .unwrap_or_else(|| "-".to_owned())
}

/// Returns the first twelve digits of a digest.
pub(crate) fn short(digest: &str) -> String {
    let hex = digest.rsplit(':').next().unwrap_or(digest);
    hex.chars().take(12).collect()
}

/// Returns the error of an image without the name of the image, for output that has the name already.
pub(crate) fn reason(error: &UnpackError, image: &str) -> String {
    let text = error_chain(error);
    let named = [
        format!("image {image}: "),
        format!(" of image {image}"),
        format!("image {image} "),
    ];
    match named.iter().find(|named| text.contains(*named)) {
        Some(named) => text.replacen(named, "", 1),
        None => text,
    }
}

/// Formats a size for people.
pub(crate) fn bytes(count: u64) -> String {
    DecimalBytes(count).to_string()
}

/// Returns the beginning of a text, on one line.
fn one_line(text: &str, most: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= most {
        return line.to_owned();
    }
    format!("{}…", line.chars().take(most - 1).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_end_without_blanks() {
        let mut table = Table::new(true);
        table.line("image: web".to_owned());
        table.header(["A", "B"]);
        table.row(["long cell".to_owned(), "b".to_owned()]);
        table.row(["x".to_owned(), String::new()]);
        assert_eq!(
            table.finish(),
            "image: web\nA           B\nlong cell   b\nx"
        );
    }

    #[test]
    fn strangers_do_not_write_on_the_terminal() {
        let evil = "docker.io/\u{1b}[2Jé:1\n\u{9b}H\u{202e}\u{7f}";
        let shown = r"docker.io/\u{1b}[2Jé:1\n\u{9b}H\u{202e}\u{7f}";
        assert_eq!(printable(evil), shown);
        assert!(matches!(
            printable("Größe 日本 – ok"),
            Cow::Borrowed("Größe 日本 – ok")
        ));

        let mut table = Table::new(true);
        table.line(evil.to_owned());
        table.header(["A", "B"]);
        table.row([evil.to_owned(), "b".to_owned()]);
        let text = table.finish();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0], shown);
        assert_eq!(lines[2], format!("{shown}   b"));
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(one_line("abc\ndef", 3), "abc");
        assert_eq!(one_line("abcdef", 3), "ab…");
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(Table::new(true).cut("abcdef", 3), "ab…");
        assert_eq!(Table::new(false).cut("abc\ndef", 3), "abc\ndef");
    }
}
