"""PyPI atlassian-jwt-auth as the other side: one request a line on standard input, one answer a line, both JSON.

{"do": "mint", "issuer": .., "kid": .., "algorithm": .., "key": PEM, "audience": ..}  ->  {"token": ..}
{"do": "mint", "issuer": .., "uri": DATA_URI, "algorithm": .., "audience": ..}        ->  {"token": ..}
{"do": "verify", "token": .., "audience": .., "url": BASE_URL, "ca": FILE}            ->  {"claims": {..}}
Whatever goes wrong                                                                   ->  {"error": ..}
"""

import json
import sys
import warnings

import atlassian_jwt_auth
from atlassian_jwt_auth.key import DataUriPrivateKeyRetriever, HTTPSPublicKeyRetriever
from atlassian_jwt_auth.signer import JWTAuthSigner
from atlassian_jwt_auth.verifier import JWTAuthVerifier


def mint(asked):
    more = {"algorithm": asked["algorithm"]}
    if "uri" in asked:
        signer = JWTAuthSigner(asked["issuer"], DataUriPrivateKeyRetriever(asked["uri"]), **more)
    else:
        signer = atlassian_jwt_auth.create_signer(asked["issuer"], asked["kid"], asked["key"], **more)
    return {"token": signer.generate_jwt(asked["audience"]).decode()}


def verify(asked):
    verifier = JWTAuthVerifier(HTTPSPublicKeyRetriever(asked["url"]))
    return {"claims": verifier.verify_jwt(asked["token"], asked["audience"], leeway=5, verify=asked["ca"])}


def main():
    # Of keys that it thinks short for their algorithm: those of the tests are what the rules say.
    warnings.simplefilter("ignore")
    doing = {"mint": mint, "verify": verify}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = doing[asked["do"]](asked)
        except Exception as error:  # Whatever it is, the test compares it.
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
