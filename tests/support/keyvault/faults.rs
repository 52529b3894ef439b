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

impl Ordered {
    fn is_due(&mut self) -> bool {
        self.asked = self.asked.wrapping_add(1);
        match self.times {
            Times::Next(_) | Times::Always => true,
            Times::OneOf(many) => self.asked.is_multiple_of(many),
        }
    }
}

#[derive(Default)]
pub struct Faults {
    ordered: Mutex<Vec<Ordered>>,
    tls: Mutex<Tls>,
}

struct Ordered {
    on: On,
    fault: Fault,
    times: Times,
    /// Requests that it was asked about.
    asked: u32,
}

/// How often a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// The next requests that fit.
    Next(u32),
    /// One request of so many.
    OneOf(u32),
    Always,
}

impl Faults {
    pub fn order(&self, on: On, fault: Fault, times: Times) {
        assert!(!matches!(times, Times::Next(0) | Times::OneOf(0)), "it would never strike");
        self.ordered.lock().unwrap().push(Ordered { on, fault, times, asked: 0 });
    }

    pub fn clear(&self) {
        self.ordered.lock().unwrap().clear();
    }

    /// The fault that strikes this request: of those that fit and are due, the first
    /// ordered.
    pub fn strike(&self, route: &Route) -> Option<Fault> {
        let mut ordered = self.ordered.lock().unwrap();
        let at = ordered.iter_mut().position(|order| order.on.fits(route) && order.is_due())?;
        let order = &ordered[at];
        let fault = order.fault.clone();
        if order.times == Times::Next(order.asked) {
            ordered.remove(at);
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
