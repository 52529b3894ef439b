//! Parses the TOML text and finds its sections by the schema.
//!
//! What is not TOML, is no section, or is written in another form than its section
//! has, is noted with its line. The keys of a section are the business of
//! [`Fields`].

use std::path::Path;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    fields::{Fields, shown, type_of, unknown},
    mistake::{Report, Wrong},
    schema::{SECTIONS, Section},
};

/// The file, parsed.
pub(super) struct Document<'a> {
    root: Spanned<DeTable<'a>>,
    base: &'a Path,
    report: &'a Report,
}

impl<'a> Document<'a> {
    /// Parses `text`. `None` if it is not TOML: what would be read of the rest of such
    /// a file would only confuse.
    pub(super) fn parse(text: &'a str, base: &'a Path, report: &'a Report) -> Option<Self> {
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let line = error.span().map_or(1, |span| report.line_at(span.start));
            let fix = "see https://toml.io for how TOML is written";
            report.add(line, "-".into(), Wrong::new(error.message(), fix));
        }
        errors.is_empty().then_some(Self { root, base, report })
    }

    /// Notes what stands at the top of the file and is no section.
    pub(super) fn check_sections(&self) {
        for name in self.root.get_ref().keys() {
            if SECTIONS.iter().any(|section| section.name == *name.get_ref()) {
                continue;
            }
            let line = self.report.line_at(name.span().start);
            let known = SECTIONS.iter().map(|section| section.name);
            let wrong = unknown("section", name.get_ref(), "", known);
            self.report.add(line, shown(name.get_ref()), wrong);
        }
    }

    /// A section that stands at most once. Absent, it is empty.
    pub(super) fn single(&'a self, section: &'static Section) -> Fields<'a> {
        let path = section.name.to_owned();
        match self.root.get_ref().get(section.name) {
            Some(value) => match value.get_ref() {
                DeValue::Table(table) => {
                    self.fields(section, path, self.line_of(section.name), Some(table))
                }
                other => {
                    self.wrong_form(section, path.clone(), self.line_of(section.name), other);
                    self.fields(section, path, self.line_of(section.name), None)
                }
            },
            None => self.fields(section, path, self.report.last_line(), None),
        }
    }

    /// The sections `[section.NAME]`, by name.
    pub(super) fn named(&'a self, section: &'static Section) -> Vec<(&'a str, Fields<'a>)> {
        let Some(value) = self.root.get_ref().get(section.name) else {
            return Vec::new();
        };
        let DeValue::Table(tables) = value.get_ref() else {
            let line = self.line_of(section.name);
            self.wrong_form(section, section.name.into(), line, value.get_ref());
            return Vec::new();
        };
        let mut found = Vec::new();
        for (name, value) in tables {
            let line = self.report.line_at(name.span().start);
            let path = format!("{}.{}", section.name, shown(name.get_ref()));
            match value.get_ref() {
                DeValue::Table(table) => {
                    found.push((
                        name.get_ref().as_ref(),
                        self.fields(section, path, line, Some(table)),
                    ));
                }
                other => self.wrong_form(section, path, line, other),
            }
        }
        found
    }

    /// The names of the sections `[section.NAME]`, well written or badly.
    pub(super) fn names(&self, section: &Section) -> Vec<&str> {
        let named =
            self.root.get_ref().get(section.name).and_then(|value| value.get_ref().as_table());
        named.into_iter().flat_map(DeTable::keys).map(|name| name.get_ref().as_ref()).collect()
    }

    /// The sections `[[section]]`, in order.
    pub(super) fn repeated(&'a self, section: &'static Section) -> Vec<Fields<'a>> {
        let Some(value) = self.root.get_ref().get(section.name) else {
            return Vec::new();
        };
        let DeValue::Array(items) = value.get_ref() else {
            let line = self.line_of(section.name);
            self.wrong_form(section, section.name.into(), line, value.get_ref());
            return Vec::new();
        };
        let mut found = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let line = self.report.line_at(item.span().start);
            let path = format!("{}[{}]", section.name, i + 1);
            match item.get_ref() {
                DeValue::Table(table) => found.push(self.fields(section, path, line, Some(table))),
                other => self.wrong_form(section, path, line, other),
            }
        }
        found
    }

    /// Whether a section is written at all, well or badly.
    pub(super) fn has(&self, section: &Section) -> bool {
        self.root.get_ref().contains_key(section.name)
    }

    /// Notes that a section that must be there is not.
    pub(super) fn missing(&self, section: &Section, wrong: Wrong) {
        self.report.add(self.report.last_line(), section.name.into(), wrong);
    }

    fn line_of(&self, name: &str) -> usize {
        let key = self.root.get_ref().keys().find(|key| *key.get_ref() == name);
        key.map_or(1, |key| self.report.line_at(key.span().start))
    }

    fn wrong_form(&self, section: &Section, path: String, line: usize, value: &DeValue<'_>) {
        let wrong = Wrong::new(
            format!("this is {}, not a section", type_of(value)),
            format!("write it as {}", section.header()),
        );
        self.report.add(line, path, wrong);
    }

    fn fields(
        &'a self,
        section: &'static Section,
        path: String,
        line: usize,
        table: Option<&'a DeTable<'a>>,
    ) -> Fields<'a> {
        Fields::new(section, path, line, table, self.base, self.report)
    }
}
