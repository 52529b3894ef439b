//! Reads the keys of one section by the schema: checks names, types and ranges, fills
//! in defaults, and notes every mistake with its line.
//!
//! It knows types, not meanings: what a value must be beyond its type is judged by
//! the file that reads the section. `None` from a reader means "absent, or bad and
//! noted".

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    duration,
    mistake::{Report, Wrong, did_you_mean, quoted},
    schema::{Key, Kind, Need, REFUSED, SECTIONS, Section},
};

/// The keys of one section.
pub(super) struct Fields<'a> {
    section: &'static str,
    keys: &'static [&'static Key],
    path: String,
    line: usize,
    table: Option<&'a DeTable<'a>>,
    base: &'a Path,
    report: &'a Report,
}

impl<'a> Fields<'a> {
    /// The keys of `table`; unknown names among them are noted.
    pub(super) fn new(
        section: &'static Section,
        path: String,
        line: usize,
        table: Option<&'a DeTable<'a>>,
        base: &'a Path,
        report: &'a Report,
    ) -> Self {
        let Section { name, keys, .. } = section;
        let fields = Self { section: name, keys, path, line, table, base, report };
        fields.check_names();
        fields
    }

    /// Whether a key is written, well or badly.
    pub(super) fn given(&self, key: &Key) -> bool {
        self.value(key).is_some()
    }

    /// Notes that a key that is optional in general must be there after all. False if it is
    /// not.
    pub(super) fn demand(&self, key: &Key) -> bool {
        let given = self.given(key);
        if !given {
            self.refuse(key, Wrong::new("is missing", write_example(key)));
        }
        given
    }

    /// Notes what is wrong with a key, or with its absence.
    pub(super) fn refuse(&self, key: &Key, wrong: Wrong) {
        self.report.add(self.line_of(key), self.path_of(key.name), wrong);
    }

    /// Notes what is wrong with the section as a whole.
    pub(super) fn refuse_all(&self, wrong: Wrong) {
        self.report.add(self.line, self.path.clone(), wrong);
    }

    pub(super) fn text(&self, key: &'static Key) -> Option<String> {
        self.parsed(key, |text| Ok(text.to_owned()))
    }

    /// A text that `parse` makes something of.
    pub(super) fn parsed<T>(
        &self,
        key: &'static Key,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Option<T> {
        self.read(key, |value| Some(plain(value.as_str()?, key).and_then(&parse)))
    }

    /// A path, relative to the directory of the file.
    pub(super) fn path(&self, key: &'static Key) -> Option<PathBuf> {
        self.parsed(key, |text| match text {
            "" => Err(Wrong::new("the path is empty", write_example(key))),
            _ => Ok(self.base.join(text)),
        })
    }

    /// A duration within the range that the schema gives.
    pub(super) fn duration(&self, key: &'static Key) -> Option<Duration> {
        self.parsed(key, |text| {
            let Kind::Duration { min, max } = key.kind else {
                unreachable!("{} is no duration in the schema", key.name);
            };
            let given = duration::parse(text).ok_or_else(|| {
                Wrong::new(
                    format!("{} is not a duration", quoted(text)),
                    r#"write a whole number and ms, s, m or h, such as "30s""#,
                )
            })?;
            // The schema's own bounds parse: a test says so.
            let within = duration::parse(min).is_some_and(|min| given >= min)
                && duration::parse(max).is_some_and(|max| given <= max);
            match within {
                true => Ok(given),
                false => Err(Wrong::new(
                    format!("{} is out of range", quoted(text)),
                    format!("choose a duration from {min} to {max}"),
                )),
            }
        })
    }

    /// A number within the range that the schema gives.
    pub(super) fn number(&self, key: &'static Key) -> Option<usize> {
        self.read(key, |value| {
            let Kind::Number { min, max } = key.kind else {
                unreachable!("{} is no number in the schema", key.name);
            };
            let number = value.as_integer()?;
            let number = u64::from_str_radix(number.as_str(), number.radix()).ok();
            let within = number.filter(|number| (min..=max).contains(number));
            Some(within.and_then(|number| usize::try_from(number).ok()).ok_or_else(|| {
                Wrong::new("out of range", format!("choose a number from {min} to {max}"))
            }))
        })
    }

    pub(super) fn flag(&self, key: &'static Key) -> Option<bool> {
        self.read(key, |value| value.as_bool().map(Ok))
    }

    /// A list of texts, each of which `parse` makes something of. Never empty.
    pub(super) fn each<T>(
        &self,
        key: &'static Key,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Option<Vec<T>> {
        self.read(key, |value| value.as_array().map(|_| Ok(())))?;
        let items = self.value(key)?.get_ref().as_array()?;
        if items.is_empty() {
            self.refuse(key, Wrong::new("the list is empty", write_example(key)));
        }
        let mut parsed = Vec::with_capacity(items.len());
        for item in items.iter() {
            let result = match item.get_ref().as_str() {
                Some(text) => plain(text, key).and_then(&parse),
                None => Err(wrong_type("a list of strings", item.get_ref(), key)),
            };
            match result {
                Ok(value) => parsed.push(value),
                Err(wrong) => {
                    let line = self.report.line_at(item.span().start);
                    self.report.add(line, self.path_of(key.name), wrong);
                }
            }
        }
        (parsed.len() == items.len() && !items.is_empty()).then_some(parsed)
    }

