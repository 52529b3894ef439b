//! Why the server could not start, for the operator: what, cause, fix.

use std::{borrow::Cow, fmt};

/// Why something could not be set up. No caller ever sees it, so it may name paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupError {
    what: Cow<'static, str>,
    cause: String,
    fix: Option<Cow<'static, str>>,
}

impl SetupError {
    pub(super) fn new(what: impl Into<Cow<'static, str>>, cause: impl ToString) -> Self {
        Self { what: what.into(), cause: cause.to_string(), fix: None }
    }

    #[must_use]
    pub(super) fn with_fix(mut self, fix: impl Into<Cow<'static, str>>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// What could not be done.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Why.
    pub fn cause(&self) -> &str {
        &self.cause
    }

    /// How to mend it, if known.
    pub fn fix(&self) -> Option<&str> {
        self.fix.as_deref()
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.cause)
    }
}

impl std::error::Error for SetupError {}
