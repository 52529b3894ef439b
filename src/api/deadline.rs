//! Until when a call may take: what the caller gave (`grpc-timeout`), what the table
//! of operations says, and a bound on both.

use std::time::{Duration, Instant};

use tonic::metadata::MetadataMap;

use crate::{
    error::{Error, Reason},
    op::Op,
};

/// Longest time for one unary call or one item of a stream, whatever the caller asks
/// for.
pub(super) const CALL_MAX: Duration = Duration::from_secs(60);

/// Longest `grpc-timeout` that is told apart from none: a stream may live this long.
const GIVEN_MAX: Duration = Duration::from_secs(24 * 3600);

/// When the caller's own deadline is, if it gave one. A malformed one is refused: a
/// guess could keep a key operation going that nobody waits for.
pub(super) fn given(metadata: &MetadataMap, now: Instant) -> Result<Option<Instant>, Error> {
    let Some(value) = metadata.get("grpc-timeout") else {
        return Ok(None);
    };
    let timeout = value.to_str().ok().and_then(parse).ok_or_else(|| {
        Error::new(Reason::RequestInvalid, "grpc-timeout is not a number and a unit")
    })?;
    Ok(Some(now + timeout.min(GIVEN_MAX)))
}

/// The deadline of one unary call or one item.
pub(super) fn of_call(op: Op, given: Option<Instant>, now: Instant) -> Instant {
    given.map_or(now + op.spec().deadline, |given| given.min(now + CALL_MAX))
}

/// The deadline of one item of a stream that may go on for longer; `timeout` is its own, if
/// it has one.
pub(super) fn of_item(
    op: Op,
    stream: Option<Instant>,
    timeout: Option<Duration>,
    now: Instant,
) -> Instant {
    let item = now + timeout.map_or(op.spec().deadline, |timeout| timeout.min(CALL_MAX));
    stream.map_or(item, |stream| stream.min(item))
}

/// Parses 1 to 8 digits and a unit, as the gRPC protocol has it.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_has_them() {
        assert_eq!(parse("10S"), Some(Duration::from_secs(10)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(parse("0n"), Some(Duration::ZERO));
        for bad in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1.5S", " 1S", "1é"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_malformed_timeout_is_refused() {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", "soon".parse().unwrap());
        let refusal = given(&metadata, Instant::now()).unwrap_err();
        assert_eq!(refusal.reason(), Reason::RequestInvalid);
    }

    #[test]
    fn the_shorter_of_caller_and_bound_wins() {
        let now = Instant::now();
        let seconds = |n| Some(now + Duration::from_secs(n));
        assert_eq!(of_call(Op::Unwrap, None, now), now + Op::Unwrap.spec().deadline);
        assert_eq!(Some(of_call(Op::Unwrap, seconds(1), now)), seconds(1));
        assert_eq!(of_call(Op::Unwrap, seconds(86_400), now), now + CALL_MAX);
        let usual = now + Op::Unwrap.spec().deadline;
        assert_eq!(of_item(Op::Unwrap, seconds(86_400), None, now), usual);
        assert_eq!(Some(of_item(Op::Unwrap, seconds(1), None, now)), seconds(1));
        let own = |seconds| of_item(Op::Unwrap, None, Some(Duration::from_secs(seconds)), now);
        assert_eq!([own(2), own(86_400)], [now + Duration::from_secs(2), now + CALL_MAX]);
    }
}
