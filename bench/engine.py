"""An engine for measurements: becomes healthy after a given time and writes down exactly when it began and ended.

``engine.py PORT LOG READY_AFTER_S STOP_AFTER_S``: every line of LOG is an event and a time of CLOCK_MONOTONIC.
"""

import signal
import socket
import sys
import time
from types import FrameType


def main() -> None:
    port, log_path, ready_after_s, stop_after_s = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
    began = time.clock_gettime(time.CLOCK_MONOTONIC)
    with open(log_path, "a", buffering=1) as log:
        log.write(f"exec {began}\n")
        server = socket.create_server(("127.0.0.1", port), backlog=64)

        def stop(_number: int, _frame: FrameType | None) -> None:
            log.write(f"term {time.clock_gettime(time.CLOCK_MONOTONIC)}\n")
            time.sleep(stop_after_s)
            log.write(f"exit {time.clock_gettime(time.CLOCK_MONOTONIC)}\n")
            sys.exit(0)

        signal.signal(signal.SIGTERM, stop)
        ready_at = began + ready_after_s
        told = False
        while True:
            # The engine is ready at ready_at whether or not somebody asks at that moment.
            client, _ = server.accept()
            with client:
                client.recv(65536)
                now = time.clock_gettime(time.CLOCK_MONOTONIC)
                ready = now >= ready_at
                if ready and not told:
                    told = True
                    log.write(f"ready {ready_at}\n")
                status = b"200 OK" if ready else b"503 Service Unavailable"
                client.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")


main()
