//! Why a call failed, as the sidecar said it, or as the client found out.

use std::{error::Error as StdError, fmt, time::Duration};

use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

use super::{retry::Trouble, transport::Failure};
use crate::{
    error::Reason,
    op::MESSAGE_MAX_BYTES,
    wire::{ERROR_DOMAIN, ItemError},
};

/// Why a call, or one item of a stream, failed. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    reason: String,
    code: Code,
    message: String,
    fix: Option<String>,
    retry_after: Option<Duration>,
    /// What became of the connection, if that is why.
    lost: Option<Lost>,
}

/// What became of a call that has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// It was not sent: there is no connection.
    Unsent,
    /// It was sent, and not worked on.
    Unread,
    /// That is not known.
    Broken,
}

impl Error {
    /// The sidecar cannot be reached. A request that was on its way may or may not have
    /// been worked on.
    pub const SIDECAR_UNREACHABLE: &'static str = "SIDECAR_UNREACHABLE";
    /// The answer is not what the protocol says it is.
    pub const ANSWER_INVALID: &'static str = "ANSWER_INVALID";
    /// The endpoint, or one of its files, cannot be used.
    pub const ENDPOINT_INVALID: &'static str = "ENDPOINT_INVALID";
    /// There is no more room in the locked memory that DEKs are to be kept in.
    pub const LOCKER_FULL: &'static str = "LOCKER_FULL";

    /// What went wrong, for programs: a reason of the protocol such as `KEK_NOT_FOUND`,
    /// or one of the constants here.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The gRPC status code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What went wrong, for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// How to mend it, if known.
    pub fn fix(&self) -> Option<&str> {
        self.fix.as_deref()
    }

    /// When sending the same request again can help; `None` if it cannot.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    fn new(reason: &str, code: Code, message: impl Into<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            code,
            message: message.into(),
            fix: None,
            retry_after: None,
            lost: None,
        }
    }

    fn with_fix(self, fix: &str) -> Self {
        Self { fix: Some(fix.to_owned()), ..self }
    }

    /// What it means for sending the call again.
    pub(super) fn trouble(&self) -> Trouble {
        match self.lost {
            Some(Lost::Unsent) => Trouble::NotSent,
            Some(Lost::Unread) => Trouble::Parted,
            Some(Lost::Broken) => Trouble::Broken,
            None if self.is_session_not_found() => Trouble::Session,
            None if self.is_for(Reason::ShuttingDown) => Trouble::NotTaken(self.retry_after),
            None if self.is_for(Reason::ConnectionEnding) => Trouble::Parted,
            None => Trouble::Said(self.retry_after),
        }
    }

    pub(super) fn is_session_not_found(&self) -> bool {
        self.is_for(Reason::SessionNotFound)
    }

    fn is_for(&self, reason: Reason) -> bool {
        self.reason == reason.as_str()
    }

    /// A session that has sealed all that it may: another is to be used.
    pub(super) fn session_spent() -> Self {
        let reason = Reason::SessionNotFound.as_str();
        Self::new(reason, Code::FailedPrecondition, "the session has sealed all that it may")
    }

    /// DEKs cannot be sealed here.
    pub(super) fn sealing(failure: &dyn fmt::Display) -> Self {
        let message = format!("DEKs cannot be sealed: {failure}");
        Self::new(Reason::Internal.as_str(), Code::Internal, message)
    }

    /// A client that waits cannot have the thread that it needs.
    pub(super) fn no_thread(error: &std::io::Error) -> Self {
        let message = format!("the client cannot have a thread: {error}");
        Self::new(Reason::Internal.as_str(), Code::Internal, message)
            .with_fix("raise the limit of threads or processes of this user")
    }

    pub(super) fn locker_full() -> Self {
        let message = "there is no more room in the locked memory for DEKs";
        Self::new(Self::LOCKER_FULL, Code::ResourceExhausted, message)
            .with_fix("give the client a locker of more slots, or drop DEKs that are not used")
    }

    /// What the sidecar would say of a request that is too long.
    pub(super) fn message_too_large() -> Self {
        let message = format!("a message is at most {MESSAGE_MAX_BYTES} bytes");
        Self::new("MESSAGE_TOO_LARGE", Code::ResourceExhausted, message)
    }

    /// What the sidecar would say of an empty name, where the protocol does not give it a
    /// meaning of its own.
    pub(super) fn kek_name_empty() -> Self {
        let reason = Reason::RequestInvalid.as_str();
        Self::new(reason, Code::InvalidArgument, "the name of a KEK is empty")
    }

    pub(super) fn answer_invalid(what: &str) -> Self {
        Self::new(Self::ANSWER_INVALID, Code::Internal, format!("the sidecar answered with {what}"))
    }

    pub(super) fn deadline_exceeded() -> Self {
        let reason = Reason::DeadlineExceeded.as_str();
        Self::new(reason, Code::DeadlineExceeded, "no answer within the deadline")
    }

    pub(super) fn endpoint_invalid(message: impl Into<String>, fix: &str) -> Self {
        Self::new(Self::ENDPOINT_INVALID, Code::InvalidArgument, message).with_fix(fix)
    }

    /// What a status says. `target` is where it was sent to.
    pub(super) fn from_status(status: &Status, target: &str) -> Self {
        let details = status.get_error_details();
        let Some(info) = details.error_info().filter(|info| info.domain == ERROR_DOMAIN) else {
            return Self::from_transport(status, target);
        };
        Self {
            reason: info.reason.clone(),
            code: status.code(),
            message: status.message().to_owned(),
            fix: info.metadata.get("fix").cloned(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            lost: None,
        }
    }

    /// A status that no sidecar made: the RPC library or the connection did.
    fn from_transport(status: &Status, target: &str) -> Self {
        // The library calls its own deadline a cancellation.
        if status.message() == TimeoutExpired(()).to_string() {
            return Self::deadline_exceeded();
        }
        // A status with a source was made here, of an error of the connection. Its code
        // may be any: the library calls a connection that was closed in order internal.
        let broken = status.source().is_some();
        match status.code() {
            Code::DeadlineExceeded => Self::deadline_exceeded(),
            code if broken
                || matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled) =>
            {
                let cause = root_cause(status);
                let message = format!("cannot reach the sidecar at {target}: {cause}");
                let error = Self::new(Self::SIDECAR_UNREACHABLE, Code::Unavailable, message);
                let fix = "see whether it runs, and whether we may connect to it";
                Self { lost: lost(status), ..error.with_fix(fix) }
            }
            code => Self::new(Self::ANSWER_INVALID, code, status.message()),
        }
    }

    pub(super) fn from_item(error: ItemError) -> Self {
        let ItemError { code, reason, message, retry_after, fix } = error;
        let fix = Some(fix).filter(|fix| !fix.is_empty());
        let retry_after = retry_after.and_then(|after| after.try_into().ok());
        Self { reason, code: Code::from(code), message, fix, retry_after, lost: None }
    }
}

