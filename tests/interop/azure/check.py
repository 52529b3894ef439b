"""Azure's Python SDK against the fake vault, which must look to it like the service.

Wraps with the SDK and unwraps in the vault and back, for every algorithm and size, and
goes through the rest of what Keyward or an officer of keys asks for. Exits with an error
at the first thing that is not as it should be.
"""

import base64
import json
import os

from fake import ENTRA, FAKE, HSM, TLS, check, crypto, keys, passed, remote, secret_of

from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.identity import (
    CertificateCredential,
    ManagedIdentityCredential,
    WorkloadIdentityCredential,
)
from azure.keyvault.keys import (
    JsonWebKey,
    KeyClient,
    KeyRotationLifetimeAction,
    KeyRotationPolicy,
)
from azure.keyvault.keys.crypto import CryptographyClient, KeyWrapAlgorithm
from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

DEK = bytes(range(32))
BLIND = secret_of(FAKE["BLIND_CLIENT_ID"])


def both_ways(algorithm, one, other, what):
    """What each of two clients wraps, each unwraps."""
    for wrapper in (one, other):
        wrapped = wrapper.wrap_key(algorithm, DEK).encrypted_key
        for unwrapper in (one, other):
            opened = unwrapper.unwrap_key(algorithm, wrapped).key
            check(opened == DEK, f"{what}, {algorithm}")


def integer(number):
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def imported_rsa(bits, hardware):
    """A key made here: its holder, the vault, and a client that knows its private half."""
    key = rsa.generate_private_key(65537, bits)
    numbers = key.private_numbers()
    public = numbers.public_numbers
    jwk = JsonWebKey(
        kty="RSA",
        key_ops=["wrapKey", "unwrapKey", "encrypt", "decrypt"],
        n=integer(public.n),
        e=integer(public.e),
        d=integer(numbers.d),
        p=integer(numbers.p),
        q=integer(numbers.q),
        dp=integer(numbers.dmp1),
        dq=integer(numbers.dmq1),
        qi=integer(numbers.iqmp),
    )
    name = f"imported-{bits}-{'hsm' if hardware else 'software'}"
    stored = keys.import_key(name, jwk, hardware_protected=hardware)
    jwk.kid = stored.id
    return stored, CryptographyClient.from_jwk(jwk)


