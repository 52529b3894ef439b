//! The last step of every call: what leaves the sidecar as an error carries an
//! `ErrorInfo`, also where the RPC library or a defect of ours made it.
//!
//! The library answers a message that is too large, bytes that are no message, or a
//! method that does not exist before any of our code runs, and without details. Those
//! answers are recognised by what they lack, and replaced.

use std::{convert::Infallible, future::Future, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use http::Response;
use tokio::time::timeout;
use tonic::{Code, Status, body::Body};
use tracing::error;

use super::{
    deadline::CALL_MAX,
    status::{MESSAGE_TOO_LARGE, UNIMPLEMENTED, message_too_large, with_info},
};
use crate::error::{Error, Reason};

const GRPC_STATUS: &str = "grpc-status";
const GRPC_STATUS_DETAILS: &str = "grpc-status-details-bin";

/// When a call without an answer is given up. The engine answers long before; this
/// ends calls whose request never came to its end.
const GIVE_UP_AFTER: Duration = CALL_MAX.saturating_add(Duration::from_secs(1));

/// Runs one call and finishes its answer.
pub async fn finish(
    call: impl Future<Output = Result<Response<Body>, Infallible>>,
) -> Response<Body> {
    match timeout(GIVE_UP_AFTER, AssertUnwindSafe(call).catch_unwind()).await {
        Ok(Ok(Ok(response))) => with_error_info(response),
        Ok(Ok(Err(never))) => match never {},
        Ok(Err(_panic)) => {
            error!("a call panicked: this is a defect of the sidecar");
            Status::from(Error::new(Reason::Internal, "the sidecar has a defect")).into_http()
        }
        Err(_elapsed) => {
            let late = Error::new(Reason::DeadlineExceeded, "the request was not sent in time");
            Status::from(late).into_http()
        }
    }
}

/// The answer to a method that no service has.
pub fn unknown_method() -> Response<Body> {
    with_info(Code::Unimplemented, UNIMPLEMENTED, "no such method", None, None).into_http()
}

fn with_error_info(response: Response<Body>) -> Response<Body> {
    let headers = response.headers();
    if !headers.contains_key(GRPC_STATUS) || headers.contains_key(GRPC_STATUS_DETAILS) {
        return response;
    }
    match Status::from_header_map(headers) {
        Some(status) if status.code() != Code::Ok => mend(status).into_http(),
        _ => response,
    }
}

/// Gives a status of the RPC library its `ErrorInfo`, and our code where the library
/// has another.
pub(super) fn mend(status: Status) -> Status {
    if !status.details().is_empty() {
        return status;
    }
    match status.code() {
        Code::OutOfRange => message_too_large(),
        // What the library calls internal is a request that it cannot read. Our own
        // internal errors carry details and do not come here.
        Code::Internal => {
            Error::new(Reason::RequestInvalid, "the request is not a message of this method").into()
        }
        code => with_info(code, reason(code), status.message(), None, None),
    }
}

/// The reason nearest to a code that came without one.
fn reason(code: Code) -> &'static str {
    match code {
        Code::Unimplemented => UNIMPLEMENTED,
        Code::ResourceExhausted => MESSAGE_TOO_LARGE,
        Code::DeadlineExceeded => Reason::DeadlineExceeded.as_str(),
        Code::Unavailable => Reason::ShuttingDown.as_str(),
        // NOT_FOUND and INVALID_ARGUMENT of health and reflection, CANCELLED.
        _ => Reason::RequestInvalid.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::StatusExt;

    async fn finished(status: Status) -> Status {
        let response = finish(async { Ok(status.into_http()) }).await;
        Status::from_header_map(response.headers()).unwrap()
    }

    fn reason_of(status: &Status) -> String {
        let info = status.get_details_error_info().expect("an ErrorInfo");
        assert_eq!(info.domain, "keyward");
        info.reason
    }

    #[tokio::test]
    async fn answers_of_the_library_get_an_error_info() {
        for (status, code, reason) in [
            (Status::out_of_range("x"), Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
            (Status::internal("x"), Code::InvalidArgument, "REQUEST_INVALID"),
            (Status::unimplemented("x"), Code::Unimplemented, "UNIMPLEMENTED"),
            (Status::not_found("x"), Code::NotFound, "REQUEST_INVALID"),
        ] {
            let finished = finished(status).await;
            assert_eq!((finished.code(), reason_of(&finished).as_str()), (code, reason));
        }
    }

    #[tokio::test]
    async fn answers_of_ours_stay_as_they_are() {
        let ours = Status::from(Error::new(Reason::Internal, "ours"));
        let finished = finished(ours).await;
        assert_eq!((finished.code(), finished.message()), (Code::Internal, "ours"));
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error() {
        let response = finish(async { panic!("boom with a secret") }).await;
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!((status.code(), reason_of(&status).as_str()), (Code::Internal, "INTERNAL"));
        assert!(!status.message().contains("secret"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_never_ends_is_given_up() {
        let response = finish(std::future::pending()).await;
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(reason_of(&status), "DEADLINE_EXCEEDED");
    }
}
