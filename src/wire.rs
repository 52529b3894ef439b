//! The generated messages and stubs of `proto/keyward/v1/`, and what the generator
//! cannot know: which of them carry a plaintext DEK. Those print lengths only and
//! wipe themselves when dropped.

#![allow(missing_docs, unreachable_pub)] // the proto file is the manual
#![allow(clippy::all, clippy::pedantic)] // generated

use std::{fmt, marker::PhantomData};

use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;
use zeroize::Zeroize;

tonic::include_proto!("keyward.v1");

/// What every call is encoded and decoded with: tonic's codec, with buffers that fit our
/// messages. Its own are 8 KiB each, for each call, and what is freed is wiped.
#[derive(Debug)]
pub struct SmallCodec<T, U>(PhantomData<(T, U)>);

/// Room for a wrapped DEK of RSA-4096 and its context's usual length; it grows.
const BUFFER_BYTES: usize = 1024;
/// Answers of a stream that are sent together, as in tonic.
const SEND_TOGETHER_BYTES: usize = 32 * 1024;

impl<T, U> Default for SmallCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallCodec<T, U>
where
    T: prost::Message + Send + 'static,
    U: prost::Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER_BYTES, SEND_TOGETHER_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER_BYTES, SEND_TOGETHER_BYTES))
    }
}

/// The compiled descriptors, for reflection.
pub const DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/keyward.v1.descriptors.bin"));

/// The metadata key with which a stream says what its items are for, and the one word that it
/// may say: each is waited for, as a call is.
pub const CLASS: &str = "keyward-class";
/// See [`CLASS`].
pub const FOREGROUND: &str = "foreground";

/// The domain of every `google.rpc.ErrorInfo`.
pub const ERROR_DOMAIN: &str = "keyward";

/// Longest serialized [`WrappedDek`] that is read.
const WRAPPED_MAX_BYTES: usize = 4096;

impl WrappedDek {
    /// The serialized form, which a storage node keeps.
    pub fn to_bytes(&self) -> Vec<u8> {
        prost::Message::encode_to_vec(self)
    }

    /// Reads the serialized form; `None` if it is not one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= WRAPPED_MAX_BYTES).then(|| prost::Message::decode(bytes).ok()).flatten()
    }
}

impl Drop for WrapRequest {
    fn drop(&mut self) {
        self.dek.zeroize();
    }
}

impl Drop for UnwrapResponse {
    fn drop(&mut self) {
        self.dek.zeroize();
    }
}

impl Drop for GenerateDekResponse {
    fn drop(&mut self) {
        self.dek.zeroize();
    }
}

impl Drop for UnwrapStreamResponse {
    fn drop(&mut self) {
        if let Some(unwrap_stream_response::Outcome::Dek(dek)) = &mut self.outcome {
            dek.zeroize();
        }
    }
}

impl fmt::Debug for WrapRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kek, dek, context, sealed } = self;
        write!(
            f,
            "WrapRequest({kek:?}, dek of {} bytes, context of {} bytes, sealed: {})",
            dek.len(),
            context.len(),
            sealed.is_some()
        )
    }
}

impl fmt::Debug for UnwrapResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnwrapResponse(dek of {} bytes)", self.dek.len())
    }
}

impl fmt::Debug for GenerateDekResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GenerateDekResponse(dek of {} bytes, {:?})", self.dek.len(), self.wrapped)
    }
}

impl fmt::Debug for UnwrapStreamResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnwrapStreamResponse(id {}, {:?})", self.id, self.outcome)
    }
}

impl fmt::Debug for unwrap_stream_response::Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dek(dek) => write!(f, "dek of {} bytes", dek.len()),
            Self::Sealed(sealed) => fmt::Debug::fmt(sealed, f),
            Self::Error(error) => fmt::Debug::fmt(error, f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_dek_goes_both_ways() {
        let wrapped =
            WrappedDek { kek: "a".into(), ciphertext: vec![7; 512], ..Default::default() };
        assert_eq!(WrappedDek::from_bytes(&wrapped.to_bytes()), Some(wrapped));
        assert_eq!(WrappedDek::from_bytes(&[0xff; 16]), None);
        assert_eq!(WrappedDek::from_bytes(&[0; WRAPPED_MAX_BYTES + 1]), None);
    }

    #[test]
    fn no_message_prints_a_dek() {
        let dek = b"0123456789abcdef".to_vec();
        let printed = [
            format!(
                "{:?}",
                WrapRequest { kek: "a".into(), dek: dek.clone(), context: vec![], sealed: None }
            ),
            format!("{:?}", UnwrapResponse { dek: dek.clone(), cache: 1, sealed: None }),
            format!("{:?}", GenerateDekResponse { dek: dek.clone(), wrapped: None, sealed: None }),
            format!(
                "{:?}",
                UnwrapStreamResponse {
                    id: 1,
                    outcome: Some(unwrap_stream_response::Outcome::Dek(dek.clone())),
                    ..Default::default()
                }
            ),
        ];
        let as_list = format!("{dek:?}");
        for text in printed {
            assert!(text.contains("16 bytes"), "{text}");
            assert!(!text.contains(as_list.trim_matches(['[', ']'])), "{text}");
        }
    }
}