/// What became of the call, if the connection is why there is no answer.
fn lost(status: &Status) -> Option<Lost> {
    let mut cause: Option<&(dyn StdError + 'static)> = status.source();
    let mut lost = None;
    while let Some(error) = cause {
        // A connection that ended: the sidecar closes each after some minutes, and a call may
        // just miss it. The next one is on another.
        lost = Some(match error.downcast_ref() {
            Some(Failure::Connect(_)) => return Some(Lost::Unsent),
            Some(Failure::Unread(_)) => return Some(Lost::Unread),
            Some(Failure::Broken(_)) | None => Lost::Broken,
        });
        cause = error.source();
    }
    lost
}

/// The innermost error of a chain, which says what really happened.
fn root_cause(status: &Status) -> String {
    let mut cause: Option<&(dyn StdError + 'static)> = status.source();
    while let Some(inner) = cause.and_then(StdError::source) {
        cause = Some(inner);
    }
    cause.map_or_else(|| status.message().to_owned(), ToString::to_string)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tonic_types::ErrorDetails;

    #[test]
    fn a_status_of_the_sidecar_is_taken_word_for_word() {
        let metadata = HashMap::from([("fix".to_owned(), "wait".to_owned())]);
        let mut details = ErrorDetails::with_error_info("OVERLOADED", "keyward", metadata);
        details.set_retry_info(Some(Duration::from_millis(100)));
        let status = Status::with_error_details(Code::ResourceExhausted, "too much", details);
        let error = Error::from_status(&status, "x");
        assert_eq!((error.reason(), error.code()), ("OVERLOADED", Code::ResourceExhausted));
        assert_eq!((error.message(), error.fix()), ("too much", Some("wait")));
        assert_eq!(error.retry_after(), Some(Duration::from_millis(100)));
    }

    #[test]
    fn a_status_of_somebody_else_gives_no_leave_to_retry() {
        let mut details = ErrorDetails::with_error_info("BUSY", "elsewhere", HashMap::new());
        details.set_retry_info(Some(Duration::from_millis(1)));
        let status = Status::with_error_details(Code::Unavailable, "proxy", details);
        let error = Error::from_status(&status, "/run/k.sock");
        assert_eq!((error.reason(), error.retry_after()), (Error::SIDECAR_UNREACHABLE, None));
        assert!(error.message().contains("/run/k.sock"));
    }
}
