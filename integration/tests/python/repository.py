"""Asks an HTTPS key repository as any client outside of the mesh would, with Python's own HTTP and TLS. Prints JSON: one
object a path, in their order."""
import json
import ssl
import sys
import urllib.error
import urllib.request

base, roots, *paths = sys.argv[1:]
context = ssl.create_default_context(cafile=roots)
answers = []
for path in paths:
    request = urllib.request.Request(base + path, headers={"Accept": "application/x-pem-file"})
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:
            status, headers, body = answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        status, headers, body = error.code, error.headers, error.read()
    answers.append({
        "path": path,
        "status": status,
        "type": headers["content-type"],
        "cacheControl": headers["cache-control"],
        "body": body.decode(),
    })
print(json.dumps(answers))
