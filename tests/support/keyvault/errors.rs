//! Every error body of the service, in one place.
//!
//! Texts and codes are those of captured answers, `\r\n` included. What nobody has
//! captured is marked "not captured": its status and code are what the documentation
//! says or our guess, so no client may hang anything on it.

use serde_json::{Value, json};

use super::{message::Answer, operation::Operation};

/// An answer that says no.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub status: u16,
    pub code: &'static str,
    pub inner: Option<&'static str>,
    pub message: String,
    headers: Vec<(&'static str, String)>,
    /// Nothing but the status line and headers.
    bare: bool,
}

fn refusal(
    status: u16,
    code: &'static str,
    inner: Option<&'static str>,
    message: impl Into<String>,
) -> Refusal {
    Refusal { status, code, inner, message: message.into(), headers: Vec::new(), bare: false }
}

impl Refusal {
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The same, without a body.
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    pub fn body(&self) -> Value {
        let mut error = json!({ "code": self.code, "message": self.message });
        if let Some(inner) = self.inner {
            error["innererror"] = json!({ "code": inner });
        }
        json!({ "error": error })
    }

    pub fn answer(&self) -> Answer {
        let mut answer = Answer::json(self.status, &self.body());
        if self.bare {
            answer.body.clear();
        }
        answer.headers.extend(self.headers.iter().cloned());
        answer
    }
}

/// Who asks and whom, as the messages name them.
#[derive(Clone, Debug)]
pub struct Caller {
    pub app_id: String,
    pub object_id: String,
    pub issuer: String,
}

impl Caller {
    fn named(&self) -> String {
        format!("appid={};oid={};iss={}", self.app_id, self.object_id, self.issuer)
    }
}

// --- 401 -----------------------------------------------------------------------

pub fn no_token() -> Refusal {
    let text = "AKV10000: Request is missing a Bearer or PoP token.";
    refusal(401, "Unauthorized", None, text)
}

/// Documented as a challenge like any other, without a body.
pub fn expired_token() -> Refusal {
    refusal(401, "Unauthorized", None, "").bare()
}

pub fn wrong_audience(expected: &str, found: &str) -> Refusal {
    let text = format!("AKV10022: Invalid audience. Expected {expected}, found: {found}.");
    refusal(401, "Unauthorized", None, text)
}

pub fn wrong_issuer(expected: &str, found: &str) -> Refusal {
    let text = format!("AKV10032: Invalid issuer. Expected one of {expected}, found {found}.");
    refusal(401, "Unauthorized", None, text)
}

/// Also seen with good tokens, now and then, for no reason that a client could see.
pub fn unknown_signing_key(encoded_header: &str) -> Refusal {
    let text = format!(
        "AKV10046: Unable to resolve the key used for signature validation. EncodedJwtHeader: \
         '{encoded_header}'."
    );
    refusal(401, "Unauthorized", None, text)
}

/// Not captured.
pub fn bad_token(why: &str) -> Refusal {
    refusal(401, "Unauthorized", None, format!("The token cannot be used: {why}."))
}

// --- 403 -----------------------------------------------------------------------

pub fn key_disabled(operation: Operation) -> Refusal {
    let text = format!("Operation {} is not allowed on a disabled key.", operation.permission());
    refusal(403, "Forbidden", Some("KeyDisabled"), text)
}

/// A wrap outside of nbf and exp. Documented as 403; the inner code is not captured, so
/// there is none.
pub fn key_out_of_date(operation: Operation, when: &str) -> Refusal {
    let text = format!("Operation {} is not allowed on {when} key.", operation.permission());
    refusal(403, "Forbidden", None, text)
}

pub fn operation_forbidden(operation: Operation) -> Refusal {
    let text = format!("Operation {} is not permitted on this key.", operation.permission());
    refusal(403, "Forbidden", Some("KeyOperationForbidden"), text)
}

pub fn by_rbac(caller: &Caller, operation: Operation, vault: &str, key: &str) -> Refusal {
    let resource = format!(
        "/subscriptions/00000000-0000-0000-0000-000000000001/resourcegroups/keyward/providers/\
         microsoft.keyvault/vaults/{vault}/keys/{key}"
    );
    let text = format!(
        "Caller is not authorized to perform action on resource.\r\nIf role assignments, deny \
         assignments or role definitions were changed recently, please observe propagation \
         time.\r\nCaller: {}\r\nAction: '{}'\r\nResource: '{resource}'\r\nAssignment: (not \
         found)\r\nDenyAssignmentId: null\r\nDecisionReason: null \r\nVault: \
         {vault};location=westeurope\r\n",
        caller.named(),
        operation.data_action(),
    );
    refusal(403, "Forbidden", Some("ForbiddenByRbac"), text)
}

