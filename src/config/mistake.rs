//! Mistakes in a configuration file: where, what and how to mend it.
//!
//! A mistake is shown to whoever can start the sidecar and may end up in a log. It
//! repeats a value only through [`quoted`], and never the value of a key that it
//! does not know: people do write PINs where they do not belong.

use std::{
    cell::RefCell,
    fmt,
    path::{Path, PathBuf},
};

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1; for something that is missing, where it should be.
    pub line: usize,
    /// The key, such as `backend.hsm.pin_file` or `kek[2].name`; `-` for the file.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, key, what, .. } = self;
        write!(f, "{}:{line}: {key}: {what}", file.display())
    }
}

/// Every mistake of a file, in the order of its lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// The mistake of a file that could not be read at all.
    pub(super) fn of_file(file: &Path, wrong: Wrong) -> Self {
        let report = Report::new(file, "");
        report.add(1, "-".into(), wrong);
        Self(report.into_sorted())
    }

    /// One by one.
    pub fn iter(&self) -> std::slice::Iter<'_, Mistake> {
        self.0.iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            let newline = if i == 0 { "" } else { "\n" };
            write!(f, "{newline}{mistake}\n  fix: {}", mistake.fix)?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// What is wrong with a value, by whoever judges it without knowing where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) what: String,
    pub(super) fix: String,
}

impl Wrong {
    pub(super) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into() }
    }
}

/// Collects the mistakes of one file. Whoever reads a part of the file writes to it.
pub(super) struct Report {
    file: PathBuf,
    /// Offset of the first byte of each line.
    lines: Vec<usize>,
    mistakes: RefCell<Vec<Mistake>>,
}

impl Report {
    pub(super) fn new(file: &Path, text: &str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect();
        Self { file: file.to_owned(), lines, mistakes: RefCell::default() }
    }

    /// The line that the byte at `offset` is on.
    pub(super) fn line_at(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset).max(1)
    }

    /// Where something would be added.
    pub(super) fn last_line(&self) -> usize {
        self.lines.len()
    }

    pub(super) fn add(&self, line: usize, key: String, wrong: Wrong) {
        let Wrong { what, fix } = wrong;
        let mistake = Mistake { file: self.file.clone(), line, key, what, fix };
        self.mistakes.borrow_mut().push(mistake);
    }

    /// `value` if it was read without a mistake, or every mistake.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, Mistakes> {
        let file = self.file.clone();
        let mistakes = self.into_sorted();
        match value {
            Some(value) if mistakes.is_empty() => Ok(value),
            _ if mistakes.is_empty() => Err(Mistakes::of_file(
                &file,
                Wrong::new("could not be read, for no reason that was noted", "report this defect"),
            )),
            _ => Err(Mistakes(mistakes)),
        }
    }

    fn into_sorted(self) -> Vec<Mistake> {
        let mut mistakes = self.mistakes.into_inner();
        mistakes.sort_by_key(|mistake| mistake.line);
        mistakes
    }
}

/// A value of the file as a mistake may repeat it: escaped, and cut if it is long.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    let shown: String = text.chars().take(SHOWN).collect();
    let more = if text.chars().nth(SHOWN).is_some() { "…" } else { "" };
    format!("\"{}{more}\"", shown.escape_debug())
}

/// The one of `known` that `text` was probably meant to be.
pub(super) fn did_you_mean<'a>(
    text: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // Nobody mistypes a name into a novel; the distance is quadratic.
    if text.len() > 64 {
        return None;
    }
    let typed = text.to_lowercase();
    known
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(&typed, &word.to_lowercase()), word))
        .filter(|(distance, word)| *distance <= 1 + word.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_count_from_one() {
        let report = Report::new(Path::new("x"), "a\nbc\n\nd");
        let lines: Vec<_> = (0..8).map(|offset| report.line_at(offset)).collect();
        assert_eq!(lines, [1, 1, 2, 2, 2, 3, 4, 4]);
        assert_eq!(report.last_line(), 4);
    }

    #[test]
    fn a_near_word_is_suggested_and_a_far_one_is_not() {
        let known = ["socket", "socket_mode", "listen", "tls", "drain"];
        assert_eq!(did_you_mean("sokcet", known), Some("socket"));
        assert_eq!(did_you_mean("Socket", known), Some("socket"));
        assert_eq!(did_you_mean("socketmode", known), Some("socket_mode"));
        assert_eq!(did_you_mean("colour", known), None);
        assert_eq!(did_you_mean("", known), None);
        assert_eq!(did_you_mean(&"socket".repeat(1000), known), None);
    }

    #[test]
    fn what_is_repeated_is_escaped_and_cut() {
        assert_eq!(quoted("a\u{1b}[31m\n"), r#""a\u{1b}[31m\n""#);
        assert_eq!(quoted(&"x".repeat(100)).chars().count(), 63);
    }
}
