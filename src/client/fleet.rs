//! The sidecars of a client, in order of preference.

use std::{fmt, sync::Arc};

use super::{
    Endpoint, Error,
    choice::{self, Standing},
    sidecar::Sidecar,
};

/// Sidecars that one client may have.
const SIDECARS_MAX: usize = 16;

/// At least one sidecar.
pub(super) struct Fleet(Box<[Arc<Sidecar>]>);

impl Fleet {
    /// Unix sockets are preferred to TCP, and otherwise those that are named first.
    pub(super) fn new(endpoints: &[Endpoint]) -> Result<Self, Error> {
        if !(1..=SIDECARS_MAX).contains(&endpoints.len()) {
            let what = format!("a client has 1 to {SIDECARS_MAX} sidecars");
            return Err(Error::endpoint_invalid(what, "name as many"));
        }
        let mut endpoints: Vec<&Endpoint> = endpoints.iter().collect();
        endpoints.sort_by_key(|endpoint| !endpoint.is_unix());
        let sidecars = endpoints.into_iter().map(|endpoint| Sidecar::new(endpoint).map(Arc::new));
        Ok(Self(sidecars.collect::<Result<_, _>>()?))
    }

    /// The sidecar for the `attempt`th time that a call is sent, counted from 0.
    pub(super) fn pick(&self, attempt: u32) -> Arc<Sidecar> {
        if let [only] = &*self.0 {
            return Arc::clone(only);
        }
        let standings: Vec<Standing> = self.0.iter().map(|sidecar| sidecar.standing()).collect();
        if standings.iter().any(|standing| !standing.is_up()) {
            self.0.iter().for_each(Sidecar::ask_again);
        }
        Arc::clone(&self.0[choice::pick(&standings, attempt)])
    }

    /// Whether another than this one is up.
    pub(super) fn others_up(&self, sidecar: &Arc<Sidecar>) -> bool {
        self.0.iter().any(|other| !Arc::ptr_eq(other, sidecar) && other.standing().is_up())
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let targets: Vec<&str> = self.0.iter().map(|sidecar| sidecar.target()).collect();
        f.write_str(&targets.join(", "))
    }
}
