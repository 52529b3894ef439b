//! Who may do what. Deny by default.
//!
//! [`Policy::permit`] is the only maker of a [`Permit`], and the engine takes a
//! permit for every operation: a path that forgot to ask does not compile.

mod identity;
mod policy;

pub use identity::{Identity, SAN_MAX, San};
pub use policy::{Grant, KekPattern, Permit, Policy, WhoPattern};
