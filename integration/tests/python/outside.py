"""A client outside of the mesh, with the real Python gRPC client: TLS with a certificate of its own CA, and a token as a
bearer. Prints one JSON object: check -> "ok" or what went wrong."""
import json
import sys
import traceback

import grpc

address, name, roots, chain, key, token = sys.argv[1:]
results = {}


def read(path):
    with open(path, "rb") as file:
        return file.read()


def channel(credentials):
    return grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", name)])


outside = channel(grpc.ssl_channel_credentials(read(roots), read(key), read(chain)))
BEARER = ("authorization", "Bearer " + token)
TENANT = ("x-tenant-id", "acme")


def call(method, *metadata, through=outside):
    return through.unary_unary("/echo.v1.Echo/" + method)(b"hello", metadata=metadata, timeout=20)


def refused(code, reason, work):
    try:
        work()
    except grpc.RpcError as error:
        assert error.code() == code, error
        assert error.details().startswith(reason + ": "), error.details()
        return
    raise AssertionError("expected " + reason)


def check(function):
    try:
        function()
        results[function.__name__] = "ok"
    except Exception:  # every failure is a result
        results[function.__name__] = traceback.format_exc()


@check
def the_allowed_path_passes():
    assert call("Unary", BEARER, TENANT) == b"hello"


@check
def the_app_sees_who_calls_and_nothing_of_the_token():
    told = (("x-mesh-caller", "wiki"), ("x-mesh-request-id", "chosen-outside"), ("x-app", "stays"))
    seen = call("Headers", BEARER, TENANT, *told).decode().splitlines()
    assert "x-mesh-caller='billing'" in seen, seen
    assert "x-tenant-id='acme'" in seen and "x-app='stays'" in seen, seen
    assert not any(line.startswith("authorization=") or "chosen-outside" in line for line in seen), seen


@check
def a_stream_passes():
    answers = outside.unary_stream("/echo.v1.Echo/Count")(b"100", metadata=(BEARER, TENANT), timeout=20)
    assert [int(answer) for answer in answers] == list(range(100))


@check
def another_path_is_refused():
    refused(grpc.StatusCode.PERMISSION_DENIED, "PATH_NOT_ALLOWED", lambda: call("Total", BEARER, TENANT))


@check
def what_the_mesh_gives_to_all_of_its_own_services_is_refused():
    refused(grpc.StatusCode.PERMISSION_DENIED, "PATH_NOT_ALLOWED", lambda: call("Cancelled", BEARER, TENANT))


@check
def a_tenant_is_asked_for_as_of_everybody():
    refused(grpc.StatusCode.PERMISSION_DENIED, "TENANT_REQUIRED", lambda: call("Unary", BEARER))


@check
def no_token_is_refused():
    refused(grpc.StatusCode.UNAUTHENTICATED, "ASAP_MISSING", lambda: call("Unary", TENANT))


@check
def no_certificate_is_no_connection():
    try:
        call("Unary", BEARER, TENANT, through=channel(grpc.ssl_channel_credentials(read(roots))))
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error
        return
    raise AssertionError("it got in")


print(json.dumps(results))
