// Tokens that are verified with the public keys of a login: its key set (rotation, wrong keys, a login that is down, TLS), or a file.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHmac, generateKeyPairSync, sign } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createServer as createSecureServer } from "node:https";
import { join } from "node:path";
import { after, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { connect, connectError } from "./clients.mjs";
import { mint, start, temporaryDirectory } from "./harness.mjs";

const AUTH = `[auth.jwt]\nalgorithms = ["RS256", "ES256", "EdDSA"]\nclaims = { user = "sub", tenant = "orgId", roles = "roles" }`;
const logins = [];
after(() => logins.forEach((login) => login.close()));

/** A login: a key set at a URL, and what it was asked. */
class Login {
  constructor(options) {
    this.keys = [];
    this.asked = 0;
    this.status = 200;
    const answer = (request, response) => {
      this.asked += 1;
      response.statusCode = this.status;
      response.end(JSON.stringify({ keys: this.keys }));
    };
    this.http = options ? createSecureServer(options, answer) : createServer(answer);
    logins.push(this.http);
  }

  async listen(scheme = "http", host = "127.0.0.1") {
    await new Promise((done) => this.http.listen(0, "127.0.0.1", done));
    this.url = `${scheme}://${host}:${this.http.address().port}/jwks.json`;
    return this;
  }

  /** Adds a key; answers what signs with it. */
  add(kid, alg, more = {}) {
    const pair = keyPair(alg);
    this.keys.push({ ...pair.publicKey.export({ format: "jwk" }), kid, alg, use: "sig", ...more });
    return signer(alg, pair.privateKey, kid);
  }
}

function keyPair(alg) {
  if (alg === "ES256") return generateKeyPairSync("ec", { namedCurve: "P-256" });
  return alg === "EdDSA" ? generateKeyPairSync("ed25519") : generateKeyPairSync("rsa", { modulusLength: 2048 });
}

/** What signs tokens with a private key. */
function signer(alg, privateKey, kid) {
  return (claims, header = {}) => {
    const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const now = Math.floor(Date.now() / 1000);
    const text = `${part({ alg, kid, ...header })}.${part({ sub: "ann", orgId: "t1", iat: now, exp: now + 600, ...claims })}`;
    const key = alg === "ES256" ? { key: privateKey, dsaEncoding: "ieee-p1363" } : privateKey;
    return `${text}.${sign(alg === "EdDSA" ? null : "sha256", Buffer.from(text), key).toString("base64url")}`;
  };
}

const serve = (login, refresh = "1s", env = {}) =>
  start({ app: shop({ auth: AUTH }), config: `[auth.jwt]\njwks = "${login.url}"\njwksRefresh = "${refresh}"\n`, env });

const invalid = async (server, token) => {
  const error = await connectError(server, { token });
  assert.deepEqual([error.message, error.data.code], ["Invalid token", "auth.invalid"]);
};

describe("a login's key set", () => {
  test("verifies each algorithm of the catalog, and nothing else", async () => {
    const login = await new Login().listen();
    const signers = ["RS256", "ES256", "EdDSA"].map((alg) => login.add(`k-${alg}`, alg));
    const encrypting = login.add("enc", "RS256", { use: "enc" });
    const crossed = login.add("crossed", "ES256", { alg: "RS256" });
    const server = await serve(login);
    for (const signer of signers) (await connect(server, { token: signer({}) })).close();
    assert.equal(login.asked, 1, "fetched at the start and not again");
    await invalid(server, signers[0]({ exp: 1 }));
    await invalid(server, signers[0]({}, { crit: ["exp"] }));
    await invalid(server, signers[0]({}, { kid: "k-ES256" }));
    await invalid(server, encrypting({}));
    await invalid(server, crossed({}));
    await invalid(server, new Login().add("k-RS256", "RS256")({}));
    (await connect(server, { token: signers[1]({}, { kid: undefined }) })).close();
    // The public key as an HMAC secret: the oldest trick.
    const [header, payload] = [{ alg: "HS256", kid: "k-RS256" }, { sub: "ann", orgId: "t1", exp: 9999999999 }];
    const text = [header, payload].map((part) => Buffer.from(JSON.stringify(part)).toString("base64url")).join(".");
    await invalid(server, `${text}.${createHmac("sha256", login.keys[0].n).update(text).digest("base64url")}`);
    await server.stop();
  });

  test("is fetched again for a key that is not known, and a withdrawn key is gone with that", async () => {
    const login = await new Login().listen();
    const [old] = [login.add("old", "ES256")];
    const server = await serve(login);
    (await connect(server, { token: old({}) })).close();
    login.keys = [];
    const fresh = login.add("fresh", "ES256");
    (await connect(server, { token: old({}) })).close();
    // Within the refresh time nobody is asked, so the new key is known a second after the start at the latest.
    let client;
    while (!client) client = await connect(server, { token: fresh({}) }).catch(() => undefined);
    client.close();
    await invalid(server, old({}));
    await server.stop();
  });

  test("is not fetched more often than allowed, whatever clients send", async () => {
    const login = await new Login().listen();
    login.add("a", "ES256");
    const server = await serve(login, "1h");
    const stranger = new Login().add("unknown", "ES256");
    await Promise.all(Array.from({ length: 20 }, () => invalid(server, stranger({}))));
    assert.equal(login.asked, 1);
    await server.stop();
  });

  test("that cannot be fetched means that nothing was checked", async () => {
    const login = await new Login().listen();
    const signer = login.add("a", "ES256");
    login.status = 500;
    const server = await serve(login);
    const error = await connectError(server, { token: signer({}) });
    assert.deepEqual([error.message, error.data.code], ["Authentication failed", "auth.unavailable"]);
    login.status = 200;
    let client;
    while (!client) client = await connect(server, { token: signer({}) }).catch(() => undefined);
    login.status = 500;
    (await connect(server, { token: signer({}) })).close();
    await server.stop();
  });

  test("is fetched over TLS, from a server whose certificate is good", async () => {
    const directory = temporaryDirectory();
    const [key, cert] = [join(directory, "key.pem"), join(directory, "cert.pem")];
    const leaf = ["-addext", "basicConstraints=critical,CA:FALSE"];
    const subject = ["-subj", "/CN=login", "-addext", "subjectAltName=DNS:localhost", ...leaf];
    const args = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    execFileSync("openssl", [...args, ...subject, "-keyout", key, "-out", cert], { stdio: "pipe" });
    const login = await new Login({ key: readFileSync(key), cert: readFileSync(cert) }).listen("https", "localhost");
    const signer = login.add("a", "ES256");
    const trusting = await serve(login, "1s", { SSL_CERT_FILE: cert });
    (await connect(trusting, { token: signer({}) })).close();
    await trusting.stop();
    const wary = await serve(login);
    assert.equal((await connectError(wary, { token: signer({}) })).message, "Authentication failed");
    await wary.stop();
  });
});

describe("the public key in a file", () => {
  for (const alg of ["ES256", "EdDSA"]) {
    test(`decides which tokens of ${alg} are taken`, async () => {
      const { publicKey, privateKey } = keyPair(alg);
      const pem = publicKey.export({ type: "spki", format: "pem" });
      const file = join(temporaryDirectory(), "login.pem");
      writeFileSync(file, pem);
      const auth = `[auth.jwt]\nalgorithms = ["${alg}"]\nclaims = { user = "sub", tenant = "orgId", roles = "roles" }`;
      const own = await start({ app: shop({ auth }), config: `[auth.jwt]\npublicKeyFile = "${file}"\n` });
      const token = signer(alg, privateKey);
      const ann = await connect(own, { token: token({ roles: ["agent"] }) });
      assert.deepEqual([ann.hello.userId, ann.hello.tenant, ann.hello.roles], ["ann", "t1", ["agent"]]);
      const refused = async (bad) => (await connectError(own, { token: bad })).data.code;
      assert.equal(await refused(signer(alg, keyPair(alg).privateKey)({})), "auth.invalid", "of another key");
      assert.equal(await refused(token({ exp: 1 })), "auth.invalid", "of long ago");
      assert.equal(await refused(mint({ sub: "ann", orgId: "t1" }, pem)), "auth.invalid", "the key is no secret");
      await own.kill();
    });
  }
});
