//! `[log]`: what is written to standard error.

use super::{
    fields::Fields,
    mistake::{Wrong, quoted},
    schema,
};
use crate::observe::{self, Format};

/// How the sidecar logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// How lines are written.
    pub format: Format,
    /// A tracing filter that was checked.
    pub filter: String,
}

pub(super) fn read(fields: &Fields<'_>) -> Option<LogConfig> {
    let format = fields.parsed(&schema::FORMAT, |text| match text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => Err(Wrong::new(
            format!("{} is neither \"text\" nor \"json\"", quoted(text)),
            "write one of them",
        )),
    });
    let filter = fields.parsed(&schema::FILTER, |text| match observe::check_filter(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(why) => Err(Wrong::new(
            format!("{} is not a filter: {why}", quoted(text)),
            r#"write for example "info" or "info,keyward::backend=debug""#,
        )),
    });
    Some(LogConfig { format: format?, filter: filter? })
}
