//! `[[policy]]`: who may do what.

use super::{
    fields::Fields,
    mistake::{Wrong, did_you_mean, quoted},
    schema,
};
use crate::{
    auth::{Grant, KekPattern, Policy, WhoPattern},
    op::{OPS, Op},
};

/// An operation of operators that comes with a later release.
const LATER: &str = "status";

pub(super) fn read(entries: &[Fields<'_>]) -> Option<Policy> {
    let grants: Vec<_> = entries.iter().map(read_one).collect();
    grants.into_iter().collect::<Option<_>>().map(Policy::new)
}

fn read_one(fields: &Fields<'_>) -> Option<Grant> {
    let who = fields.each(&schema::WHO, |text| {
        WhoPattern::parse(text).map_err(|why| {
            Wrong::new(
                format!("{} is no caller", quoted(text)),
                // The pattern's own words say what is allowed.
                format!("{why}; `id -u NAME` prints a user's number"),
            )
        })
    });
    let may = fields.each(&schema::MAY, operation);
    let kek = fields.each(&schema::POLICY_KEK, |text| {
        KekPattern::parse(text)
            .map_err(|why| Wrong::new(format!("{} matches no KEK", quoted(text)), why))
    });
    let context_required = fields.parsed(&schema::CONTEXT, |text| match text {
        "required" => Ok(true),
        "optional" => Ok(false),
        _ => Err(Wrong::new(
            format!("{} is neither \"optional\" nor \"required\"", quoted(text)),
            "write one of them",
        )),
    });
    Some(Grant { who: who?, may: may?, kek: kek?, context_required: context_required? })
}

fn operation(text: &str) -> Result<Op, Wrong> {
    if let Some(op) = Op::from_name(text) {
        return Ok(op);
    }
    if text == LATER {
        return Err(Wrong::new(format!("{} is not in this release", quoted(text)), "remove it"));
    }
    let names: Vec<_> = OPS.iter().map(|spec| spec.name).collect();
    let fix = match did_you_mean(text, names.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("use any of: {}", names.join(", ")),
    };
    Err(Wrong::new(format!("{} is no operation", quoted(text)), fix))
}
