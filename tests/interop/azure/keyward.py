"""Azure's Python SDK and Keyward on the same keys, beside a sidecar that sidecar.py started.

What the SDK wraps, in software and in the service, Keyward unwraps; what Keyward wraps,
the SDK has the service unwrap. Both see the payload that src/envelope.rs describes, which
is written down here a second time. Exits with an error at the first thing that is not as it
should be.
"""

import base64
import hashlib
import json
import os
import subprocess
import tempfile

from fake import check, crypto, keys, passed, remote

CONTEXT = b"tenant 7, volume 3"


def payload(dek, context):
    """0x01, SHA-256 of the context, length of the DEK, the DEK, zeros to 104 bytes."""
    if not context:
        return dek
    return (b"\x01" + hashlib.sha256(context).digest() + bytes([len(dek)]) + dek).ljust(104, b"\0")


def cases(algorithm):
    """DEKs with their contexts: of the least and the greatest length, and where padding
    takes them, of lengths that are no multiple of 8. Their ends are zeros, which whoever
    takes those for padding would spoil.
    """
    lengths = (16, 32, 64) if algorithm != "A256KWP" else (16, 17, 33, 64)
    for context in (b"", CONTEXT):
        for length in lengths:
            yield os.urandom(length - 1) + b"\0", context


class Keyward:
    """The command line, which speaks with the sidecar."""

    def __init__(self, kek):
        self.kek = kek["name"]
        self.algorithm = kek["algorithm"]
        self.version = kek["kid"].rsplit("/", 1)[1]

    def run(self, context, command, data):
        with tempfile.NamedTemporaryFile() as file:
            file.write(context)
            file.flush()
            bound = ["--context-file", file.name] if context else []
            return subprocess.run(
                [os.environ["KEYWARD"], "--json", *command, *bound], input=data, capture_output=True
            )

    def wrap(self, dek, context):
        done = self.run(context, ["wrap", "--kek", self.kek], dek)
        check(done.returncode == 0, f"{self.kek} wraps: {done.stderr}")
        wrapped = json.loads(done.stdout)
        check(wrapped["version"] == self.version, f"{self.kek} wraps with {wrapped['version']}")
        return base64.b64decode(wrapped["ciphertext"])

    def unwrap(self, ciphertext, context):
        """The DEK, or the reason for which there is none."""
        raw = ["--raw", "--kek", self.kek, "--version", self.version, "--algorithm", self.algorithm]
        done = self.run(context, ["unwrap", *raw], ciphertext)
        if done.returncode == 0:
            return base64.b64decode(json.loads(done.stdout)["dek"])
        return json.loads(done.stderr)["reason"]


for kek in json.loads(os.environ["KEKS"]):
    ours = Keyward(kek)
    key = keys.get_key(kek["key"], ours.version)
    check(key.id == kek["kid"], key.id)
    service = remote(key)
    # The SDK knows the public half of RSA keys, and wraps with it itself.
    wrappers = [crypto(key), service] if kek["algorithm"].startswith("RSA") else [service]
    for dek, context in cases(kek["algorithm"]):
        what = f"{kek['name']}, a DEK of {len(dek)} bytes, context {context}"
        sealed = payload(dek, context)
        for wrapper in wrappers:
            wrapped = wrapper.wrap_key(kek["azure"], sealed).encrypted_key
            check(ours.unwrap(wrapped, context) == dek, f"{what}: wrapped by the SDK")
        other = b"" if context else CONTEXT
        check(ours.unwrap(wrapped, other) == "CIPHERTEXT_INVALID", f"{what}: another context")
        wrapped = ours.wrap(dek, context)
        opened = service.unwrap_key(kek["azure"], wrapped).key
        check(opened == sealed, f"{what}: wrapped by Keyward")
passed("Keyward, the Python SDK")
