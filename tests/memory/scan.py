#!/usr/bin/env python3
"""Looks for secrets in the memory of another process.

    scan.py [--stop] [--core FILE] PID < SECRETS

SECRETS has a line NAME=HEX for each, of at least 16 bytes. Prints JSON: for each mapping
that holds a copy of a secret, or of either half of one, how many and where; and the
mappings that the kernel did not let it read. A whole copy is not counted as halves too.

    --stop       stops the process (SIGSTOP) while it is read, and lets it go on
    --core FILE  also has gdb's gcore write a core dump to FILE and looks through that;
                 the file holds whatever it holds: the caller removes it

Exit code 0 if it could look, whatever it found; 1 if it could not; 2 usage.

Refuses: to call anything clean that it did not read. What it could not read, and what
the process changed away under it, is in "unreadable". Pages that the process has never
touched, or gave back, hold nothing of it and are not read.
Invariants: secrets come by standard input only, never on a command line, and are never
printed. It holds them itself, so it must be a process of its own.
"""

import argparse
import array
import json
import os
import signal
import subprocess
import sys

CHUNK = 256 << 10
ADDRESSES_MAX = 16  # told of each kind in each mapping; all are counted


class Secret:
    def __init__(self, name, value):
        middle = len(value) // 2
        self.name, self.value = name, value
        self.halves = {"first": value[:middle], "second": value[middle:]}
        self.middle = middle


def read_secrets(stream):
    secrets = []
    for line in stream:
        if not line.strip():
            continue
        name, separator, digits = line.strip().partition("=")
        try:
            value = bytes.fromhex(digits)
        except ValueError:
            value = b""
        # The line itself is not told: it may be a secret.
        if not (name and separator) or len(value) < 16:
            raise ValueError("a line is not NAME=HEX with at least 16 bytes")
        secrets.append(Secret(name, value))
    if not secrets:
        raise ValueError("no secrets on standard input")
    return secrets


def occurrences(data, needle):
    at = data.find(needle)
    while at >= 0:
        yield at
        at = data.find(needle, at + 1)


class Findings:
    """What one place (a mapping, a core dump) holds."""

    def __init__(self, place):
        self.place = place
        self.seen = {}

    def look(self, secrets, data, address):
        """Notes what stands in `data`, which begins at `address`. Chunks overlap, so a
        copy may be noted twice: places are sets."""
        for secret in secrets:
            for kind, part in secret.halves.items():
                places = {address + at for at in occurrences(data, part)}
                if places:
                    self.seen.setdefault((secret, kind), set()).update(places)
            first, second = (self.seen.get((secret, kind), set()) for kind in secret.halves)
            whole = first & {at - secret.middle for at in second}
            if whole:
                self.seen[secret, "whole"] = whole

    def report(self):
        for (secret, kind), addresses in self.seen.items():
            if kind != "whole":
                offset = secret.middle if kind == "second" else 0
                wholes = self.seen.get((secret, "whole"), set())
                addresses = addresses - {whole + offset for whole in wholes}
            if not addresses:
                continue
            yield {
                "secret": secret.name,
                "copy": kind,
                "count": len(addresses),
                "addresses": [hex(address) for address in sorted(addresses)[:ADDRESSES_MAX]],
                **self.place,
            }


def look_through(read, start, end, secrets, findings, is_there=lambda at, size: True):
    """Looks through a range by chunks, which overlap so that nothing is cut in two, and
    passes over those where nothing is. Returns the bytes read and the ranges that could
    not be read."""
    overlap = max(len(secret.value) for secret in secrets)
    page = os.sysconf("SC_PAGESIZE")
    tail, done, unreadable, at = b"", 0, [], start
    while at < end:
        size = min(CHUNK, end - at)
        if not is_there(at, size):
            tail, at = b"", at + size
            continue
        data = read(at, size)
        if not data:
            # One page may be missing among others that are there.
            size = min(page, size)
            data = read(at, size)
        if not data:
            if unreadable and unreadable[-1][1] == at:
                unreadable[-1][1] = at + size
            else:
                unreadable.append([at, at + size])
            tail, at = b"", at + size
            continue
        if data.count(0) < len(data):
            findings.look(secrets, tail + data, at - len(tail))
        done, at = done + len(data), at + len(data)
        tail = (tail + data)[-overlap:]
    return done, unreadable


def mappings(pid):
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            start, end = (int(bound, 16) for bound in fields[0].split("-"))
            yield start, end, fields[1], fields[5].strip() if len(fields) > 5 else ""


def scan_process(pid, secrets):
    found, unreadable, done = [], [], 0
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    page = os.sysconf("SC_PAGESIZE")

    def read(at, size):
        try:
            return os.pread(memory, size, at)
        except (OSError, OverflowError):
            return b""

    def is_there(at, size):
        """Whether any page of a range is in memory or in swap."""
        try:
            entries = os.pread(pagemap, 8 * (size // page), 8 * (at // page))
        except (OSError, OverflowError):
            return True
        # The two highest of the 64 bits say so. Where the map tells nothing, one has to look.
        return not entries or max(array.array("Q", entries)) >= 1 << 62

    try:
        for start, end, access, name in mappings(pid):
            if "r" not in access:
                continue
            place = {"mapping": name or "anonymous", "range": f"{start:x}-{end:x}", "access": access}
            findings = Findings(place)
            bytes_read, gaps = look_through(read, start, end, secrets, findings, is_there)
            done += bytes_read
            found.extend(findings.report())
            for gap_start, gap_end in gaps:
                unreadable.append({**place, "gap": f"{gap_start:x}-{gap_end:x}"})
    finally:
        os.close(memory)
        os.close(pagemap)
    if done == 0:
        raise OSError(f"nothing of process {pid} could be read")
    return {"bytes_read": done, "found": found, "unreadable": unreadable}


def scan_core(pid, path, secrets):
    # gcore names its file PREFIX.PID.
    made = f"{path}.{pid}"
    subprocess.run(["gcore", "-o", path, str(pid)], check=True, stdin=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=300)
    os.replace(made, path)
    with open(path, "rb") as core:
        def read(at, size):
            core.seek(at)
            return core.read(size)

        size = os.fstat(core.fileno()).st_size
        findings = Findings({"mapping": "core dump"})
        done, _ = look_through(read, 0, size, secrets, findings)
    if done == 0 or done != size:
        raise OSError("the core dump could not be read")
    return {"bytes_read": done, "found": list(findings.report())}


def main():
    parser = argparse.ArgumentParser(description="looks for secrets in another process's memory")
    parser.add_argument("pid", type=int, metavar="PID")
    parser.add_argument("--stop", action="store_true", help="stop the process while it is read")
    parser.add_argument("--core", metavar="FILE", help="also look through a core dump, left in FILE")
    arguments = parser.parse_args()
    if arguments.pid in (os.getpid(), os.getppid()):
        parser.error("it cannot look into itself or its parent, which hold the secrets")
    try:
        secrets = read_secrets(sys.stdin)
        if arguments.stop:
            os.kill(arguments.pid, signal.SIGSTOP)
        try:
            result = {"process": scan_process(arguments.pid, secrets)}
        finally:
            if arguments.stop:
                os.kill(arguments.pid, signal.SIGCONT)
        # Not while it is stopped: gdb waits for it for ever.
        if arguments.core:
            result["core"] = scan_core(arguments.pid, arguments.core, secrets)
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: gcore failed: {error.stderr.decode(errors='replace').strip()}")
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        sys.exit(f"error: {error}")
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
