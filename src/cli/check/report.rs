//! What was found, and how it is shown. Pure.

use serde_json::{Value, json};

use crate::cli::failure::printable;
use crate::kek::Level;

/// What a line is about, in the order of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    Config,
    Host,
    Memory,
    Hsm,
    Keks,
    Permissions,
    Policy,
    Tls,
    Clock,
}

impl Group {
    pub(super) const ALL: [Self; 9] = [
        Self::Config,
        Self::Host,
        Self::Memory,
        Self::Hsm,
        Self::Keks,
        Self::Permissions,
        Self::Policy,
        Self::Tls,
        Self::Clock,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Host => "host",
            Self::Memory => "memory",
            Self::Hsm => "hsm",
            Self::Keks => "keks",
            Self::Permissions => "permissions",
            Self::Policy => "policy",
            Self::Tls => "tls",
            Self::Clock => "clock",
        }
    }
}

/// What was found of one thing.
#[derive(Debug)]
struct Line {
    group: Group,
    /// What was looked at, such as `orders-db` or `open files`.
    subject: String,
    /// `None` if it could not be looked at.
    level: Option<Level>,
    what: String,
    /// Empty if there is nothing to mend.
    fix: String,
}

/// Everything that was found.
#[derive(Debug, Default)]
pub(super) struct Report(Vec<Line>);

impl Report {
    pub(super) fn pass(&mut self, group: Group, subject: &str, what: impl Into<String>) {
        self.add(group, subject, Some(Level::Pass), what, "");
    }

    pub(super) fn warn(&mut self, group: Group, subject: &str, what: impl Into<String>, fix: &str) {
        self.add(group, subject, Some(Level::Warn), what, fix);
    }

    pub(super) fn fail(&mut self, group: Group, subject: &str, what: impl Into<String>, fix: &str) {
        self.add(group, subject, Some(Level::Fail), what, fix);
    }

    /// It could not be looked at, because of something else that has its line.
    pub(super) fn skip(&mut self, group: Group, subject: &str, why: &str) {
        self.add(group, subject, None, format!("not checked: {why}"), "");
    }

    pub(super) fn add(
        &mut self,
        group: Group,
        subject: &str,
        level: Option<Level>,
        what: impl Into<String>,
        fix: &str,
    ) {
        let (subject, what, fix) = (subject.to_owned(), what.into(), fix.to_owned());
        self.0.push(Line { group, subject, level, what, fix });
    }

    /// How many lines failed.
    pub(super) fn failed(&self) -> usize {
        self.count(Some(Level::Fail))
    }

    fn count(&self, level: Option<Level>) -> usize {
        self.0.iter().filter(|line| line.level == level).count()
    }

    fn of(&self, group: Group) -> impl Iterator<Item = &Line> {
        self.0.iter().filter(move |line| line.group == group)
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        for group in Group::ALL {
            for (i, Line { subject, level, what, fix, .. }) in self.of(group).enumerate() {
                if i == 0 {
                    text.push_str(&format!("{}\n", group.name()));
                }
                let what = printable(&format!("{subject}: {what}"));
                text.push_str(&format!("  {:<4}  {what}\n", word(*level)));
                if !fix.is_empty() {
                    text.push_str(&format!("        fix: {}\n", printable(fix)));
                }
            }
        }
        let [passed, warned, failed] =
            [Level::Pass, Level::Warn, Level::Fail].map(|level| self.count(Some(level)));
        let skipped = self.count(None);
        text.push_str(&format!(
            "\n{passed} passed, {warned} warnings, {failed} failed, {skipped} not checked\n"
        ));
        text
    }

    pub(super) fn to_json(&self) -> Value {
        let line = |line: &Line| {
            json!({
                "group": line.group.name(),
                "subject": line.subject,
                "result": word(line.level),
                "what": line.what,
                "fix": Some(&line.fix).filter(|fix| !fix.is_empty()),
            })
        };
        let lines: Vec<_> =
            Group::ALL.into_iter().flat_map(|group| self.of(group)).map(line).collect();
        json!({ "ok": self.failed() == 0, "checks": lines })
    }
}

fn word(level: Option<Level>) -> &'static str {
    match level {
        Some(Level::Pass) => "pass",
        Some(Level::Warn) => "warn",
        Some(Level::Fail) => "fail",
        None => "skip",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_grouped_and_counts_what_is_on_it() {
        let mut report = Report::default();
        report.fail(Group::Keks, "orders", "gone", "make it");
        report.pass(Group::Host, "open files", "enough");
        report.warn(Group::Keks, "orders", "old\u{1b}[2J", "rotate it");
        report.skip(Group::Clock, "vault", "no vault answered");
        let expected = "host\n  pass  open files: enough\nkeks\n  fail  orders: gone\n        fix: make it\n  \
                        warn  orders: old";
        let text = report.to_text();
        assert!(text.starts_with(expected), "{text}");
        assert!(!text.contains('\u{1b}'), "a name cannot draw on the terminal");
        assert!(text.ends_with("\n1 passed, 1 warnings, 1 failed, 1 not checked\n"), "{text}");
        let json = report.to_json();
        assert_eq!((&json["ok"], json["checks"].as_array().unwrap().len()), (&false.into(), 4));
        assert_eq!(json["checks"][1]["fix"], "make it");
        assert!(json["checks"][0]["fix"].is_null());
    }
}
