"""The fake vault, as Azure's Python SDK is pointed at it, and what its checks share.

Challenge and TLS verification are on. Reads the FAKE_ variables that `keyward-fake-vault`
prints; KIND says what it fakes.
"""

import logging
import os
import socket

# Python does not know that *.localhost is this machine (RFC 6761, 6.3).
_getaddrinfo = socket.getaddrinfo
socket.getaddrinfo = lambda host, *args, **kwargs: _getaddrinfo(
    "127.0.0.1" if str(host).endswith(".localhost") else host, *args, **kwargs
)

from azure.identity import ClientSecretCredential  # noqa: E402
from azure.keyvault.keys import KeyClient  # noqa: E402
from azure.keyvault.keys.crypto import CryptographyClient  # noqa: E402

FAKE = {name[5:]: value for name, value in os.environ.items() if name.startswith("FAKE_")}
HSM = os.environ["KIND"] == "managed-hsm"
TLS = {"connection_verify": FAKE["CA"]}
ENTRA = {"authority": FAKE["AUTHORITY"], "disable_instance_discovery": True, **TLS}

# It warns of every operation that it has the service do because it cannot do it itself.
logging.getLogger("azure").setLevel(logging.ERROR)
checks = 0


def check(condition, what):
    global checks
    assert condition, what
    checks += 1


def passed(who):
    print(f"{who} and the fake {os.environ['KIND']}: {checks} checks passed")


def secret_of(client_id, secret=FAKE["CLIENT_SECRET"]):
    return ClientSecretCredential(FAKE["TENANT"], client_id, secret, **ENTRA)


CREDENTIAL = secret_of(FAKE["CLIENT_ID"])
keys = KeyClient(FAKE["URL"], CREDENTIAL, **TLS)


def crypto(key, credential=CREDENTIAL):
    return CryptographyClient(key, credential, **TLS)


def remote(key):
    """A client that has the service do it. For a symmetric key that it knows no bytes of,
    the SDK (4.11.3) makes some up and wraps with those, for nobody to unwrap; unless the
    key seems to permit nothing.
    """
    key = keys.get_key(key.name, key.properties.version)
    key.key.key_ops = []
    return crypto(key)