def check_rsa():
    algorithms = [KeyWrapAlgorithm.rsa_oaep, KeyWrapAlgorithm.rsa_oaep_256, KeyWrapAlgorithm.rsa1_5]
    for bits in (2048, 3072, 4096):
        for hardware in (True,) if HSM else (False, True):
            made = keys.create_rsa_key(f"made-{bits}", size=bits, hardware_protected=hardware)
            check(len(made.key.n) == bits // 8, "the size of the key")
            check(made.key_type == ("RSA-HSM" if hardware else "RSA"), made.key_type)
            client = crypto(made)
            for algorithm in algorithms:
                both_ways(algorithm, client, client, made.id)
            stored, local = imported_rsa(bits, hardware)
            for algorithm in algorithms:
                both_ways(algorithm, crypto(stored), local, stored.id)
                if not HSM:
                    # Who may not GET the key has the service wrap, too.
                    both_ways(algorithm, crypto(stored.id, BLIND), local, stored.id)


def check_aes():
    for bits in (128, 192, 256):
        made = keys.create_oct_key(f"aes-{bits}", size=bits, hardware_protected=True)
        check(made.key_type == "oct-HSM", made.key_type)
        material = os.urandom(bits // 8)
        jwk = JsonWebKey(kty="oct", k=material, key_ops=["wrapKey", "unwrapKey"])
        local = CryptographyClient.from_jwk(JsonWebKey(kty="oct-HSM", k=material, kid="local",
                                                       key_ops=["wrapKey", "unwrapKey"]))
        stored = keys.import_key(f"imported-aes-{bits}", jwk, hardware_protected=True)
        by_size = KeyWrapAlgorithm(f"A{bits}KW")
        both_ways(by_size, remote(made), remote(made), made.id)
        both_ways(by_size, remote(stored), local, stored.id)
        # The SDK has no word for these two, but passes on what it is given.
        for algorithm, wrap in (
            ("CKM_AES_KEY_WRAP", keywrap.aes_key_wrap),
            ("CKM_AES_KEY_WRAP_PAD", keywrap.aes_key_wrap_with_padding),
        ):
            client = crypto(stored)
            both_ways(algorithm, client, crypto(stored.id), stored.id)
            check(client.wrap_key(algorithm, DEK).encrypted_key == wrap(material, DEK), algorithm)
        odd = client.wrap_key("CKM_AES_KEY_WRAP_PAD", b"odd").encrypted_key
        check(client.unwrap_key("CKM_AES_KEY_WRAP_PAD", odd).key == b"odd", "padding")


def check_byok():
    """A key of the customer's own, packed as the specification says."""
    kek = keys.create_rsa_key("kek", size=3072, hardware_protected=True, key_operations=["import"])
    public = rsa.RSAPublicNumbers(
        int.from_bytes(kek.key.e, "big"), int.from_bytes(kek.key.n, "big")).public_key()
    target = rsa.generate_private_key(65537, 2048)
    pkcs8 = target.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    aes = os.urandom(32)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
    wrapped = public.encrypt(aes, oaep) + keywrap.aes_key_wrap_with_padding(aes, pkcs8)
    package = json.dumps({
        "schema_version": "1.0.0",
        "header": {"kid": kek.id, "alg": "dir", "enc": "CKM_RSA_AES_KEY_WRAP"},
        "ciphertext": base64.urlsafe_b64encode(wrapped).decode().rstrip("="),
        "generator": "keyward interop",
    })
    jwk = JsonWebKey(kty="RSA-HSM", key_ops=["wrapKey", "unwrapKey"], t=package.encode())
    stored = keys.import_key("byok", jwk, hardware_protected=True)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    ciphertext = target.public_key().encrypt(DEK, oaep)
    opened = crypto(stored).unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, ciphertext).key
    check(opened == DEK, "what was wrapped for the customer's key")


def refused(error, status, inner=None):
    """Whether a call raised this, with this inner code."""
    check(error.status_code == status, f"{error.status_code} is not {status}: {error}")
    if inner:
        check(error.error.innererror["code"] == inner, f"{error.error.innererror}")


def raised(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError("nothing was raised")


def check_officer():
    for _ in range(30):
        latest = keys.create_oct_key("many", size=128, hardware_protected=True)
    versions = list(keys.list_properties_of_key_versions("many"))
    check(len({version.version for version in versions}) == 30, "every version, over pages")
    check(keys.get_key("many").id == latest.id, "the latest")
    check("many" in [key.name for key in keys.list_properties_of_keys()], "the list")

    disabled = keys.update_key_properties("many", enabled=False)
    check(disabled.id == latest.id and not disabled.properties.enabled, "disabled")
    wrap = lambda: crypto(latest.id).unwrap_key(KeyWrapAlgorithm.aes_128, bytes(40))  # noqa: E731
    refused(raised(HttpResponseError, wrap), 403, "KeyDisabled")
    keys.update_key_properties("many", enabled=True)
    refused(raised(HttpResponseError, wrap), 400)

    keys.update_key_rotation_policy(
        "many",
        KeyRotationPolicy(),
        lifetime_actions=[KeyRotationLifetimeAction("rotate", time_after_create="P90D")],
        expires_in="P1Y",
    )
    policy = keys.get_key_rotation_policy("many")
    check(policy.expires_in == "P1Y", policy.expires_in)
    check(str(policy.lifetime_actions[0].action).lower().endswith("rotate"), "the action")
    rotated = keys.rotate_key("many")
    check(rotated.id != latest.id and rotated.properties.expires_on, "rotated")

    backup = keys.backup_key("many")
    raised(ResourceExistsError, lambda: keys.restore_key_backup(backup))
    deleted = keys.begin_delete_key("many").result()
    check(deleted.recovery_id.endswith("/deletedkeys/many"), deleted.recovery_id)
    raised(ResourceNotFoundError, lambda: keys.get_key("many"))
    taken = raised(ResourceExistsError, lambda: keys.create_oct_key("many", size=128, hardware_protected=True))
    refused(taken, 409, "ObjectIsDeletedButRecoverable")
    check([key.name for key in keys.list_deleted_keys()] == ["many"], "the deleted ones")
    check(keys.begin_recover_deleted_key("many").result().id == rotated.id, "recovered")
    keys.begin_delete_key("many").wait()
    keys.purge_deleted_key("many")
    check(keys.restore_key_backup(backup).id == rotated.id, "restored")
    if HSM:
        check(len(keys.get_random_bytes(32)) == 32, "random bytes")


def check_identities():
    name = "of-identities"
    keys.create_oct_key(name, size=256, hardware_protected=True)
    works = lambda credential: KeyClient(FAKE["URL"], credential, **TLS).get_key(name)  # noqa: E731
    works(CertificateCredential(
        FAKE["TENANT"], FAKE["CLIENT_ID"], certificate_path=FAKE["CERTIFICATE"], **ENTRA))
    works(WorkloadIdentityCredential(
        tenant_id=FAKE["TENANT"], client_id=FAKE["CLIENT_ID"],
        token_file_path=FAKE["FEDERATED_TOKEN_FILE"], **ENTRA))
    os.environ["AZURE_POD_IDENTITY_AUTHORITY_HOST"] = FAKE["IMDS"]
    works(ManagedIdentityCredential(client_id=FAKE["IDENTITY_CLIENT_ID"]))
    os.environ["IDENTITY_ENDPOINT"] = FAKE["APP_SERVICE"]
    os.environ["IDENTITY_HEADER"] = FAKE["APP_SERVICE_HEADER"]
    works(ManagedIdentityCredential(client_id=FAKE["IDENTITY_CLIENT_ID"]))
    wrong = raised(ClientAuthenticationError, lambda: works(secret_of(FAKE["CLIENT_ID"], "wrong")))
    check("AADSTS7000215" in str(wrong), wrong)
    forbidden = raised(HttpResponseError, lambda: works(BLIND))
    refused(forbidden, 403, "ForbiddenByRbac" if HSM else "ForbiddenByPolicy")


check_rsa()
check_aes()
check_byok()
check_officer()
check_identities()
passed("the Python SDK")
