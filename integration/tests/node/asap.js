// npm jwt-authentication as the other side: one request a line on standard input, one answer a line, both JSON.
//
// {"do": "mint", "issuer": .., "kid": .., "algorithm": .., "key": PEM or data URI, "audience": ..}  ->  {"token": ..}
// {"do": "verify", "token": .., "issuer": .., "audience": .., "url": BASE_URL}                      ->  {"claims": {..}}
// Whatever goes wrong                                                                               ->  {"error": ..}
//
// The authority of the key repository is in NODE_EXTRA_CA_CERTS.
'use strict';

const jwt = require('jwt-authentication');

function mint(asked, done) {
  const claims = { iss: asked.issuer, sub: asked.issuer, aud: asked.audience };
  const options = { privateKey: asked.key, kid: asked.kid, algorithm: asked.algorithm };
  jwt.client.create().generateToken(claims, options, (error, token) => done(error, { token }));
}

function verify(asked, done) {
  const authenticator = jwt.server.create({ publicKeyBaseUrl: asked.url, resourceServerAudience: asked.audience });
  authenticator.validate(asked.token, [asked.issuer], (error, claims) => done(error, { claims }));
}

require('readline').createInterface({ input: process.stdin }).on('line', (line) => {
  const asked = JSON.parse(line);
  ({ mint, verify })[asked.do](asked, (error, answer) => {
    console.log(JSON.stringify(error ? { error: String(error.message || error) } : answer));
  });
});
