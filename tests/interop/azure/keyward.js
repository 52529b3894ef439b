// Azure's JavaScript SDK and Keyward on the same keys, beside a sidecar that sidecar.py
// started.
//
// What the SDK wraps Keyward unwraps, and what Keyward wraps the SDK has the service
// unwrap. Both see the payload that src/envelope.rs describes, which is written down here
// once more. Exits with an error at the first thing that is not as it should be.
"use strict";

const { execFileSync } = require("node:child_process");
const crypto = require("node:crypto");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");

const { check, credential, keys, passed } = require("./fake.js");
const { CryptographyClient } = require("@azure/keyvault-keys");

const CONTEXT = Buffer.from("tenant 7, volume 3");
const contextFile = path.join(fs.mkdtempSync(path.join(os.tmpdir(), "keyward-")), "context");
fs.writeFileSync(contextFile, CONTEXT);

// 0x01, SHA-256 of the context, length of the DEK, the DEK, zeros to 104 bytes.
function payload(dek, bound) {
  if (!bound) return dek;
  const hash = crypto.createHash("sha256").update(CONTEXT).digest();
  return Buffer.concat([Buffer.from([1]), hash, Buffer.from([dek.length]), dek, Buffer.alloc(104)], 104);
}

function keyward(command, bound, input) {
  const context = bound ? ["--context-file", contextFile] : [];
  const args = ["--json", ...command, ...context];
  return JSON.parse(execFileSync(process.env.KEYWARD, args, { input, encoding: "utf8" }));
}

async function agree(kek) {
  const version = kek.kid.split("/").pop();
  const key = await keys.getKey(kek.key, { version });
  check(key.id === kek.kid, key.id);
  const client = new CryptographyClient(key, credential);
  const raw = ["--raw", "--kek", kek.name, "--version", version, "--algorithm", kek.algorithm];
  const lengths = kek.algorithm === "A256KWP" ? [16, 17, 33, 64] : [16, 32, 64];
  for (const bound of [false, true]) {
    for (const length of lengths) {
      const what = `${kek.name}, a DEK of ${length} bytes, ${bound ? "bound" : "bare"}`;
      // Its end is a zero, which whoever takes that for padding would spoil.
      const dek = Buffer.concat([crypto.randomBytes(length - 1), Buffer.alloc(1)]);
      const { result } = await client.wrapKey(kek.azure, payload(dek, bound));
      const unwrapped = keyward(["unwrap", ...raw], bound, Buffer.from(result));
      check(dek.equals(Buffer.from(unwrapped.dek, "base64")), `${what}: wrapped by the SDK`);
      const wrapped = keyward(["wrap", "--kek", kek.name], bound, dek);
      check(wrapped.version === version, `${what}: wrapped with ${wrapped.version}`);
      const opened = await client.unwrapKey(kek.azure, Buffer.from(wrapped.ciphertext, "base64"));
      check(payload(dek, bound).equals(Buffer.from(opened.result)), `${what}: wrapped by Keyward`);
    }
  }
}

async function main() {
  for (const kek of JSON.parse(process.env.KEKS)) await agree(kek);
  passed("Keyward, the JavaScript SDK");
}

main()
  .catch((error) => {
    console.error(error);
    process.exitCode = 1;
  })
  .finally(() => fs.rmSync(path.dirname(contextFile), { recursive: true }));