fn policy_text(caller: &Caller, operation: Operation, vault: &str) -> String {
    format!(
        "The user, group or application '{};numgroups=0' does not have keys {} permission on \
         key vault '{vault};location=westeurope'. For help resolving this issue, please see \
         https://go.microsoft.com/fwlink/?linkid=2125287",
        caller.named(),
        operation.permission(),
    )
}

pub fn by_policy(caller: &Caller, operation: Operation, vault: &str) -> Refusal {
    let text = policy_text(caller, operation, vault);
    refusal(403, "Forbidden", Some("ForbiddenByPolicy"), text)
}

/// The other inner code that has been captured for a missing access policy.
pub fn access_denied(caller: &Caller, operation: Operation, vault: &str) -> Refusal {
    let text = policy_text(caller, operation, vault);
    refusal(403, "Forbidden", Some("AccessDenied"), text)
}

pub fn by_firewall(caller: &Caller, address: &str, vault: &str) -> Refusal {
    let text = format!(
        "Client address is not authorized and caller is not a trusted service.\r\nClient \
         address: {address}\r\nCaller: {}\r\nVault: {vault};location=westeurope",
        caller.named(),
    );
    refusal(403, "Forbidden", Some("ForbiddenByFirewall"), text)
}

pub fn by_connection(caller: &Caller, vault: &str) -> Refusal {
    let text = format!(
        "Connection is not an approved private link and caller was ignored because bypass is \
         not set to 'AzureServices' and PublicNetworkAccess is set to 'Disabled'.\r\nCaller: \
         {}\r\nVault: {vault};location=westeurope",
        caller.named(),
    );
    refusal(403, "Forbidden", Some("ForbiddenByConnection"), text)
}

/// Purging what is protected. Status documented; the text is not captured.
pub fn purge_protected(key: &str) -> Refusal {
    let text = format!("Operation purge is not allowed on key {key}: purge protection is on.");
    refusal(403, "Forbidden", Some("ForbiddenByPurgeProtection"), text)
}

// --- 404, 409 ------------------------------------------------------------------

/// `id` is the name, or name and version with a slash between.
pub fn key_not_found(id: &str) -> Refusal {
    let text = format!(
        "A key with (name/id) {id} was not found in this key vault. If you recently deleted \
         this key you may be able to recover it using the correct recovery command. For help \
         resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125182"
    );
    refusal(404, "KeyNotFound", None, text)
}

pub fn deleted_key_not_found(key: &str) -> Refusal {
    refusal(404, "KeyNotFound", None, format!("Deleted Key not found: {key}"))
}

/// Not captured: what is known is that its name keeps resolving for the retention period.
pub fn vault_deleted(vault: &str) -> Refusal {
    refusal(404, "VaultNotFound", None, format!("The vault '{vault}' was not found."))
}

/// Not captured.
pub fn no_such_path() -> Refusal {
    refusal(404, "NotFound", None, "The resource was not found.")
}

pub fn deleted_but_recoverable(key: &str) -> Refusal {
    let text = format!(
        "Key {key} is currently in a deleted but recoverable state, and its name cannot be \
         reused; in this state, the key can only be recovered or purged."
    );
    refusal(409, "Conflict", Some("ObjectIsDeletedButRecoverable"), text)
}

/// Restoring over a name that is taken. The text is not captured.
pub fn name_taken(key: &str) -> Refusal {
    refusal(409, "Conflict", None, format!("Key {key} already exists."))
}

// --- 400 -----------------------------------------------------------------------

pub fn bad_parameter(message: impl Into<String>) -> Refusal {
    refusal(400, "BadParameter", None, message)
}

pub fn not_base64url(field: &str) -> Refusal {
    bad_parameter(format!("Content of '{field}' is not base64url"))
}

pub fn oaep_padding() -> Refusal {
    bad_parameter("Error occurred while decoding OAEP padding")
}

// --- transient -----------------------------------------------------------------

pub fn throttled(retry_after: Option<u32>) -> Refusal {
    let text = "Request was not processed because too many requests were received. Reason: \
                VaultRequestTypeLimitReached";
    let refusal = refusal(429, "Throttled", None, text);
    match retry_after {
        Some(seconds) => refusal.with("Retry-After", seconds.to_string()),
        None => refusal,
    }
}

pub fn request_timeout() -> Refusal {
    refusal(408, "RequestTimeout", None, "The request timed out.")
}

pub fn internal() -> Refusal {
    refusal(500, "InternalServerError", None, "An unexpected error occurred.")
}

pub fn bad_gateway() -> Refusal {
    refusal(502, "BadGateway", None, "Bad gateway.")
}

pub fn unavailable() -> Refusal {
    let text = "The service is unavailable. Please try again later.";
    refusal(503, "ServiceUnavailable", None, text)
}

pub fn gateway_timeout() -> Refusal {
    refusal(504, "GatewayTimeout", None, "The gateway timed out.")
}
