//! The one table from [`Error`] to gRPC: a status for a call, an [`ItemError`] for
//! an item of a stream. It is the table at the head of the proto file.
//!
//! `Error::detail` never leaves: nothing here reads it.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    error::{Error, Reason, Retry},
    op::MESSAGE_MAX_BYTES,
    wire::{ERROR_DOMAIN, ItemError},
};

/// Reasons that only the transport gives, beside those of [`Reason`].
pub(super) const MESSAGE_TOO_LARGE: &str = "MESSAGE_TOO_LARGE";
pub(super) const UNIMPLEMENTED: &str = "UNIMPLEMENTED";

/// The key under which `ErrorInfo.metadata` tells how to mend it.
const FIX: &str = "fix";

/// The gRPC code of a reason.
pub(super) fn code(reason: Reason) -> Code {
    match reason {
        Reason::RequestInvalid
        | Reason::DekLengthInvalid
        | Reason::ContextTooLong
        | Reason::AlgorithmUnsupported
        | Reason::CiphertextInvalid => Code::InvalidArgument,
        Reason::KekMismatch
        | Reason::KekDisabled
        | Reason::KekExpired
        | Reason::KekNotYetValid
        | Reason::KekRevoked
        | Reason::SessionNotFound
        | Reason::BackendMisconfigured => Code::FailedPrecondition,
        Reason::KekNotFound | Reason::KekVersionNotFound => Code::NotFound,
        Reason::PermissionDenied | Reason::ContextRequired => Code::PermissionDenied,
        Reason::KekUnproven
        | Reason::BackendUnreachable
        | Reason::ShuttingDown
        | Reason::ConnectionEnding => Code::Unavailable,
        Reason::Overloaded => Code::ResourceExhausted,
        Reason::DeadlineExceeded => Code::DeadlineExceeded,
        Reason::Internal => Code::Internal,
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let reason = error.reason();
        let fix = error.fix();
        with_info(code(reason), reason.as_str(), error.message(), fix, retry_after(&error))
    }
}

impl From<Error> for ItemError {
    fn from(error: Error) -> Self {
        Self {
            code: code(error.reason()).into(),
            reason: error.reason().as_str().to_owned(),
            message: error.message().to_owned(),
            fix: error.fix().unwrap_or_default().to_owned(),
            retry_after: retry_after(&error).map(|after| {
                after.try_into().expect("retry hints are seconds, far below protobuf's bound")
            }),
        }
    }
}

fn retry_after(error: &Error) -> Option<Duration> {
    match error.retry() {
        Retry::Never => None,
        Retry::After(after) => Some(after),
    }
}

/// A status that carries an `ErrorInfo`, as every one does.
pub(super) fn with_info(
    code: Code,
    reason: &str,
    message: &str,
    fix: Option<&str>,
    retry_after: Option<Duration>,
) -> Status {
    let metadata: HashMap<_, _> =
        fix.map(|fix| (FIX.to_owned(), fix.to_owned())).into_iter().collect();
    let mut details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, metadata);
    if let Some(after) = retry_after {
        details.set_retry_info(Some(after));
    }
    Status::with_error_details(code, message, details)
}

/// What is said of a message beyond the limit, in either direction.
pub(super) fn message_too_large() -> Status {
    let message = format!("a message is at most {MESSAGE_MAX_BYTES} bytes");
    with_info(Code::ResourceExhausted, MESSAGE_TOO_LARGE, &message, None, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    /// The rows of the table at the head of the proto file.
    fn manual() -> HashMap<&'static str, &'static str> {
        let proto = include_str!("../../proto/keyward/v1/keywrap.proto");
        let rows = proto.lines().filter_map(|line| line.strip_prefix("//   "));
        rows.filter_map(|row| {
            let mut words = row.split_whitespace();
            Some((words.next()?, words.next()?))
        })
        .collect()
    }

    /// `InvalidArgument` as `INVALID_ARGUMENT`.
    fn name(code: Code) -> String {
        let mut name = String::new();
        for c in format!("{code:?}").chars() {
            if c.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(c.to_ascii_uppercase());
        }
        name
    }

    #[test]
    fn codes_are_those_of_the_manual() {
        let manual = manual();
        for reason in Reason::ALL {
            assert_eq!(manual[reason.as_str()], name(code(reason)), "{reason}");
        }
        assert_eq!(manual[MESSAGE_TOO_LARGE], name(message_too_large().code()));
        assert_eq!(manual[UNIMPLEMENTED], name(Code::Unimplemented));
    }

    #[test]
    fn a_status_tells_reason_fix_and_retry_but_no_detail() {
        let error = Error::new(Reason::BackendUnreachable, "the HSM does not answer")
            .with_fix("look at its cable")
            .with_detail("CKR_DEVICE_REMOVED at slot 7");
        let status = Status::from(error.clone());
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(
            (info.domain.as_str(), info.reason.as_str()),
            ("keyward", "BACKEND_UNREACHABLE")
        );
        assert_eq!(info.metadata[FIX], "look at its cable");
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(1)));
        assert!(!format!("{status:?}").contains("CKR_"));
        let bytes = status.details().to_vec();
        assert!(!bytes.windows(4).any(|window| window == b"CKR_"));

        let item = ItemError::from(error);
        assert_eq!(item.code, i32::from(Code::Unavailable));
        assert_eq!(item.retry_after.unwrap().seconds, 1);
        assert!(!item.message.contains("CKR_"));
    }

    #[test]
    fn retry_info_is_there_only_where_a_retry_can_help() {
        for reason in Reason::ALL {
            let error = Error::new(reason, "x");
            let expected = matches!(error.retry(), Retry::After(_));
            let status = Status::from(error.clone());
            assert_eq!(status.get_error_details().retry_info().is_some(), expected, "{reason}");
            assert_eq!(ItemError::from(error).retry_after.is_some(), expected, "{reason}");
        }
    }
}
