//! The one error of the sidecar: what went wrong, whose doing it was, whether
//! trying again can help, and how to mend it.
//!
//! An [`Error`] is safe to log and to show to any caller: whoever builds one puts
//! no secret and no foreign error text into `message` or `fix`. Foreign detail
//! goes into `detail`, which is for the sidecar's own log and never leaves it.
//!
//! It knows nothing of gRPC: `api/status.rs` holds the table that does.

use std::{borrow::Cow, fmt, time::Duration};

/// What went wrong. The names are part of the protocol: see the table at the
/// head of `proto/keyward/v1/keywrap.proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A field is missing, too long or malformed.
    RequestInvalid,
    /// A DEK is not 16 to 64 bytes, or not of a length that the algorithm takes.
    DekLengthInvalid,
    /// A context is longer than 4096 bytes.
    ContextTooLong,
    /// Unknown algorithm, or not one of this KEK.
    AlgorithmUnsupported,
    /// Not a DEK wrapped by this KEK version with this context. Opaque on purpose:
    /// every cause looks the same.
    CiphertextInvalid,
    /// The key of this name and version is not the one that wrapped the DEK.
    KekMismatch,
    /// No such KEK.
    KekNotFound,
    /// The KEK has no such version.
    KekVersionNotFound,
    /// The key does not allow the operation.
    KekDisabled,
    /// Past the key's end date.
    KekExpired,
    /// Before the key's start date.
    KekNotYetValid,
    /// An operator took the KEK away, on this sidecar or in the vault.
    KekRevoked,
    /// No recent proof that the key works.
    KekUnproven,
    /// The policy does not allow it.
    PermissionDenied,
    /// The policy binds this caller to DEKs with a context.
    ContextRequired,
    /// The HSM or vault does not answer.
    BackendUnreachable,
    /// The HSM or vault refuses for a reason that only its operator can mend.
    BackendMisconfigured,
    /// A bound was reached.
    Overloaded,
    /// Not answered in time.
    DeadlineExceeded,
    /// The sidecar is draining.
    ShuttingDown,
    /// The sidecar closes the connection, and the stream with it.
    ConnectionEnding,
    /// The caller has no such session of sealed delivery, or not any more.
    SessionNotFound,
    /// A defect of the sidecar.
    Internal,
}

/// Whose doing an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The caller sent what cannot be served.
    Caller,
    /// The sidecar itself.
    Sidecar,
    /// The HSM, the vault, or the key in it.
    Backend,
}

/// Whether sending the same request again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It cannot.
    Never,
    /// It can, no sooner than this.
    After(Duration),
}

impl Reason {
    /// Every reason, for tables and tests.
    pub const ALL: [Self; 23] = [
        Self::RequestInvalid,
        Self::DekLengthInvalid,
        Self::ContextTooLong,
        Self::AlgorithmUnsupported,
        Self::CiphertextInvalid,
        Self::KekMismatch,
        Self::KekNotFound,
        Self::KekVersionNotFound,
        Self::KekDisabled,
        Self::KekExpired,
        Self::KekNotYetValid,
        Self::KekRevoked,
        Self::KekUnproven,
        Self::PermissionDenied,
        Self::ContextRequired,
        Self::BackendUnreachable,
        Self::BackendMisconfigured,
        Self::Overloaded,
        Self::DeadlineExceeded,
        Self::ShuttingDown,
        Self::ConnectionEnding,
        Self::SessionNotFound,
        Self::Internal,
    ];

