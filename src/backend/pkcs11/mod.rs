//! The PKCS#11 backend: any vendor's module, SoftHSM by default.

mod settings;

pub use settings::{PinSource, Settings, TokenSelector};
