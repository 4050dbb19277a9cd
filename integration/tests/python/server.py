"""An app as its owner would write it, without any Tenon code: a Python gRPC server that handles every call shape.

Messages are raw bytes, so that no generated code is needed. It serves echo.v1.Echo.
"""
import sys
import threading
import time
from concurrent import futures

import grpc

cancelled = 0
lock = threading.Lock()


def count_cancellation():
    global cancelled
    with lock:
        cancelled += 1


def headers(context):
    return "\n".join(f"{key}={value!r}" for key, value in context.invocation_metadata()).encode()


def unary(request, context):
    metadata = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-initial", "first"),))
    context.set_trailing_metadata((("x-trailing", "last"), ("x-echo-bin", metadata.get("x-blob-bin", b""))))
    return request


def fail(request, context):
    context.set_trailing_metadata((("x-trailing", "last"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked: 100 % of it")


def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def total(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def chat(requests, context):
    for request in requests:
        yield request


def hang(request, context):
    context.add_callback(count_cancellation)
    while context.is_active():
        time.sleep(0.01)
    return b""


def hang_stream(request, context):
    context.add_callback(count_cancellation)
    yield b"begun"
    while context.is_active():
        time.sleep(0.01)


def count_cancelled(request, context):
    with lock:
        return str(cancelled).encode()


def show_headers(request, context):
    return headers(context)


class Handler(grpc.GenericRpcHandler):
    METHODS = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Total": grpc.stream_unary_rpc_method_handler(total),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Hang": grpc.unary_unary_rpc_method_handler(hang),
        "HangStream": grpc.unary_stream_rpc_method_handler(hang_stream),
        "Cancelled": grpc.unary_unary_rpc_method_handler(count_cancelled),
        "Headers": grpc.unary_unary_rpc_method_handler(show_headers),
    }

    def service(self, details):
        package, _, method = details.method.rpartition("/")
        return self.METHODS.get(method) if package == "/echo.v1.Echo" else None


def main():
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=256),
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)],
    )
    server.add_generic_rpc_handlers((Handler(),))
    server.add_insecure_port(sys.argv[1])
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
