// The fake vault, as Azure's JavaScript SDK is pointed at it, and what its checks share.
//
// Challenge and TLS verification are on. Reads the FAKE_ variables that `keyward-fake-vault`
// prints; KIND says what it fakes.
"use strict";

const assert = require("node:assert/strict");
const dns = require("node:dns");

// Node does not know that *.localhost is this machine (RFC 6761, 6.3).
const lookup = dns.lookup;
dns.lookup = (host, options, callback) =>
  lookup.call(dns, String(host).endsWith(".localhost") ? "127.0.0.1" : host, options, callback);

const { ClientSecretCredential } = require("@azure/identity");
const { KeyClient } = require("@azure/keyvault-keys");

const fake = (name) => process.env[`FAKE_${name}`];
const credential = new ClientSecretCredential(fake("TENANT"), fake("CLIENT_ID"), fake("CLIENT_SECRET"), {
  authorityHost: fake("AUTHORITY"),
  disableInstanceDiscovery: true,
});
const keys = new KeyClient(fake("URL"), credential);

let checks = 0;
function check(condition, what) {
  assert.ok(condition, what);
  checks += 1;
}

function passed(who) {
  console.log(`${who} and the fake ${process.env.KIND}: ${checks} checks passed`);
}

module.exports = { check, credential, hsm: process.env.KIND === "managed-hsm", keys, passed };
