"""Ends TLS before another server, under a certificate authority made here and now.

Arguments: the port to listen on, the port to pass on to, and where to write the authority's
certificate. Ends with its standard input.
"""
import datetime
import ipaddress
import os
import socket
import ssl
import sys
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

listen, upstream, bundle = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


def certificate(subject, key, issuer, issuer_key, extensions):
    name = lambda text: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def pem(what):
    return what.public_bytes(serialization.Encoding.PEM)


ca_key = ec.generate_private_key(ec.SECP256R1())
key = ec.generate_private_key(ec.SECP256R1())
ca = certificate("test CA", ca_key, "test CA", ca_key, [(x509.BasicConstraints(True, None), True)])
loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
leaf = certificate(
    "kms", key, "test CA", ca_key,
    [(x509.SubjectAlternativeName([loopback]), False), (x509.BasicConstraints(False, None), True)],
)
secret = key.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
with open(bundle + ".server", "wb") as file:
    file.write(secret + pem(leaf))
with open(bundle, "wb") as file:
    file.write(b"A bundle may hold other text.\n" + pem(ca))

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(bundle + ".server")


def watch():
    sys.stdin.buffer.read()
    os._exit(0)


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def serve(client):
    try:
        with context.wrap_socket(client, server_side=True) as tls:
            with socket.create_connection(("127.0.0.1", upstream)) as server:
                threading.Thread(target=pump, args=(tls, server), daemon=True).start()
                pump(server, tls)
    except OSError:
        pass


threading.Thread(target=watch, daemon=True).start()
with socket.create_server(("127.0.0.1", listen)) as listener:
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
