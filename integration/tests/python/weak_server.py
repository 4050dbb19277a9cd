"""A listener as ours must never be: TLS 1.2 as well as 1.3. Prints its port, then takes connections until it is killed."""
import socket
import ssl
import sys
import threading

certificate, key = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.minimum_version = ssl.TLSVersion.TLSv1_2
context.load_cert_chain(certificate, key)
context.set_alpn_protocols(["h2"])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)


def serve(connection):
    try:
        with context.wrap_socket(connection, server_side=True) as stream:
            stream.recv(1024)
    except OSError:
        pass


while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
