#!/usr/bin/env python3
"""A Keyward client in Python, written from proto/keyward/v1/keywrap.proto alone.

    unwrap.py [unwrap] --socket PATH [--context-file F] [WRAPPED]       DEK to stdout
    unwrap.py wrap     --socket PATH --kek NAME [--context-file F] [DEK]  WrappedDek to stdout
    unwrap.py generate --socket PATH --kek NAME --length N --wrapped-out F   DEK to stdout

WRAPPED and DEK are files; without one, or with "-", standard input is read. A wrapped
DEK is a serialized WrappedDek message. With --sealed the DEK goes over the connection sealed
(sealed.py). Exit code: 0 done, 1 refused, 2 usage.
"""

import argparse
import importlib
import os
import pathlib
import sys
import tempfile

import grpc
import grpc_tools
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpc_tools import protoc

PROTO_ROOT = pathlib.Path(__file__).resolve().parents[2] / "proto"
PROTO = "keyward/v1/keywrap.proto"
DEADLINE_SECONDS = 10


def load_stubs():
    """Generates the stubs and imports them.

    A real client generates them once, at build time (README.md has the command).
    Doing it here shows that the proto is all there is to know.
    """
    # google/protobuf/*.proto, which grpcio-tools brings along.
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as out:
        includes = [f"-I{PROTO_ROOT}", f"-I{well_known}"]
        if protoc.main(["protoc", *includes, f"--python_out={out}", f"--grpc_python_out={out}", PROTO]):
            sys.exit(f"error: {PROTO} could not be compiled")
        sys.path.insert(0, out)
        try:
            messages = importlib.import_module("keyward.v1.keywrap_pb2")
            services = importlib.import_module("keyward.v1.keywrap_pb2_grpc")
        finally:
            sys.path.remove(out)
    return messages, services


def connect(socket):
    return grpc.insecure_channel(
        f"unix:{os.path.abspath(socket)}",
        # grpcio sends the socket's path as :authority, which HTTP/2 servers refuse.
        options=[("grpc.default_authority", "localhost")],
    )


def explain(error):
    """Prints what the status says: message, code, reason, and when to try again."""
    print(f"error: {error.details()}", file=sys.stderr)
    print(f"code: {error.code().name}", file=sys.stderr)
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == "keyward":
            print(f"reason: {info.reason}", file=sys.stderr)
        elif detail.Unpack(retry):
            print(f"retry after: {retry.retry_delay.ToTimedelta().total_seconds()} s", file=sys.stderr)


def read(path):
    return sys.stdin.buffer.read() if path == "-" else pathlib.Path(path).read_bytes()


def main():
    arguments = sys.argv[1:]
    commands = ("unwrap", "wrap", "generate")
    # Unwrapping is what the example is named for: it needs no command.
    if not arguments or arguments[0] not in (*commands, "-h", "--help"):
        arguments.insert(0, "unwrap")

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=commands)
    parser.add_argument("input", nargs="?", default="-", help="file to read, or - for standard input")
    parser.add_argument("--socket", required=True, help="the sidecar's Unix socket")
    parser.add_argument("--context-file", help="bytes that the DEK is bound to")
    parser.add_argument("--kek", help="wrap, generate: name of the KEK")
    parser.add_argument("--length", type=int, default=32, help="generate: length of the DEK in bytes")
    parser.add_argument("--wrapped-out", help="generate: file for the wrapped DEK")
    parser.add_argument("--sealed", action="store_true", help="have the DEK sealed on its way")
    # Intermixed: the file may stand before or after the options.
    options = parser.parse_intermixed_args(arguments)
    if options.command != "unwrap" and not options.kek:
        parser.error("--kek is needed")
    if options.command == "generate" and not options.wrapped_out:
        parser.error("--wrapped-out is needed")

    messages, services = load_stubs()
    context = read(options.context_file) if options.context_file else b""
    with connect(options.socket) as channel:
        keyward = services.KeyWrapStub(channel)
        session, session_id = None, b""
        if options.sealed:
            from sealed import Session

            session = Session(keyward, messages, DEADLINE_SECONDS)
            session_id = session.id

        def received(answer, wrapped):
            return session.open(answer.sealed, wrapped, context) if session else answer.dek

        if options.command == "unwrap":
            wrapped = messages.WrappedDek.FromString(read(options.input))
            request = messages.UnwrapRequest(wrapped=wrapped, context=context, session=session_id)
            output = received(keyward.Unwrap(request, timeout=DEADLINE_SECONDS), wrapped)
        elif options.command == "wrap":
            dek = read(options.input)
            request = messages.WrapRequest(kek=options.kek, context=context)
            if session:
                request.sealed.CopyFrom(session.seal(options.kek, dek, context))
            else:
                request.dek = dek
            output = keyward.Wrap(request, timeout=DEADLINE_SECONDS).wrapped.SerializeToString()
        else:
            request = messages.GenerateDekRequest(
                kek=options.kek, length=options.length, context=context, session=session_id
            )
            response = keyward.GenerateDek(request, timeout=DEADLINE_SECONDS)
            pathlib.Path(options.wrapped_out).write_bytes(response.wrapped.SerializeToString())
            output = received(response, response.wrapped)
    sys.stdout.buffer.write(output)


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as refused:
        explain(refused)
        sys.exit(1)
    except DecodeError:
        sys.exit("error: the input is not a serialized WrappedDek")
    except OSError as trouble:
        sys.exit(f"error: {trouble}")
