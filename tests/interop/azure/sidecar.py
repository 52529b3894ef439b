"""Runs a command beside a sidecar whose KEKs are keys of the fake vault.

    sidecar.py COMMAND...

Azure's SDK makes a key of every type and size; the sidecar serves each under every
algorithm that it does, RSA keys also with the service to wrap. COMMAND runs when all are
proven, with KEYWARD_SOCKET and KEKS in its environment: a JSON list of the name of each
KEK, its key, its algorithm, and what Azure calls that. KEYWARD is the binary. Exits as
COMMAND does.

Invariant: the sidecar ends with the command.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from fake import FAKE, HSM, keys

READY_WITHIN = 60
AZURE = {"A256KWP": "CKM_AES_KEY_WRAP_PAD"}


def made():
    """The keys, with what each can do."""
    for bits in (2048, 3072, 4096):
        for hardware in (True,) if HSM else (False, True):
            name = f"keyward-rsa-{bits}-{'hsm' if hardware else 'software'}"
            yield keys.create_rsa_key(name, size=bits, hardware_protected=hardware), ("RSA-OAEP", "RSA-OAEP-256")
    if HSM:
        for bits, algorithms in ((128, ["A128KW"]), (192, ["A192KW"]), (256, ["A256KW", "A256KWP"])):
            yield keys.create_oct_key(f"keyward-aes-{bits}", size=bits, hardware_protected=True), algorithms


def served():
    for key, algorithms in made():
        for algorithm in algorithms:
            # AES keys never leave the service, so it wraps with them anyway.
            for wrap in ("local", "service") if algorithm.startswith("RSA") else ("service",):
                yield {
                    "name": f"{key.name}.{algorithm}.{wrap}",
                    "backend": wrap,
                    "key": key.name,
                    "kid": key.id,
                    "algorithm": algorithm,
                    "azure": AZURE.get(algorithm, algorithm),
                }


def config(directory, keks):
    secret = directory / "secret"
    secret.write_text(FAKE["CLIENT_SECRET"])
    secret.chmod(0o600)
    identity = (
        f'{{ kind = "secret", tenant_id = "{FAKE["TENANT"]}", client_id = "{FAKE["CLIENT_ID"]}", '
        f'secret_file = "{secret}" }}'
    )
    text = f'[server]\nsocket = "{directory / "k.sock"}"\n'
    for wrap in ("local", "service"):
        text += (
            f'[backend.{wrap}]\ntype = "{"managed-hsm" if HSM else "key-vault"}"\nvault = "{FAKE["URL"]}"\n'
            f'authority = "{FAKE["AUTHORITY"]}"\nca = "{FAKE["CA"]}"\nidentity = {identity}\nwrap = "{wrap}"\n'
        )
    for kek in keks:
        text += "[[kek]]\n" + "".join(
            f'{field} = "{kek[field]}"\n' for field in ("name", "backend", "key", "algorithm")
        )
    may = '["wrap", "unwrap", "describe"]'
    text += f'[[policy]]\nwho = ["uid:{os.geteuid()}"]\nmay = {may}\nkek = ["*"]\n'
    file = directory / "keyward.toml"
    file.write_text(text)
    return file


def is_ready(keks):
    shown = subprocess.run([os.environ["KEYWARD"], "kek", "list", "--json"], capture_output=True)
    found = json.loads(shown.stdout)["keks"] if shown.returncode == 0 else []
    return len(found) == len(keks) and all(kek["usable"] for kek in found)


def main():
    keks = list(served())
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        os.environ["KEYWARD_SOCKET"] = str(directory / "k.sock")
        command = [os.environ["KEYWARD"], "serve", "--config", config(directory, keks)]
        with open(directory / "log", "wb") as log:
            sidecar = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        try:
            until = time.monotonic() + READY_WITHIN
            while not is_ready(keks):
                if sidecar.poll() is not None or time.monotonic() > until:
                    sys.exit(f"the sidecar does not get ready:\n{(directory / 'log').read_text()}")
                time.sleep(0.1)
            code = subprocess.call(sys.argv[1:], env={**os.environ, "KEKS": json.dumps(keks)})
            if code != 0:
                print((directory / "log").read_text(), file=sys.stderr)
        finally:
            sidecar.terminate()
            sidecar.wait()
    sys.exit(code)


main()