    /// A table within the section.
    pub(super) fn table(&self, key: &'static Key) -> Option<Fields<'a>> {
        let Kind::Table(keys) = key.kind else {
            unreachable!("{} is no table in the schema", key.name);
        };
        let table = match self.value(key)?.get_ref() {
            DeValue::Table(table) => table,
            other => {
                self.refuse(key, wrong_type("a table", other, key));
                return None;
            }
        };
        let inner = Fields {
            section: self.section,
            keys,
            path: self.path_of(key.name),
            line: self.line_of(key),
            table: Some(table),
            base: self.base,
            report: self.report,
        };
        inner.check_names();
        Some(inner)
    }

    /// Finds a key's value or default and converts it. `convert` gives `None` for a
    /// value of another type.
    fn read<T>(
        &self,
        key: &'static Key,
        convert: impl Fn(&DeValue<'_>) -> Option<Result<T, Wrong>>,
    ) -> Option<T> {
        debug_assert!(self.keys.iter().any(|known| std::ptr::eq(*known, key)), "{}", key.name);
        let result = match (self.value(key), key.need) {
            (Some(value), _) => convert(value.get_ref())
                .unwrap_or_else(|| Err(wrong_type(wanted(key.kind), value.get_ref(), key))),
            (None, Need::Default) => {
                // The schema's own defaults parse and convert: a test says so.
                let default = DeValue::parse(key.example).ok()?;
                convert(default.get_ref())?
            }
            (None, Need::Optional) => return None,
            (None, Need::Required) => Err(Wrong::new("is missing", write_example(key))),
        };
        result.map_err(|wrong| self.refuse(key, wrong)).ok()
    }

    fn check_names(&self) {
        for name in self.table.into_iter().flat_map(DeTable::keys) {
            if self.keys.iter().any(|key| key.name == *name.get_ref()) {
                continue;
            }
            let known = self.keys.iter().map(|key| key.name);
            let wrong = unknown("key", name.get_ref(), self.section, known);
            let line = self.report.line_at(name.span().start);
            self.report.add(line, self.path_of(&shown(name.get_ref())), wrong);
        }
    }

    fn value(&self, key: &Key) -> Option<&'a Spanned<DeValue<'a>>> {
        self.table?.get(key.name)
    }

    fn line_of(&self, key: &Key) -> usize {
        let mut names = self.table.into_iter().flat_map(DeTable::keys);
        let found = names.find(|name| *name.get_ref() == key.name);
        found.map_or(self.line, |name| self.report.line_at(name.span().start))
    }

    fn path_of(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }
}

/// What to say of a name that the schema does not know.
pub(super) fn unknown(
    what: &str,
    name: &str,
    section: &str,
    known: impl Iterator<Item = &'static str>,
) -> Wrong {
    let refused = REFUSED.iter().find(|refused| refused.section == section && refused.name == name);
    if let Some(refused) = refused {
        return Wrong::new(refused.what, refused.fix);
    }
    let known: Vec<_> = known.collect();
    let fix = if let Some(near) = did_you_mean(name, known.iter().copied()) {
        format!("did you mean {near}?")
    } else if let Some(home) = SECTIONS.iter().find(|s| s.keys.iter().any(|key| key.name == name)) {
        format!("{name} belongs in {}", home.header())
    } else {
        format!("remove it, or use one of: {}", known.join(", "))
    };
    Wrong::new(format!("unknown {what}"), fix)
}

/// A name from the file, fit for a message.
pub(super) fn shown(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    match !name.is_empty() && name.len() <= 64 && name.chars().all(plain) {
        true => name.to_owned(),
        false => quoted(name),
    }
}

/// Control characters have no place in a name, a path or an address, and would
/// garble a log.
fn plain<'t>(text: &'t str, key: &Key) -> Result<&'t str, Wrong> {
    match text.contains(|c: char| c.is_control()) {
        true => Err(Wrong::new("contains a control character", write_example(key))),
        false => Ok(text),
    }
}

fn wrong_type(wanted: &str, value: &DeValue<'_>, key: &Key) -> Wrong {
    Wrong::new(format!("this is {}, not {wanted}", type_of(value)), write_example(key))
}

fn write_example(key: &Key) -> String {
    format!("write for example {} = {}", key.name, key.example)
}

fn wanted(kind: Kind) -> &'static str {
    match kind {
        Kind::Text | Kind::Path => "a string",
        Kind::Texts => "a list of strings",
        Kind::Flag => "true or false",
        Kind::Number { .. } => "a whole number",
        Kind::Duration { .. } => "a duration string",
        Kind::Table(_) => "a table",
    }
}

pub(super) fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
