// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The differences of a file from the one that it replaces, as operators read them.

use std::fmt::Write as _;

use similar::TextDiff;

use super::content::Content;
use super::files::NodeFile;

/// Returns the differences: lines as `diff -u` prints them, and the modes.
pub(super) fn of(there: &Content, file: &NodeFile) -> String {
    let mut text = String::new();
    if there.mode != file.mode {
        // A String takes everything.
        let _ = writeln!(text, "mode {:o} becomes {:o}", there.mode, file.mode);
    }
    if there.bytes == file.bytes {
        return text;
    }
    let Some(new) = file.text() else {
        text.push_str("another program\n");
        return text;
    };
    let old = String::from_utf8_lossy(&there.bytes);
    let lines = TextDiff::from_lines(&*old, new);
    text.push_str(&lines.unified_diff().to_string());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_modes_are_shown() {
        let old = NodeFile::embedded("/a", "one\ntwo\nthree\n");
        let mut new = NodeFile::embedded("/a", "one\n2\nthree\n");
        assert_eq!(
            of(&Content::of(&old), &new),
            "@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n"
        );
        new.bytes.clone_from(&old.bytes);
        new.mode = 0o600;
        assert_eq!(of(&Content::of(&old), &new), "mode 644 becomes 600\n");
        let program = NodeFile::program(b"\x7fELF".to_vec());
        assert_eq!(
            of(&Content::of(&old), &program),
            "mode 644 becomes 755\nanother program\n"
        );
    }
}
