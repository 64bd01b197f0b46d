"""The program that a test runs in the environment of llama.cpp: `python llama_server.py MODEL CONTEXT`.

It loads the model, serves it by llama.cpp's own HTTP server on a free port of loopback, prints the address, and ends
with its standard input.
"""

import sys

import xllamacpp


def main() -> None:
    """See the module's docstring."""
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.model_alias = {"tiny"}
    params.n_ctx = int(sys.argv[2])
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = 1
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.endpoint_slots = True
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
