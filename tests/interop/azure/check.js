// Azure's JavaScript SDK against the fake vault, which must look to it like the service.
//
// What the SDK wraps the vault unwraps, and what the vault wraps Node's own crypto unwraps,
// for every algorithm and size. Exits with an error at the first thing that is not as it
// should be.
"use strict";

const crypto = require("node:crypto");

const { check, credential, hsm, keys, passed } = require("./fake.js");
const { CryptographyClient } = require("@azure/keyvault-keys");

const dek = Buffer.from(Array.from({ length: 32 }, (_, n) => n));

async function opens(client, algorithm, wrapped, what) {
  const { result } = await client.unwrapKey(algorithm, wrapped);
  check(dek.equals(Buffer.from(result)), `${what}, ${algorithm}`);
}

const PADDING = {
  "RSA-OAEP": { padding: crypto.constants.RSA_PKCS1_OAEP_PADDING, oaepHash: "sha1" },
  "RSA-OAEP-256": { padding: crypto.constants.RSA_PKCS1_OAEP_PADDING, oaepHash: "sha256" },
};

async function rsa(bits, hardware) {
  const made = await keys.createRsaKey(`js-made-${bits}`, { keySize: bits, hsm: hardware });
  check(made.keyType === (hardware ? "RSA-HSM" : "RSA"), made.keyType);
  for (const algorithm of [...Object.keys(PADDING), "RSA1_5"]) {
    const client = new CryptographyClient(made, credential);
    const { result, keyID } = await client.wrapKey(algorithm, dek);
    check(keyID === made.id, keyID);
    await opens(client, algorithm, result, made.id);
  }

  const pair = crypto.generateKeyPairSync("rsa", { modulusLength: bits });
  const part = (name) => Buffer.from(pair.privateKey.export({ format: "jwk" })[name], "base64url");
  const jwk = { kty: "RSA", keyOps: ["wrapKey", "unwrapKey", "encrypt"] };
  for (const name of ["n", "e", "d", "p", "q", "dp", "dq", "qi"]) jwk[name] = part(name);
  const stored = await keys.importKey(`js-imported-${bits}`, jwk, { hardwareProtected: hardware });
  const client = new CryptographyClient(stored.id, credential);
  for (const [algorithm, options] of Object.entries(PADDING)) {
    const { result } = await client.wrapKey(algorithm, dek);
    const opened = crypto.privateDecrypt({ key: pair.privateKey, ...options }, Buffer.from(result));
    check(dek.equals(opened), `${algorithm} of ${stored.id}, opened by Node`);
    const wrapped = crypto.publicEncrypt({ key: pair.publicKey, ...options }, dek);
    await opens(client, algorithm, wrapped, stored.id);
  }
}

async function aes(bits) {
  const made = await keys.createOctKey(`js-aes-${bits}`, { keySize: bits, hsm: true });
  const material = crypto.randomBytes(bits / 8);
  const jwk = { kty: "oct", k: material, keyOps: ["wrapKey", "unwrapKey"] };
  const stored = await keys.importKey(`js-imported-aes-${bits}`, jwk, { hardwareProtected: true });
  for (const [algorithm, cipher, iv] of [
    [`A${bits}KW`, `id-aes${bits}-wrap`, "a6a6a6a6a6a6a6a6"],
    ["CKM_AES_KEY_WRAP", `id-aes${bits}-wrap`, "a6a6a6a6a6a6a6a6"],
    ["CKM_AES_KEY_WRAP_PAD", `id-aes${bits}-wrap-pad`, "a65959a6"],
  ]) {
    for (const key of [made, stored]) {
      const client = new CryptographyClient(key, credential);
      const { result, keyID } = await client.wrapKey(algorithm, dek);
      check(keyID === key.id, keyID);
      await opens(client, algorithm, result, key.id);
      if (key === stored) {
        const node = crypto.createCipheriv(cipher, material, Buffer.from(iv, "hex"));
        const wrapped = Buffer.concat([node.update(dek), node.final()]);
        check(wrapped.equals(Buffer.from(result)), `${algorithm} ${bits}, wrapped by Node`);
      }
    }
  }
}

async function fails(promise, status, code) {
  const error = await promise.then(() => undefined, (error) => error);
  check(error !== undefined, "nothing was thrown");
  check(error.statusCode === status && error.code === code, `${error.statusCode} ${error.code}`);
}

async function officer() {
  let latest;
  for (let n = 0; n < 30; n += 1) latest = await keys.createOctKey("js-many", { keySize: 128, hsm: true });
  const versions = new Set();
  for await (const version of keys.listPropertiesOfKeyVersions("js-many")) versions.add(version.version);
  check(versions.size === 30, "every version, over pages");
  check((await keys.getKey("js-many")).id === latest.id, "the latest");
  await keys.updateKeyProperties("js-many", latest.properties.version, { enabled: false });
  const unwrap = () => new CryptographyClient(latest.id, credential).unwrapKey("A128KW", Buffer.alloc(40));
  await fails(unwrap(), 403, "Forbidden");
  await keys.updateKeyProperties("js-many", latest.properties.version, { enabled: true });
  await fails(unwrap(), 400, "BadParameter");
  await keys.updateKeyRotationPolicy("js-many", {
    lifetimeActions: [{ action: "Rotate", timeAfterCreate: "P90D" }],
    expiresIn: "P1Y",
  });
  check((await keys.getKeyRotationPolicy("js-many")).expiresIn === "P1Y", "the rotation policy");
  const rotated = await keys.rotateKey("js-many");
  const backup = await keys.backupKey("js-many");
  await (await keys.beginDeleteKey("js-many")).pollUntilDone();
  await fails(keys.getKey("js-many"), 404, "KeyNotFound");
  const recovered = await (await keys.beginRecoverDeletedKey("js-many")).pollUntilDone();
  check(recovered.name === "js-many", "recovered");
  await (await keys.beginDeleteKey("js-many")).pollUntilDone();
  await keys.purgeDeletedKey("js-many");
  check((await keys.restoreKeyBackup(backup)).id === rotated.id, "restored");
  if (hsm) check((await keys.getRandomBytes(32)).length === 32, "random bytes");
}

async function main() {
  for (const bits of [2048, 3072, 4096]) {
    for (const hardware of hsm ? [true] : [false, true]) await rsa(bits, hardware);
  }
  for (const bits of [128, 192, 256]) await aes(bits);
  await officer();
  passed("the JavaScript SDK");
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
