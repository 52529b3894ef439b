//! The only file that calls into a PKCS#11 module.
//!
//! Every call goes through one `CK_FUNCTION_LIST`, taken once when the module is
//! loaded: some modules (p11-kit's client) give each caller of `C_GetFunctionList` an
//! instance of its own, so two lists must not be mixed. cryptoki gives the words
//! (attributes, types); its own calls are not used, because it runs `C_Decrypt` twice,
//! keeps copies of what it read, closes sessions by numbers that may be another's by
//! then, and cannot name the KWP mechanism.
//!
//! What a safe caller must still see to (the module cannot be trusted with it):
//! one session is used by one thread at a time (`worker.rs`), and nothing is called
//! between `C_Finalize` and `C_Initialize` (`module.rs`).
//!
//! It knows no policy: every `CK_RV` that is not `CKR_OK` is returned as it came.

#![allow(unsafe_code)]

use std::{
    ffi::{CString, c_void},
    path::Path,
    ptr,
};

use cryptoki::object::{Attribute, AttributeType};
use cryptoki_sys::*;

use super::raw::{Ckr, LoadError, Mechanism, TokenInfo, padded, raw};
use crate::secret::Secret;

/// A loaded module.
pub(super) struct Library {
    list: CK_FUNCTION_LIST,
    /// Keeps the code behind `list` mapped.
    _loaded: Pkcs11,
}

/// Calls a function of the list by name; a missing one is `CKR_FUNCTION_NOT_SUPPORTED`.
macro_rules! call {
    ($self:ident, $name:ident ( $($arg:expr),* $(,)? )) => {{
        let code = match $self.list.$name {
            // SAFETY: the pointer is from the module's own list, which `_loaded` keeps
            // mapped. Every pointer argument points to memory that outlives the call
            // and has the length that is passed beside it.
            Some(function) => unsafe { function($($arg),*) },
            None => CKR_FUNCTION_NOT_SUPPORTED,
        };
        match code {
            CKR_OK => Ok(()),
            code => Err(Ckr { function: stringify!($name), code }),
        }
    }};
}

impl Library {
    /// Loads the module. This runs the module's own start-up code: a module is trusted
    /// as much as the sidecar itself.
    pub(super) fn load(path: &Path) -> Result<Self, LoadError> {
        // SAFETY: loading a library runs its initialisers. The operator chose it.
        let loaded = unsafe { Pkcs11::new(path) }.map_err(|e| LoadError::Open(e.to_string()))?;
        if loaded.C_GetFunctionList.is_err() {
            return Err(LoadError::NotPkcs11);
        }
        let mut list: *mut CK_FUNCTION_LIST = ptr::null_mut();
        // SAFETY: the symbol was found; PKCS#11 says that it takes a place for a pointer.
        let code = unsafe { loaded.C_GetFunctionList(&mut list) };
        if code != CKR_OK {
            return Err(LoadError::Refused(code));
        }
        if list.is_null() {
            return Err(LoadError::NotPkcs11);
        }
        // SAFETY: on CKR_OK the pointer is to a list that lives as long as the library,
        // and it is not null. It may not be aligned for us (CK_VERSION first, then
        // pointers), so it is read, not borrowed.
        let list = unsafe { list.read_unaligned() };
        Ok(Self { list, _loaded: loaded })
    }

    /// `C_Initialize`, with the module free to use the operating system's locks.
    pub(super) fn initialize(&self, module_args: &str) -> Result<(), Ckr> {
        let text = CString::new(module_args).unwrap_or_default();
        let reserved = match module_args {
            "" => ptr::null_mut(),
            _ => text.as_ptr() as *mut c_void,
        };
        let mut args = CK_C_INITIALIZE_ARGS {
            CreateMutex: None,
            DestroyMutex: None,
            LockMutex: None,
            UnlockMutex: None,
            flags: CKF_OS_LOCKING_OK,
            pReserved: reserved,
        };
        call!(self, C_Initialize(ptr::from_mut(&mut args).cast()))
    }

    pub(super) fn finalize(&self) -> Result<(), Ckr> {
        call!(self, C_Finalize(ptr::null_mut()))
    }

    /// Slots with a token in them.
    pub(super) fn slots(&self) -> Result<Vec<CK_SLOT_ID>, Ckr> {
        // A token may come between the two calls: ask for a few more than there were.
        let mut count: CK_ULONG = 0;
        call!(self, C_GetSlotList(CK_TRUE, ptr::null_mut(), &mut count))?;
        count = count.min(4096) + 16;
        let mut slots = vec![0; count as usize];
        call!(self, C_GetSlotList(CK_TRUE, slots.as_mut_ptr(), &mut count))?;
        slots.truncate(count as usize);
        Ok(slots)
    }

