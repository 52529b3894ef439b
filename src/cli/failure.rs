//! How a command fails: what, why, what to do about it, and the exit code.
//!
//! Everything that is shown is made printable first: parts of it come from a sidecar,
//! a device or a file.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use serde_json::{Map, Value, json};

use crate::{
    app::StartError,
    config::{Mistake, Mistakes},
    error::Error,
    server::SetupError,
};

/// Exit code of a command that was asked for wrongly.
pub(super) const USAGE: u8 = 2;
/// Exit code of a command that failed.
const FAILED: u8 = 1;

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(super) struct Failure {
    exit: u8,
    /// For programs: a reason of the protocol, if one is known.
    reason: Option<String>,
    what: String,
    causes: Vec<Cause>,
    fix: Option<String>,
}

#[derive(Debug)]
enum Cause {
    Text(String),
    /// One of the configuration file. It has a fix of its own.
    Mistake(Mistake),
}

impl Cause {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Mistake(mistake) => mistake.to_string(),
        }
    }

    fn mistake(&self) -> Option<&Mistake> {
        match self {
            Self::Text(_) => None,
            Self::Mistake(mistake) => Some(mistake),
        }
    }
}

impl Failure {
    /// It failed.
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { exit: FAILED, reason: None, what: what.into(), causes: Vec::new(), fix: None }
    }

    /// It was asked for wrongly.
    pub(super) fn usage(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { exit: USAGE, ..Self::new(what).with_fix(fix) }
    }

    /// A file could not be worked with.
    pub(super) fn file(what: &str, path: &Path, error: &io::Error) -> Self {
        let failure = Self::new(format!("cannot {what} {}", path.display())).with_cause(error);
        match error.kind() {
            io::ErrorKind::NotFound => failure.with_fix("check the path"),
            io::ErrorKind::PermissionDenied => failure.with_fix("check who may use the file"),
            io::ErrorKind::IsADirectory => failure.with_fix("name a file, not a directory"),
            _ => failure,
        }
    }

    /// What clap found wrong with the command line.
    pub(super) fn of_usage(error: &clap::Error) -> Self {
        let text = error.to_string();
        let mut paragraphs = text.split("\n\n");
        let what = paragraphs.next().unwrap_or_default();
        let what = what.strip_prefix("error: ").unwrap_or(what);
        let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
        Self::usage(what, "see `keyward help`")
    }

    #[must_use]
    pub(super) fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    #[must_use]
    pub(super) fn with_cause(mut self, cause: impl ToString) -> Self {
        self.causes.push(Cause::Text(cause.to_string()));
        self
    }

    #[must_use]
    pub(super) fn with_fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// Writes it to standard error and gives the exit code.
    pub(super) fn report(&self, json: bool) -> ExitCode {
        let text = if json { format!("{}\n", self.to_json()) } else { self.to_text() };
        // There is nobody to tell if standard error is gone.
        let _nobody = io::stderr().write_all(text.as_bytes());
        ExitCode::from(self.exit)
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |label: &str, value: &str| {
            writeln!(text, "{label}: {}", printable(value)).expect("a String takes everything");
        };
        line("error", &self.what);
        for cause in &self.causes {
            line("cause", &cause.text());
            cause.mistake().into_iter().for_each(|mistake| line("fix", &mistake.fix));
        }
        self.fix.iter().for_each(|fix| line("fix", fix));
        text
    }

    fn to_json(&self) -> Value {
        let Self { exit: _, reason, what, causes, fix } = self;
        let mut object = Map::new();
        object.insert("error".into(), json!(printable(what)));
        if let Some(reason) = reason {
            object.insert("reason".into(), json!(reason));
        }
        let texts: Vec<_> = causes.iter().map(|cause| printable(&cause.text())).collect();
        object.insert("causes".into(), json!(texts));
        if let Some(fix) = fix {
            object.insert("fix".into(), json!(printable(fix)));
        }
        let mistakes: Vec<_> = causes.iter().filter_map(Cause::mistake).map(mistake_json).collect();
        if !mistakes.is_empty() {
            object.insert("mistakes".into(), json!(mistakes));
        }
        Value::Object(object)
    }
}

/// What the sidecar's own parts say. `detail`, which callers never see, is shown: who
/// runs a command on a backend is its operator.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let failure = Self::new(error.message()).with_reason(error.reason().as_str());
        let failure = match error.detail() {
            Some(detail) => failure.with_cause(detail),
            None => failure,
        };
        match error.fix() {
            Some(fix) => failure.with_fix(fix),
            None => failure,
        }
    }
}

impl From<SetupError> for Failure {
    fn from(error: SetupError) -> Self {
        let failure = Self::new(error.what()).with_cause(error.cause());
        match error.fix() {
            Some(fix) => failure.with_fix(fix),
            None => failure,
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let StartError { what, cause, fix } = error;
        let failure = Self::new(what).with_cause(cause);
        match fix {
            Some(fix) => failure.with_fix(fix),
            None => failure,
        }
    }
}

impl From<Mistakes> for Failure {
    fn from(mistakes: Mistakes) -> Self {
        let what = match mistakes.iter().count() {
            1 => "the configuration has a mistake".to_owned(),
            count => format!("the configuration has {count} mistakes"),
        };
        let causes = mistakes.iter().cloned().map(Cause::Mistake).collect();
        Self { causes, ..Self::new(what) }
    }
}

fn mistake_json(mistake: &Mistake) -> Value {
    let Mistake { file, line, key, what, fix } = mistake;
    json!({
        "file": file.display().to_string(),
        "line": line,
        "key": key,
        "what": what,
        "fix": fix,
    })
}

/// `text` without anything that would move a cursor or begin another line.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("; "),
            c if c.is_control() => shown.extend(c.escape_debug()),
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    #[test]
    fn each_part_is_one_line() {
        let failure = Failure::new("broke\u{1b}[2J").with_cause("a\nb").with_fix("mend");
        assert_eq!(failure.to_text(), "error: broke\\u{1b}[2J\ncause: a; b\nfix: mend\n");
    }

    #[test]
    fn the_json_says_the_same() {
        let error = Error::new(Reason::KekNotFound, "no such KEK").with_fix("make one");
        let failure = Failure::from(error.with_detail("CKR_OK"));
        assert_eq!(
            failure.to_json(),
            json!({
                "error": "no such KEK",
                "reason": "KEK_NOT_FOUND",
                "causes": ["CKR_OK"],
                "fix": "make one",
            })
        );
    }
}
