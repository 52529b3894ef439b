//! The annotated example file, written from the schema.

use std::fmt::Write;

use super::schema::{Form, Key, SECTIONS, Section};

const HEAD: &str = "\
# Keyward configuration. Written by `keyward config example` from the table that the
# reader itself uses. `keyward config check FILE` tells every mistake at once.
#
# Durations are strings: \"500ms\", \"30s\", \"10m\", \"1h\". Relative paths are relative to
# the directory of this file. Unknown keys are errors. What is commented out is optional:
# it shows the default, or an example where there is none.
";

/// The text of `keyward.example.toml`.
pub fn example() -> String {
    let mut text = HEAD.to_owned();
    for section in SECTIONS {
        write_section(&mut text, section).expect("writing to a String does not fail");
    }
    text
}

fn write_section(text: &mut String, section: &Section) -> std::fmt::Result {
    writeln!(text)?;
    comment(text, section.doc)?;
    let off = if section.shown { "" } else { "#" };
    match section.form {
        Form::Single => writeln!(text, "{off}[{}]", section.name)?,
        Form::Named(name) => writeln!(text, "{off}[{}.{name}]", section.name)?,
        Form::Repeated => writeln!(text, "{off}[[{}]]", section.name)?,
    }
    for key in section.keys {
        write_key(text, key)?;
    }
    Ok(())
}

fn write_key(text: &mut String, key: &Key) -> std::fmt::Result {
    writeln!(text)?;
    comment(text, key.doc)?;
    let off = if key.shown { "" } else { "#" };
    writeln!(text, "{off}{} = {}", key.name, key.example)
}

fn comment(text: &mut String, lines: &str) -> std::fmt::Result {
    lines.lines().try_for_each(|line| writeln!(text, "# {line}"))
}
