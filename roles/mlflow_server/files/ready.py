"""Whether a server can do its work: it answers a request that needs its databases.

MLflow's /health answers without them. kubelet starts this anew for each look, so that it imports only what starts at
once. A wrong password is no reason: MLflow has looked the user up to find out, and a new password is in the Secret
before MLflow has it.
"""

import binascii
import os
import socket
import sys

ANSWERS = (b"200", b"401", b"404")
SECONDS = 8

user = f"{os.environ['MLFLOW_AUTH_ADMIN_USERNAME']}:{os.environ['MLFLOW_AUTH_ADMIN_PASSWORD']}".encode()
request = (
    f"GET {os.environ.get('MLFLOW_STATIC_PREFIX', '')}/api/2.0/mlflow/experiments/get?experiment_id=0 HTTP/1.0\r\n"
    f"Host: localhost\r\nAuthorization: Basic {binascii.b2a_base64(user, newline=False).decode()}\r\n\r\n"
)
try:
    with socket.create_connection(("127.0.0.1", int(os.environ["MLFLOW_PORT"])), SECONDS) as connection:
        connection.sendall(request.encode())
        line = connection.recv(128).split(b"\r\n")[0]
except OSError as error:
    sys.exit(f"MLflow does not answer: {error}")
if not line.startswith(b"HTTP/") or line.split()[1] not in ANSWERS:
    sys.exit(f"MLflow answers {line.decode(errors='replace')!r} to a request that needs its databases")
