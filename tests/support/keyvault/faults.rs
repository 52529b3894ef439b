//! Faults to order: what goes wrong, with which requests, how often.
//!
//! Refuses to know: how a fault is carried out; `server` does that.

use std::{sync::Mutex, time::Duration};

use super::{message::Answer, operation::Route};

pub use super::operation::Operation;

#[derive(Clone, Debug)]
pub enum Fault {
    /// The right answer, late.
    Latency(Duration),
    /// No answer, for as long as the client waits.
    Hang,
    /// The connection is reset (RST) after the request was read.
    Reset,
    /// The connection is closed without an answer.
    Close,
    /// The right answer up to the half of its body, then the connection is closed.
    Truncate,
    /// The right answer, its body in pieces of so many bytes with a pause before each.
    Slow { piece: usize, pause: Duration },
    /// The operation is done, and this is answered instead.
    Body(String),
    /// Nothing is done, and this is answered.
    Answer(Answer),
}

/// Which requests a fault is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum On {
    /// Every request to the vault.
    Vault,
    Operation(Operation),
    /// Every request for this key.
    Key(String),
}

impl On {
    fn fits(&self, route: &Route) -> bool {
        match self {
            Self::Vault => route.operation.in_vault(),
            Self::Operation(operation) => route.operation == *operation,
            Self::Key(key) => route.key == *key,
        }
    }
}

/// What TLS does to those who connect from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    #[default]
    Right,
    /// The certificate names another host.
    WrongName,
    /// The certificate comes from an authority that the client was not told of.
    UnknownAuthority,
    /// The certificate was good until yesterday.
    Expired,
    /// The connection is closed instead of a handshake.
    Closed,
    /// Something answers that does not speak TLS.
    Plaintext,
}

#[derive(Default)]
pub struct Faults {
    ordered: Mutex<Vec<Ordered>>,
    tls: Mutex<Tls>,
}

struct Ordered {
    on: On,
    fault: Fault,
    /// How often it strikes still; `None` is always.
    left: Option<u32>,
}

impl Faults {
    pub fn order(&self, on: On, fault: Fault, times: Option<u32>) {
        assert_ne!(times, Some(0), "a fault that never strikes");
        self.ordered.lock().unwrap().push(Ordered { on, fault, left: times });
    }

    pub fn clear(&self) {
        self.ordered.lock().unwrap().clear();
    }

    /// The fault that strikes this request: of those that fit, the first ordered.
    pub fn strike(&self, route: &Route) -> Option<Fault> {
        let mut ordered = self.ordered.lock().unwrap();
        let at = ordered.iter().position(|order| order.on.fits(route))?;
        let fault = ordered[at].fault.clone();
        if let Some(left) = &mut ordered[at].left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                ordered.remove(at);
            }
        }
        Some(fault)
    }

    pub fn set_tls(&self, tls: Tls) {
        *self.tls.lock().unwrap() = tls;
    }

    pub fn tls(&self) -> Tls {
        *self.tls.lock().unwrap()
    }
}
