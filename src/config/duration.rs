//! Durations as people write them: a whole number and a unit (`500ms`, `30s`, `10m`,
//! `1h`). One unit, no fractions, no bare numbers: a reader never has to guess.

use std::time::Duration;

const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// Parses a duration; `None` if it is not one, or too long to count.
pub fn parse(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let number: u64 = number.parse().ok()?;
    Some(Duration::from_millis(number.checked_mul(*millis)?))
}

/// Writes a duration of whole milliseconds in the largest unit that divides it.
pub fn format(duration: Duration) -> String {
    let total = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let largest = UNITS.iter().rev().find(|(_, millis)| total.is_multiple_of(*millis) && total > 0);
    let (unit, millis) = largest.unwrap_or(&("s", 1_000));
    format!("{}{unit}", total / millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_as_written() {
        let cases =
            [("0s", 0), ("500ms", 500), ("30s", 30_000), ("10m", 600_000), ("1h", 3_600_000)];
        for (text, millis) in cases {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            "",
            "s",
            "30",
            "30 s",
            " 30s",
            "30s ",
            "-1s",
            "+1s",
            "1.5s",
            "1h30m",
            "30S",
            "30sec",
            "1d",
            "٣s",
            "18446744073709551616ms",
            "18446744073709551615h",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn zero_has_a_unit() {
        assert_eq!(format(Duration::ZERO), "0s");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(millis: u64) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&format(duration)), Some(duration));
        }

        #[test]
        fn what_is_read_is_written_no_longer(number in 0..1_000_000u64, unit in "ms|s|m|h") {
            let text = format!("{number}{unit}");
            let duration = parse(&text).unwrap();
            prop_assert_eq!(parse(&format(duration)), Some(duration));
        }

        #[test]
        fn any_text_is_taken_calmly(text in "\\PC*") {
            let _ = parse(&text);
        }
    }
}
