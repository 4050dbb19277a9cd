"""An app's own calls through its sidecar, with the real Python gRPC client. Prints one JSON object: check -> "ok" or
what went wrong."""
import json
import sys
import threading
import time
import traceback

import grpc

address, tenant = sys.argv[1], sys.argv[2]
OPTIONS = [
    ("grpc.default_authority", "echo"),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
channel = grpc.insecure_channel(address, OPTIONS)
TENANT = (("x-tenant-id", tenant),)
SHAPES = {
    "Unary": channel.unary_unary,
    "Fail": channel.unary_unary,
    "Count": channel.unary_stream,
    "Total": channel.stream_unary,
    "Chat": channel.stream_stream,
    "Hang": channel.unary_unary,
    "HangStream": channel.unary_stream,
    "Cancelled": channel.unary_unary,
    "Headers": channel.unary_unary,
}
results = {}


def method(name):
    return SHAPES[name]("/echo.v1.Echo/" + name)


def check(function):
    try:
        function()
        results[function.__name__] = "ok"
    except Exception:  # every failure is a result
        results[function.__name__] = traceback.format_exc()


def eventually(ask):
    end = time.monotonic() + 10
    while not ask():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def cancelled():
    return int(method("Cancelled")(b"", metadata=TENANT, timeout=10))


@check
def unary_with_initial_and_trailing_metadata():
    answer, call = method("Unary").with_call(b"hello", metadata=TENANT, timeout=10)
    assert answer == b"hello", answer
    assert ("x-initial", "first") in [tuple(pair) for pair in call.initial_metadata()]
    assert ("x-trailing", "last") in [tuple(pair) for pair in call.trailing_metadata()]


@check
def binary_metadata_both_ways():
    blob = bytes(range(256))
    _, call = method("Unary").with_call(b"", metadata=TENANT + (("x-blob-bin", blob),), timeout=10)
    assert dict(call.trailing_metadata())["x-echo-bin"] == blob


@check
def a_status_of_the_app_passes_with_its_message_and_trailers():
    try:
        method("Fail")(b"", metadata=TENANT, timeout=10)
        raise AssertionError("expected a failure")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
        assert error.details() == "as asked: 100 % of it", error.details()
        assert ("x-trailing", "last") in [tuple(pair) for pair in error.trailing_metadata()]


@check
def server_streaming():
    answers = list(method("Count")(b"500", metadata=TENANT, timeout=30))
    assert answers == [str(number).encode() for number in range(500)], len(answers)


@check
def client_streaming():
    answer = method("Total")(iter([b"x" * 1000] * 300), metadata=TENANT, timeout=30)
    assert answer == b"300000", answer


@check
def bidirectional_streaming_in_lockstep():
    turn = threading.Semaphore(1)

    def requests():
        for number in range(100):
            assert turn.acquire(timeout=10)
            yield str(number).encode()

    seen = []
    for answer in method("Chat")(requests(), metadata=TENANT, timeout=30):
        seen.append(answer)
        turn.release()
    assert seen == [str(number).encode() for number in range(100)], seen


@check
def messages_of_4_mib_both_ways():
    message = b"m" * (4 << 20)
    assert method("Unary")(message, metadata=TENANT, timeout=60) == message
    assert list(method("Chat")(iter([message, message]), metadata=TENANT, timeout=60)) == [message, message]


@check
def gzip_both_ways():
    message = b"gzip " * 100_000
    answer = method("Unary")(message, metadata=TENANT, timeout=30, compression=grpc.Compression.Gzip)
    assert answer == message


@check
def a_deadline_ends_the_call_at_both_ends():
    before = cancelled()
    began = time.monotonic()
    try:
        method("Hang")(b"", metadata=TENANT, timeout=0.5)
        raise AssertionError("expected a failure")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    assert time.monotonic() - began < 5
    eventually(lambda: cancelled() > before)


@check
def a_cancelled_unary_call_is_seen_by_the_server():
    before = cancelled()
    call = method("Hang").future(b"", metadata=TENANT, timeout=30)
    time.sleep(0.2)
    call.cancel()
    eventually(lambda: cancelled() > before)


@check
def a_cancelled_stream_is_seen_by_the_server():
    before = cancelled()
    call = method("HangStream")(b"", metadata=TENANT, timeout=30)
    assert next(call) == b"begun"
    call.cancel()
    eventually(lambda: cancelled() > before)


@check
def two_hundred_streams_at_once():
    begun = threading.Barrier(201, timeout=60)
    failures = []

    def one(number):
        message = f"stream {number}".encode()
        first = threading.Event()

        def requests():
            yield message
            assert first.wait(60)
            yield message

        try:
            answers = method("Chat")(requests(), metadata=TENANT, timeout=60)
            assert next(answers) == message
            begun.wait()  # all two hundred are open now
            first.set()
            assert list(answers) == [message]
        except Exception:
            failures.append(traceback.format_exc())
            begun.abort()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    begun.wait()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


@check
def the_app_is_handed_what_the_mesh_knows_and_nothing_else_of_it():
    forged = TENANT + (
        ("x-tenant-context-bin", b"forged"),
        ("x-mesh-caller", "root"),
        ("x-mesh-request-id", "mine"),
        ("x-asap-token", "stolen"),
        ("x-tenant-revision", "9.9"),
        ("authorization", "Bearer the-users-own"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("txn-token", "of-the-user"),
    )
    text = method("Headers")(b"", metadata=forged, timeout=10).decode()
    seen = dict(line.split("=", 1) for line in text.splitlines())
    assert seen["x-tenant-id"] == repr(tenant), text
    assert seen["x-mesh-caller"] == "'wiki'", text
    assert "forged" not in text and "stolen" not in text and "'mine'" not in text, text
    assert "x-tenant-revision" not in seen and "x-asap-token" not in seen, text
    assert seen["authorization"] == "'Bearer the-users-own'", text
    assert seen["traceparent"].startswith("'00-0af7"), text
    assert seen["txn-token"] == "'of-the-user'", text
    assert "x-tenant-context-bin" in seen and len(seen["x-mesh-request-id"]) == 38, text


print(json.dumps(results))