    /// The stable name, as in `google.rpc.ErrorInfo.reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RequestInvalid => "REQUEST_INVALID",
            Self::DekLengthInvalid => "DEK_LENGTH_INVALID",
            Self::ContextTooLong => "CONTEXT_TOO_LONG",
            Self::AlgorithmUnsupported => "ALGORITHM_UNSUPPORTED",
            Self::CiphertextInvalid => "CIPHERTEXT_INVALID",
            Self::KekMismatch => "KEK_MISMATCH",
            Self::KekNotFound => "KEK_NOT_FOUND",
            Self::KekVersionNotFound => "KEK_VERSION_NOT_FOUND",
            Self::KekDisabled => "KEK_DISABLED",
            Self::KekExpired => "KEK_EXPIRED",
            Self::KekNotYetValid => "KEK_NOT_YET_VALID",
            Self::KekRevoked => "KEK_REVOKED",
            Self::KekUnproven => "KEK_UNPROVEN",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::ContextRequired => "CONTEXT_REQUIRED",
            Self::BackendUnreachable => "BACKEND_UNREACHABLE",
            Self::BackendMisconfigured => "BACKEND_MISCONFIGURED",
            Self::Overloaded => "OVERLOADED",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::ShuttingDown => "SHUTTING_DOWN",
            Self::ConnectionEnding => "CONNECTION_ENDING",
            Self::SessionNotFound => "SESSION_NOT_FOUND",
            Self::Internal => "INTERNAL",
        }
    }

    /// Whose doing it is.
    pub fn origin(self) -> Origin {
        match self {
            Self::RequestInvalid
            | Self::DekLengthInvalid
            | Self::ContextTooLong
            | Self::AlgorithmUnsupported
            | Self::CiphertextInvalid
            | Self::KekMismatch
            | Self::KekNotFound
            | Self::KekVersionNotFound
            | Self::PermissionDenied
            | Self::ContextRequired
            | Self::SessionNotFound
            | Self::DeadlineExceeded => Origin::Caller,
            Self::Overloaded | Self::ShuttingDown | Self::ConnectionEnding | Self::Internal => {
                Origin::Sidecar
            }
            Self::KekDisabled
            | Self::KekExpired
            | Self::KekNotYetValid
            | Self::KekRevoked
            | Self::KekUnproven
            | Self::BackendUnreachable
            | Self::BackendMisconfigured => Origin::Backend,
        }
    }

    /// Whether it says nothing about the key, only that it could not be asked now.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::BackendUnreachable
                | Self::Overloaded
                | Self::DeadlineExceeded
                | Self::ShuttingDown
                | Self::ConnectionEnding
                | Self::Internal
        )
    }

    /// The usual answer to "can the same request succeed later, by itself?".
    fn retry(self) -> Retry {
        match self {
            Self::BackendUnreachable => Retry::After(Duration::from_secs(1)),
            Self::KekUnproven => Retry::After(Duration::from_millis(250)),
            Self::Overloaded => Retry::After(Duration::from_millis(100)),
            Self::ShuttingDown => Retry::After(Duration::from_millis(500)),
            Self::ConnectionEnding => Retry::After(Duration::from_millis(10)),
            _ => Retry::Never,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What went wrong, for the caller and for the operator.
#[derive(Debug, Clone)]
pub struct Error {
    reason: Reason,
    message: Cow<'static, str>,
    fix: Option<Cow<'static, str>>,
    detail: Option<String>,
    retry: Retry,
}

impl Error {
    /// `message` is one sentence without a full stop, for people.
    pub fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, message: message.into(), fix: None, detail: None, retry: reason.retry() }
    }

    /// The one error for every ciphertext that does not unwrap. It takes no
    /// argument so that no cause can find its way into it.
    pub fn ciphertext_invalid() -> Self {
        Self::new(
            Reason::CiphertextInvalid,
            "not a DEK wrapped by this KEK version with this context",
        )
    }

    /// What the reader should do about it.
    #[must_use]
    pub fn with_fix(mut self, fix: impl Into<Cow<'static, str>>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// What only the operator's log should see, such as the code that a token
    /// returned. Still no secrets.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Overrides when trying again can help.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// What went wrong, for programs.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// What went wrong, for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// How to mend it, if known.
    pub fn fix(&self) -> Option<&str> {
        self.fix.as_deref()
    }

    /// Detail for the sidecar's own log.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// Whether sending the same request again can help.
    pub fn retry(&self) -> Retry {
        self.retry
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn reasons_have_distinct_names_that_the_protocol_documents() {
        let manual = include_str!("../proto/keyward/v1/keywrap.proto");
        let names: HashSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for name in names {
            assert!(
                manual.contains(&format!("//   {name} ")),
                "{name} is not in the proto's table"
            );
        }
    }

    #[test]
    fn callers_mistakes_are_not_worth_a_retry() {
        for reason in Reason::ALL {
            if reason.origin() == Origin::Caller {
                assert_eq!(Error::new(reason, "x").retry(), Retry::Never, "{reason}");
            }
        }
    }

    #[test]
    fn detail_does_not_show() {
        let error = Error::new(Reason::Internal, "something broke").with_detail("CKR_DEVICE_ERROR");
        assert_eq!(error.to_string(), "something broke");
    }
}
