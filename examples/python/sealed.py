"""Sealed delivery, as the head of keywrap.proto describes it: DEKs go over the connection
sealed under keys that this process and the sidecar alone have.

HPKE (RFC 9180) is that of pyhpke, AES-GCM that of cryptography: nothing here is Keyward's.
Refuses: to go on with anything that does not open. Invariant: no number is used twice.
"""

import itertools

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pyhpke import AEADId, CipherSuite, KDFId, KEMId, KEMKey

SUITE = CipherSuite.new(
    KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.AES256_GCM
)
INFO = b"keyward.v1 sealed delivery"
KEY_BYTES = 32


def nonce(number):
    return bytes(4) + number.to_bytes(8, "big")


class Session:
    """A session with a sidecar. It ends after some minutes, or messages: then open another."""

    def __init__(self, keyward, messages, timeout):
        self._messages = messages
        private = X25519PrivateKey.generate()
        public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        request = messages.OpenSessionRequest(public_key=public)
        opened = keyward.OpenSession(request, timeout=timeout)
        context = SUITE.create_recipient_context(
            opened.public_key, KEMKey.from_pyca_cryptography_key(private), info=INFO
        )
        keys = context.open(opened.sealed_keys, aad=opened.session)
        self.id = opened.session
        self._of_sidecar = AESGCM(keys[:KEY_BYTES])
        self._of_client = AESGCM(keys[KEY_BYTES:])
        self._numbers = itertools.count()

    def _aad(self, subject, context):
        return self.id + len(subject).to_bytes(4, "big") + subject + context

    def seal(self, kek, dek, context):
        """A DEK for the sidecar to wrap under `kek`."""
        number = next(self._numbers)
        ciphertext = self._of_client.encrypt(nonce(number), dek, self._aad(kek.encode(), context))
        return self._messages.SealedDek(session=self.id, number=number, ciphertext=ciphertext)

    def open(self, sealed, wrapped, context):
        """A DEK that the sidecar sealed; `wrapped` is its wrapped form."""
        if sealed.session != self.id:
            raise ValueError("a DEK of another session")
        aad = self._aad(wrapped.ciphertext, context)
        return self._of_sidecar.decrypt(nonce(sealed.number), sealed.ciphertext, aad)
