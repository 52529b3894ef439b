//! How things are shown in more than one command: tables, dates, PEM, and the JSON of
//! a wrapped DEK.

use std::{path::Path, time::SystemTime};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    failure::{Failure, printable},
    output::{Output, What},
    sidecar::{WrappedDek, algorithm_name},
};
use crate::secret::Secret;

/// Rows in aligned columns, without trailing blanks.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let line: Vec<_> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

pub(super) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

pub(super) fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// A moment as in RFC 3339, to the second.
pub(super) fn date(at: SystemTime) -> Option<String> {
    OffsetDateTime::from(at).replace_nanosecond(0).ok()?.format(&Rfc3339).ok()
}

/// A SubjectPublicKeyInfo as PEM (RFC 7468).
pub(super) fn pem(spki: &[u8]) -> String {
    let text = base64(spki);
    let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END PUBLIC KEY-----\n");
    pem
}

/// Where `--public-key-out` says, found out before any work is done.
pub(super) fn public_key_output(out: Option<&Path>) -> Result<Option<Output>, Failure> {
    out.map(|out| Output::choose(Some(out), What::Text)).transpose()
}

/// Writes the public key of the key that `of` names.
pub(super) fn write_public_key(out: &Output, spki: &[u8], of: &str) -> Result<(), Failure> {
    if spki.is_empty() {
        let failure = Failure::new(format!("{of} has no public key"));
        return Err(failure.with_fix("only RSA keys have one"));
    }
    out.write(pem(spki).as_bytes())
}

/// The fields of a wrapped DEK, and the whole of it as it is stored.
pub(super) fn wrapped_json(wrapped: &WrappedDek) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("kek".into(), json!(wrapped.kek));
    object.insert("version".into(), json!(wrapped.version));
    object.insert("algorithm".into(), json!(algorithm_name(wrapped.algorithm)));
    object.insert("ciphertext".into(), json!(base64(&wrapped.ciphertext)));
    object.insert("kek_fingerprint".into(), json!(hex(&wrapped.kek_fingerprint)));
    object.insert("wrapped".into(), json!(base64(&wrapped.to_bytes())));
    object
}

/// A JSON line with a DEK and other fields, made without a copy of the DEK that
/// nobody wipes.
pub(super) fn dek_json(dek: &Secret, others: Map<String, Value>) -> Secret {
    const BEFORE: &[u8] = b"{\"dek\":\"";
    let others = Value::Object(others).to_string();
    let after = match others.as_str() {
        "{}" => "\"}\n".to_owned(),
        others => format!("\",{}\n", &others[1..]),
    };
    let encoded = dek.len().div_ceil(3) * 4;
    let mut line = Secret::zeroed(BEFORE.len() + encoded + after.len());
    let (before, rest) = line.expose_mut().split_at_mut(BEFORE.len());
    let (middle, end) = rest.split_at_mut(encoded);
    before.copy_from_slice(BEFORE);
    STANDARD.encode_slice(dek.expose(), middle).expect("the room was counted");
    end.copy_from_slice(after.as_bytes());
    line
}

/// One JSON object on a line of its own.
pub(super) fn json_line(value: &Value) -> String {
    format!("{value}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cells_harmless() {
        let rows = [row(["A", "B"]), row(["long", "x\u{1b}"]), row(["ü", ""])];
        assert_eq!(table(&rows), "A     B\nlong  x\\u{1b}\nü\n");
    }

    #[test]
    fn dek_json_is_json() {
        for len in 16..=64 {
            let dek = Secret::new(vec![0xfb; len]);
            let mut others = Map::new();
            let alone = dek_json(&dek, others.clone());
            others.insert("a".into(), json!([1]));
            let line = dek_json(&dek, others);
            for line in [&alone, &line] {
                let value: Value = serde_json::from_slice(line.expose()).unwrap();
                assert_eq!(STANDARD.decode(value["dek"].as_str().unwrap()).unwrap(), dek.expose());
            }
            let value: Value = serde_json::from_slice(line.expose()).unwrap();
            assert_eq!(value["a"], json!([1]));
        }
    }

    #[test]
    fn pem_lines_have_64_characters() {
        let pem = pem(&[0; 100]);
        let lines: Vec<_> = pem.lines().collect();
        assert_eq!(lines.len(), 5);
        assert_eq!((lines[1].len(), lines[3].len()), (64, 8));
    }

    #[test]
    fn dates_are_rfc_3339() {
        assert_eq!(date(SystemTime::UNIX_EPOCH).unwrap(), "1970-01-01T00:00:00Z");
    }
}