    pub(super) fn token_info(&self, slot: CK_SLOT_ID) -> Result<TokenInfo, Ckr> {
        let mut info = CK_TOKEN_INFO::default();
        call!(self, C_GetTokenInfo(slot, &mut info))?;
        let max = info.ulMaxSessionCount;
        let unlimited = max == CK_EFFECTIVELY_INFINITE || max == CK_UNAVAILABLE_INFORMATION;
        Ok(TokenInfo {
            label: padded(&info.label),
            serial: padded(&info.serialNumber),
            model: padded(&info.model),
            manufacturer: padded(&info.manufacturerID),
            flags: info.flags,
            max_sessions: (!unlimited).then_some(max),
        })
    }

    /// The flags of a mechanism; `None` if the token does not have it.
    pub(super) fn mechanism_flags(
        &self,
        slot: CK_SLOT_ID,
        mechanism: CK_MECHANISM_TYPE,
    ) -> Result<Option<CK_FLAGS>, Ckr> {
        let mut info = CK_MECHANISM_INFO::default();
        match call!(self, C_GetMechanismInfo(slot, mechanism, &mut info)) {
            Ok(()) => Ok(Some(info.flags)),
            Err(Ckr { code: CKR_MECHANISM_INVALID, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn open_session(
        &self,
        slot: CK_SLOT_ID,
        writable: bool,
    ) -> Result<CK_SESSION_HANDLE, Ckr> {
        let flags = CKF_SERIAL_SESSION | if writable { CKF_RW_SESSION } else { 0 };
        let mut session = 0;
        call!(self, C_OpenSession(slot, flags, ptr::null_mut(), None, &mut session))?;
        Ok(session)
    }

    pub(super) fn close_session(&self, session: CK_SESSION_HANDLE) -> Result<(), Ckr> {
        call!(self, C_CloseSession(session))
    }

    pub(super) fn close_all_sessions(&self, slot: CK_SLOT_ID) -> Result<(), Ckr> {
        call!(self, C_CloseAllSessions(slot))
    }

    /// Whether the user is logged in, as far as this session knows.
    pub(super) fn is_logged_in(&self, session: CK_SESSION_HANDLE) -> Result<bool, Ckr> {
        let mut info = CK_SESSION_INFO::default();
        call!(self, C_GetSessionInfo(session, &mut info))?;
        Ok(matches!(info.state, CKS_RO_USER_FUNCTIONS | CKS_RW_USER_FUNCTIONS))
    }

    /// Logs the user in. Without a PIN the token asks for it itself (a PIN pad).
    pub(super) fn login(
        &self,
        session: CK_SESSION_HANDLE,
        pin: Option<&Secret>,
    ) -> Result<(), Ckr> {
        let (pointer, len) = match pin {
            Some(pin) => (pin.expose().as_ptr().cast_mut(), pin.len() as CK_ULONG),
            None => (ptr::null_mut(), 0),
        };
        call!(self, C_Login(session, CKU_USER, pointer, len))
    }

    /// Handles of at most `max` objects that match the template.
    pub(super) fn find(
        &self,
        session: CK_SESSION_HANDLE,
        template: &[Attribute],
        max: usize,
    ) -> Result<Vec<CK_OBJECT_HANDLE>, Ckr> {
        let mut template = raw(template);
        let len = template.len() as CK_ULONG;
        call!(self, C_FindObjectsInit(session, template.as_mut_ptr(), len))?;
        let mut found = Vec::new();
        let outcome = loop {
            let mut batch = [0; 32];
            let room = batch.len().min(max - found.len()) as CK_ULONG;
            let mut count = 0;
            if let Err(error) =
                call!(self, C_FindObjects(session, batch.as_mut_ptr(), room, &mut count))
            {
                break Err(error);
            }
            let count = (count as usize).min(batch.len());
            found.extend_from_slice(&batch[..count]);
            if count == 0 || found.len() >= max {
                break Ok(());
            }
        };
        // Also after a failure, or the session stays in its search for ever.
        let ended = call!(self, C_FindObjectsFinal(session));
        outcome.and(ended)?;
        Ok(found)
    }

    /// The values of public attributes, in the order asked for; `None` where the object
    /// has no such attribute, an empty one, does not give it away, or has more than 4 KiB.
    ///
    /// Two calls for all of them: lengths, then values. SoftHSM answers a request for
    /// the value of an empty attribute with `CKR_GENERAL_ERROR`, so those are left out.
    pub(super) fn attributes(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        wanted: &[AttributeType],
    ) -> Result<Vec<Option<Vec<u8>>>, Ckr> {
        let empty = |kind: &AttributeType| CK_ATTRIBUTE {
            type_: (*kind).into(),
            pValue: ptr::null_mut(),
            ulValueLen: 0,
        };
        let mut lengths: Vec<_> = wanted.iter().map(empty).collect();
        self.get_attributes(session, object, &mut lengths)?;
        let has_value = |len| (1..=4096).contains(&len);
        let mut values: Vec<_> = lengths
            .iter()
            .map(|attribute| attribute.ulValueLen)
            .map(|len| has_value(len).then(|| vec![0u8; len as usize]))
            .collect();
        let mut present: Vec<_> = lengths
            .iter()
            .zip(&mut values)
            .filter_map(|(attribute, value)| {
                let value = value.as_mut()?;
                Some(CK_ATTRIBUTE { pValue: value.as_mut_ptr().cast(), ..*attribute })
            })
            .collect();
        self.get_attributes(session, object, &mut present)?;
        for (attribute, value) in
            present.iter().zip(values.iter_mut().filter(|value| value.is_some()))
        {
            match value {
                Some(bytes) if attribute.ulValueLen as usize <= bytes.len() => {
                    bytes.truncate(attribute.ulValueLen as usize);
                }
                // It cannot be told any more (CK_UNAVAILABLE_INFORMATION).
                _ => *value = None,
            }
        }
        Ok(values)
    }

    /// `C_GetAttributeValue`. That some attributes cannot be told is no error: their
    /// length says so.
    fn get_attributes(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        attributes: &mut [CK_ATTRIBUTE],
    ) -> Result<(), Ckr> {
        if attributes.is_empty() {
            // Modules need not take an empty list: p11-kit's client aborts the process.
            return Ok(());
        }
        let len = attributes.len() as CK_ULONG;
        match call!(self, C_GetAttributeValue(session, object, attributes.as_mut_ptr(), len)) {
            Err(Ckr {
                code: CKR_ATTRIBUTE_TYPE_INVALID | CKR_ATTRIBUTE_SENSITIVE | CKR_BUFFER_TOO_SMALL,
                ..
            }) => Ok(()),
            other => other,
        }
    }

    /// The value of a secret object, at most 128 bytes.
    pub(super) fn secret_value(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
    ) -> Result<Secret, Ckr> {
        let mut value = Secret::zeroed(128);
        let mut attribute = CK_ATTRIBUTE {
            type_: CKA_VALUE,
            pValue: value.expose_mut().as_mut_ptr().cast(),
            ulValueLen: 128,
        };
        call!(self, C_GetAttributeValue(session, object, &mut attribute, 1))?;
        value.truncate((attribute.ulValueLen as usize).min(128));
        Ok(value)
    }

    /// Creates an object with the template and, as `CKA_VALUE`, the secret, which is
    /// not copied on this side of the module.
    pub(super) fn create_secret(
        &self,
        session: CK_SESSION_HANDLE,
        template: &[Attribute],
        value: &Secret,
    ) -> Result<CK_OBJECT_HANDLE, Ckr> {
        let mut template = raw(template);
        template.push(CK_ATTRIBUTE {
            type_: CKA_VALUE,
            pValue: value.expose().as_ptr().cast_mut().cast(),
            ulValueLen: value.len() as CK_ULONG,
        });
        let len = template.len() as CK_ULONG;
        let mut object = 0;
        call!(self, C_CreateObject(session, template.as_mut_ptr(), len, &mut object))?;
        Ok(object)
    }

    /// Changes attributes of an object, all of them or none.
    pub(super) fn set_attributes(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        template: &[Attribute],
    ) -> Result<(), Ckr> {
        let mut template = raw(template);
        let len = template.len() as CK_ULONG;
        call!(self, C_SetAttributeValue(session, object, template.as_mut_ptr(), len))
    }

    pub(super) fn destroy(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
    ) -> Result<(), Ckr> {
        call!(self, C_DestroyObject(session, object))
    }

    /// `C_DecryptInit` and exactly one `C_Decrypt`, into a buffer of `room` bytes. Some
    /// tokens run the private-key operation even to tell the length.
    pub(super) fn decrypt(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: Mechanism,
        key: CK_OBJECT_HANDLE,
        ciphertext: &[u8],
        room: usize,
    ) -> Result<Secret, Ckr> {
        mechanism.with_raw(|raw| call!(self, C_DecryptInit(session, raw, key)))?;
        let mut plaintext = Secret::zeroed(room);
        let mut len = room as CK_ULONG;
        call!(
            self,
            C_Decrypt(
                session,
                ciphertext.as_ptr().cast_mut(),
                ciphertext.len() as CK_ULONG,
                plaintext.expose_mut().as_mut_ptr(),
                &mut len,
            )
        )?;
        plaintext.truncate((len as usize).min(room));
        Ok(plaintext)
    }

    /// `C_EncryptInit` and one `C_Encrypt`, into a buffer of `room` bytes.
    pub(super) fn encrypt(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: Mechanism,
        key: CK_OBJECT_HANDLE,
        plaintext: &Secret,
        room: usize,
    ) -> Result<Vec<u8>, Ckr> {
        mechanism.with_raw(|raw| call!(self, C_EncryptInit(session, raw, key)))?;
        let mut ciphertext = vec![0; room];
        let mut len = room as CK_ULONG;
        call!(
            self,
            C_Encrypt(
                session,
                plaintext.expose().as_ptr().cast_mut(),
                plaintext.len() as CK_ULONG,
                ciphertext.as_mut_ptr(),
                &mut len,
            )
        )?;
        ciphertext.truncate(len as usize);
        Ok(ciphertext)
    }

    pub(super) fn wrap_key(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: Mechanism,
        wrapping: CK_OBJECT_HANDLE,
        key: CK_OBJECT_HANDLE,
        room: usize,
    ) -> Result<Vec<u8>, Ckr> {
        let mut wrapped = vec![0; room];
        let mut len = room as CK_ULONG;
        mechanism.with_raw(|raw| {
            call!(self, C_WrapKey(session, raw, wrapping, key, wrapped.as_mut_ptr(), &mut len))
        })?;
        wrapped.truncate(len as usize);
        Ok(wrapped)
    }

    pub(super) fn unwrap_key(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: Mechanism,
        unwrapping: CK_OBJECT_HANDLE,
        wrapped: &[u8],
        template: &[Attribute],
    ) -> Result<CK_OBJECT_HANDLE, Ckr> {
        let mut template = raw(template);
        let mut object = 0;
        mechanism.with_raw(|raw| {
            call!(
                self,
                C_UnwrapKey(
                    session,
                    raw,
                    unwrapping,
                    wrapped.as_ptr().cast_mut(),
                    wrapped.len() as CK_ULONG,
                    template.as_mut_ptr(),
                    template.len() as CK_ULONG,
                    &mut object,
                )
            )
        })?;
        Ok(object)
    }

    pub(super) fn generate_key(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: Mechanism,
        template: &[Attribute],
    ) -> Result<CK_OBJECT_HANDLE, Ckr> {
        let mut template = raw(template);
        let len = template.len() as CK_ULONG;
        let mut object = 0;
        mechanism.with_raw(|raw| {
            call!(self, C_GenerateKey(session, raw, template.as_mut_ptr(), len, &mut object))
        })?;
        Ok(object)
    }

    /// Handles of the public and the private key, in this order.
    pub(super) fn generate_key_pair(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: Mechanism,
        public: &[Attribute],
        private: &[Attribute],
    ) -> Result<(CK_OBJECT_HANDLE, CK_OBJECT_HANDLE), Ckr> {
        let (mut public, mut private) = (raw(public), raw(private));
        let (mut public_key, mut private_key) = (0, 0);
        mechanism.with_raw(|raw| {
            call!(
                self,
                C_GenerateKeyPair(
                    session,
                    raw,
                    public.as_mut_ptr(),
                    public.len() as CK_ULONG,
                    private.as_mut_ptr(),
                    private.len() as CK_ULONG,
                    &mut public_key,
                    &mut private_key,
                )
            )
        })?;
        Ok((public_key, private_key))
    }

    pub(super) fn random(&self, session: CK_SESSION_HANDLE, len: usize) -> Result<Secret, Ckr> {
        let mut bytes = Secret::zeroed(len);
        let pointer = bytes.expose_mut().as_mut_ptr();
        call!(self, C_GenerateRandom(session, pointer, len as CK_ULONG))?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_library_and_a_library_that_is_no_module() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("text.so");
        std::fs::write(&text, "hello").unwrap();
        assert!(matches!(Library::load(&text), Err(LoadError::Open(_))));
        assert!(matches!(Library::load(&dir.path().join("none.so")), Err(LoadError::Open(_))));
        assert!(matches!(Library::load(Path::new("libm.so.6")), Err(LoadError::NotPkcs11)));
    }
}
